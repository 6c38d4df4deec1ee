from __future__ import annotations

import sys
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from hellofmt.distillation.named import build_network, is_network, load_named_teacher
from hellofmt.distillation.teacher import Teacher
from hellofmt.distillation.trajectory import train_trajectory
from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.student.networks import build_student

KEYS = ["rows", "columns", "grey"]


@pytest.fixture
def view():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(stripes, views, tmp_path):
    path = tmp_path / "teacher"
    train_trajectory(
        stripes(), views(), path, network="cnn", steps=4, batch_size=4, held_out=stripes(seed=1)
    )
    return path


def test_a_folder_gives_the_mean_of_weak_checkpoints(folder, views, view):
    pool = load_named_teacher(str(folder), KEYS, views())
    assert len(pool.teachers) == 3
    files = sorted(folder.glob("*.safetensors"))
    one = load_named_teacher(str(files[-1]), KEYS, views())
    assert torch.equal(pool.teachers[2](view), one(view))
    named = load_named_teacher(f"cnn={files[-1]}", KEYS, views())
    assert torch.equal(named(view), one(view))


def test_bare_tensors_of_a_network(views, view, tmp_path):
    network = build_student("cnn", 3, 8, seed=3).eval()
    path = tmp_path / "bare.safetensors"
    save_file({f"module.{name}": t for name, t in network.state_dict().items()}, path)
    got = load_named_teacher(f"cnn={path}", KEYS, views())
    torch.testing.assert_close(got(view), Teacher(network, views())(view))


def test_code_of_the_user(tmp_path, monkeypatch, views, view):
    (tmp_path / "my_teachers.py").write_text(
        "import torch\n"
        "def made(classes):\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes))\n"
        "def nothing(classes):\n    return classes\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    teacher = load_named_teacher("my_teachers:made", KEYS, views())
    assert teacher(view).shape == (4, 3)
    # Frozen, and normalised as the data set's views are.
    assert not any(p.requires_grad for p in teacher.parameters())
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.25, 0.5, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(teacher(view), teacher.network((view - mean) / std))
    for name, message in {
        "nothing": "expected a torch.nn.Module for 3 classes, got int",
        "number": "`my_teachers:number` cannot be called",
        "none": "`my_teachers:none` cannot be imported",
    }.items():
        with pytest.raises(UserInputError, match=f"E_OPTION: network .*{message}"):
            load_named_teacher(f"my_teachers:{name}", KEYS, views())


def test_no_file_names_code(folder, views):
    document = folder / "teacher.json"
    document.write_text(document.read_text().replace('"cnn"', '"os:system"'))
    with pytest.raises(UserInputError, match=r"E_TEACHER: .* which no file may name; pass `os:sys"):
        load_named_teacher(str(folder), KEYS, views())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["columns", "rows", "grey"], "expected the data set's 3, got the same ones in another or"),
        (["a", "b"], "expected the data set's 2, got 3 of other names"),
    ],
)
def test_stored_class_names_are_compared(folder, views, keys, message):
    with pytest.raises(UserInputError, match="E_TEACHER: classes of `.*`: " + message):
        load_named_teacher(str(folder), keys, views())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "expected a folder of `hello teach`, NETWORK=FILE.safetensors, timm:NAME"),
        ("a.safetensors", "does not say its network; expected `NETWORK=a.safetensors`"),
        ("best.pth", "a PyTorch pickle can run code and is not read; expected a .safetensors"),
        ("none=a.safetensors", "unknown student `none`"),
        ("torchvision:none", "torchvision has no trained `none`"),
        ("timm:none", "timm has no network `none`"),
    ],
)
def test_what_cannot_be_understood(views, text, message):
    with pytest.raises(UserInputError, match="E_OPTION: .*" + message):
        load_named_teacher(text, KEYS, views())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("nn.Flatten()", "has nothing to train"),
        (
            "nn.Sequential(nn.Flatten(), nn.Linear(9, n))",
            "cannot run on images of 8 x 8 pixels: RuntimeError: mat1 and mat2 shapes",
        ),
        (
            "nn.Sequential(nn.Flatten(), nn.Linear(192, n + 1))",
            r"expected logits \(2, 3\) for 2 images of 3 classes, got \(2, 4\)",
        ),
    ],
)
def test_networks_of_the_user_are_tried_before_they_are_trained(
    tmp_path, monkeypatch, body, message
):
    name = f"tried{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"from torch import nn\ndef net(n):\n    return {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserInputError, match=f"E_OPTION: network `{name}:net`.*{message}"):
        build_network(f"{name}:net", 3, 8)


def test_a_checkpoint_of_other_classes_says_what_differs(views, tmp_path):
    save_file(build_student("cnn", 5, 8).state_dict(), tmp_path / "w.safetensors")
    message = r"E_TEACHER: .*w\.safetensors` does not hold a `.*` for 3 classes: size mismatch for "
    with pytest.raises(UserInputError, match=message + r".*\[5\].*\[3\]"):
        load_named_teacher(f"cnn={tmp_path / 'w.safetensors'}", KEYS, views())


def test_code_of_the_user_that_fails_is_one_line(tmp_path, monkeypatch, views):
    (tmp_path / "failing.py").write_text("def net(classes):\n    raise KeyError('weights')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    message = r"`failing:net` cannot be made: KeyError: 'weights' \(failing\.py, line 2\)"
    with pytest.raises(UserInputError, match="E_OPTION: network " + message):
        load_named_teacher("failing:net", KEYS, views())


def test_weights_that_cannot_be_downloaded_name_their_network(monkeypatch, views):
    def offline(*_args, **_kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    message = "E_HTTP: weights of `torchvision:resnet18` cannot be downloaded: .*no route"
    with pytest.raises(HelloIOError, match=message):
        load_named_teacher("torchvision:resnet18", KEYS, views())


def test_a_missing_file_stays_an_os_error(views):
    with pytest.raises(FileNotFoundError):
        load_named_teacher("cnn=none.safetensors", KEYS, views())


def test_networks_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_network("resnet10w32")
    assert is_network("resnet18")
    assert not is_network("none")
    assert not is_network("timm:resnet18")
    (tmp_path / "cnn").mkdir()
    assert not is_network("cnn")
    one, two, other = (build_network("timm:resnet10t", 5, 32, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.fc.weight, two.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert one.fc.out_features == 5


def test_published_weights_bring_their_normalisation(monkeypatch, views):
    import timm

    made = []

    def create(name, pretrained, **kwargs):
        made.append((name, pretrained, kwargs))
        network = build_student("cnn", 3, 8)
        network.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
        return network

    monkeypatch.setattr(timm, "create_model", create)
    teacher = load_named_teacher("timm:tiny", KEYS, views())
    assert made == [("tiny", True, {})]
    assert teacher.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert teacher.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
