from __future__ import annotations

import argparse
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from builders import whole_image
from PIL import Image
from safetensors.torch import save_file

from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.student.networks import build_student
from hellofmt.teacher import (
    InputRule,
    RuleChange,
    Teacher,
    build_network,
    is_network,
    load_named_teacher,
    train_trajectory,
    write_teacher,
)

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


def test_a_folder_gives_the_mean_of_weak_checkpoints(folder, view):
    pool = load_named_teacher(str(folder), KEYS, 8)
    assert len(pool.teachers) == 3
    files = sorted(folder.glob("*.safetensors"))
    one = load_named_teacher(str(files[-1]), KEYS, 8)
    assert torch.equal(pool.teachers[2](view), one(view))
    named = load_named_teacher(f"cnn={files[-1]}", KEYS, 8)
    assert torch.equal(named(view), one(view))


def test_bare_tensors_of_a_network(view, tmp_path):
    network = build_student("cnn", 3, 8, seed=3).eval()
    path = tmp_path / "bare.safetensors"
    save_file({f"module.{name}": t for name, t in network.state_dict().items()}, path)
    got = load_named_teacher(f"cnn={path}", KEYS, 8)
    torch.testing.assert_close(got(view), Teacher(network, InputRule())(view))


def test_code_of_the_user(tmp_path, monkeypatch, view):
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
    teacher = load_named_teacher("my_teachers:made", KEYS, 8)
    assert teacher(view).shape == (4, 3)
    # Frozen, and normalised as ImageNet's networks are, whatever the data set's views say.
    assert not any(p.requires_grad for p in teacher.parameters())
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(teacher(view), teacher.network((view - mean) / std))
    change = RuleChange((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    inside = load_named_teacher("my_teachers:made", KEYS, 8, change=change)
    torch.testing.assert_close(inside(view), inside.network(view))
    for name, message in {
        "nothing": "expected a torch.nn.Module for 3 classes, got int",
        "number": "`my_teachers:number` cannot be called",
        "none": "`my_teachers:none` cannot be imported",
    }.items():
        with pytest.raises(UserInputError, match=f"E_OPTION: network .*{message}"):
            load_named_teacher(f"my_teachers:{name}", KEYS, 8)


def test_no_file_names_code(folder):
    document = folder / "teacher.json"
    document.write_text(document.read_text().replace('"cnn"', '"os:system"'))
    with pytest.raises(UserInputError, match=r"E_TEACHER: .*custom network `os:system`; name the"):
        load_named_teacher(str(folder), KEYS, 8)


def test_a_trajectory_is_mapped_by_its_stored_keys(folder, view):
    whole = load_named_teacher(str(folder), KEYS, 8)(view)
    lines = []
    some = load_named_teacher(str(folder), ["grey", "rows"], 8, say=lines.append)
    assert torch.equal(some(view), whole[:, [2, 0]])
    assert lines[-1].endswith("2 of its 3 outputs, by its class list")
    # A checkpoint of it that is named with its network, as one of custom code must be.
    file = sorted(folder.glob("*.safetensors"))[-1]
    last = load_named_teacher(f"cnn={file}", ["grey", "rows"], 8)
    assert torch.equal(last(view), load_named_teacher(str(file), KEYS, 8)(view)[:, [2, 0]])
    with pytest.raises(UserInputError, match=r"E_TEACHER: .* lacks 1 of 2 classes .*: `blue`"):
        load_named_teacher(str(folder), ["grey", "blue"], 8)


def test_a_recorded_rule_is_not_overruled(folder):
    with pytest.raises(UserInputError, match=r"E_OPTION: .* records its own input rule; leave out"):
        load_named_teacher(str(folder), KEYS, 8, change=RuleChange(size=16))
    file = next(folder.glob("*.safetensors"))
    with pytest.raises(UserInputError, match=r"E_OPTION: .* records its own input rule; leave out"):
        load_named_teacher(f"cnn={file}", KEYS, 8, change=RuleChange(size=16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no such file or folder; expected a folder of `hello teach`, NETWORK=FILE"),
        ("", "teacher ``: no such file or folder"),
        ("resnet81", "no such file .*; did you mean `resnet18`"),
        ("runs/lr=0.1/w.safetensors", "no such file or folder"),
        ("w.bin", "the file does not say its network; expected `NETWORK=w.bin`"),
        ("none=w.bin", "unknown network `none`; expected cnn"),
        ("resnet17=w.bin", "unknown network .*; did you mean `resnet1.`"),
        ("timm:resnet18", "has no weights: `timm:resnet18=FILE` reads yours, `timm:resnet18=pretr"),
        ("torchvision:none=pretrained", "torchvision has no trained `none`"),
        ("timm:vit_smal_patch16_224=pretrained", "did you mean `timm:vit_small_patch16_224`"),
        ("cnn=.", "`.` is a folder; expected a file"),
        ("resnet18", "has no weights: `resnet18=FILE` reads yours, `hello teach --arch resnet18`"),
        ("timm:resnt18", "unknown network `timm:resnt18`.*; did you mean `timm:resnet18`"),
        ("timm:resnet18.none=w.bin", "unknown network `timm:resnet18.none`"),
    ],
)
def test_what_cannot_be_understood(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(UserInputError, match=r"E_OPTION: .*" + message):
        load_named_teacher(text, KEYS, 8)


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


def test_a_checkpoint_of_other_classes_says_how_many(tmp_path):
    save_file(build_student("cnn", 5, 8).state_dict(), tmp_path / "w.safetensors")
    message = (
        "E_TEACHER: teacher .* has 5 outputs for 3 classes of the data; `teacher_classes` FILE says"
    )
    with pytest.raises(UserInputError, match=message):
        load_named_teacher(f"cnn={tmp_path / 'w.safetensors'}", KEYS, 8)


def test_a_list_of_the_teachers_classes_picks_its_outputs(tmp_path, view):
    network = build_student("cnn", 5, 8, seed=1)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    text, listed = f"cnn={tmp_path / 'w.safetensors'}", ["grey", "blue", "columns", "red", "rows"]
    got = load_named_teacher(text, KEYS, 8, teacher_classes=listed)
    assert torch.equal(got(view), Teacher(network, InputRule())(view)[:, [4, 2, 0]])
    # As many classes, in another order.
    save_file(build_student("cnn", 3, 8, seed=1).state_dict(), tmp_path / "w.safetensors")
    whole = load_named_teacher(text, KEYS, 8)(view)
    got = load_named_teacher(text, KEYS, 8, teacher_classes=["columns", "rows", "grey"])
    assert torch.equal(got(view), whole[:, [1, 0, 2]])
    with pytest.raises(UserInputError, match="4 in the list; expected 3, one per output"):
        load_named_teacher(text, KEYS, 8, teacher_classes=[*KEYS, "blue"])


def test_a_teacher_of_imagenet_gives_the_columns_of_wordnet_ids(tmp_path):
    network = torchvision.models.squeezenet1_1().eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    keys, lines = ["n01443537", "n15075141", "n01440764"], []
    text = f"squeezenet1_1={tmp_path / 'w.pth'}"
    got = load_named_teacher(text, keys, 32, change=RuleChange(size=64), say=lines.append)
    view = torch.rand(2, 3, 64, 64)
    assert torch.equal(got(view), Teacher(network, InputRule(size=64))(view)[:, [1, 999, 0]])
    assert lines[-1] == f"teacher `{text}`: 3 of its 1,000 outputs, by imagenet-1k"
    with pytest.raises(UserInputError, match="lacks 1 of 2 classes by imagenet-1k: `n00000000`"):
        load_named_teacher(text, [keys[0], "n00000000"], 32)


def smooth_image(side):
    """Few large spots: crops that begin half a pixel apart look alike."""
    random = torch.Generator().manual_seed(0)
    spots = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=random).numpy()
    return np.array(Image.fromarray(spots).resize((side, side)))


def of_image(teacher, image):
    square = torch.from_numpy(whole_image(image, teacher.rule.whole(32)))
    return teacher(square.permute(2, 0, 1)[None] / 255)


def test_the_rule_of_a_library_is_taken_and_said(tmp_path):
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    lines = []
    text = f"torchvision:squeezenet1_1={tmp_path / 'w.pth'}"
    keys = [f"k{number}" for number in range(1000)]
    got = load_named_teacher(text, keys, 32, say=lines.append)
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    preset = weights.transforms()
    assert got.rule == InputRule(
        tuple(preset.mean), tuple(preset.std), 224, "bilinear", 224 / 256, got.rule.source
    )
    stated = "input 224 px bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    assert lines[1:] == [f"teacher {text}: {stated} (torchvision's {weights})"]
    assert lines[0].endswith("if it was trained on images of 32 px, pass --teacher-size 32")
    # The published transform, from bytes, is the independent reference.
    images = torch.from_numpy(smooth_image(256)[None])
    truth = got.network(preset(images.permute(0, 3, 1, 2)))
    torch.testing.assert_close(of_image(got, images[0].numpy()), truth, rtol=1e-3, atol=2e-2)


def test_inceptions_see_what_they_saw_in_training(tmp_path):
    options = {"num_classes": 3, "init_weights": False}
    published = torchvision.models.googlenet(aux_logits=True, transform_input=True, **options)
    # Untrained, it hardly looks at its input: statistics of a batch make it.
    for module in published.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    published.train()(torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(1)))
    torch.save(published.eval().state_dict(), tmp_path / "w.pth")
    lines = []
    got = load_named_teacher(f"googlenet={tmp_path / 'w.pth'}", KEYS, 224, say=lines.append)
    assert "`aux1.conv.bn.bias`, `aux1.conv.bn.num_batches_tracked`" in lines[0]
    view = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (InputRule.mean, InputRule.std))
    truth = published((view - mean) / std)
    torch.testing.assert_close(got(view), truth, rtol=1e-3, atol=1e-4)


def test_timms_data_config_is_taken_and_said(tmp_path):
    import timm

    name = "vit_tiny_patch16_224"
    network = timm.create_model(name, num_classes=3).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth.tar")
    lines = []
    got = load_named_teacher(f"timm:{name}={tmp_path / 'w.pth.tar'}", KEYS, 32, say=lines.append)
    assert lines[-1].endswith(
        ": input 224 px bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (timm's data config)"
    )
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config)
    image = smooth_image(256)
    truth = network(transform(Image.fromarray(image))[None])
    torch.testing.assert_close(of_image(got, image), truth, rtol=1e-3, atol=2e-2)
    other = RuleChange(size=32)
    small = timm.create_model(name, num_classes=3, img_size=32)
    torch.save(small.state_dict(), tmp_path / "w.pth.tar")
    text = f"timm:{name}={tmp_path / 'w.pth.tar'}"
    assert load_named_teacher(text, KEYS, 32, change=other).rule.size == 32
    with pytest.raises(UserInputError, match=r"mismatch for `pos_embed`.*`teacher_size` PIXELS"):
        load_named_teacher(text, KEYS, 32)


def test_what_timms_training_was_told_is_taken_and_said(tmp_path):
    import timm

    network = timm.create_model("resnet10t", num_classes=3)
    told = {"img_size": 32, "mean": [0.1, 0.2, 0.3], "std": None, "crop_pct": "x", "lr": 0.1}
    document = {"state_dict": network.state_dict(), "args": argparse.Namespace(**told)}
    torch.save(document, tmp_path / "last.pth.tar")
    lines, text = [], f"timm:resnet10t={tmp_path / 'last.pth.tar'}"
    got = load_named_teacher(text, KEYS, 8, say=lines.append)
    assert (got.rule.size, got.rule.mean) == (32, (0.1, 0.2, 0.3))
    assert lines[-1].endswith(
        "std 0.229 0.224 0.225 (timm's data config and the checkpoint's img_size, mean)"
    )


@pytest.mark.parametrize(
    ("network", "file", "message"),
    [
        ("resnet18", "resnet18-cifar", "`conv1.weight`: .*; it holds a `resnet18-cifar`: `resnet1"),
        (
            "resnet18-cifar",
            "resnet18",
            "`conv1.weight`: .*; it holds a `resnet18`: `resnet18=",
        ),
        ("resnet18", "resnet34", "has 96 other names .*and 93 more.*; it holds a `resnet34`"),
        (
            "cnn",
            "resnet18",
            "lacks 20 of its names .* and has 122 other names .`bn1.bias`, `",
        ),
    ],
)
def test_another_network_is_named_where_it_is_known(tmp_path, network, file, message):
    torch.save(build_student(file, 3, 64).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserInputError, match=r"E_TEACHER: .*" + message):
        load_named_teacher(f"{network}={tmp_path / 'w.pth'}", KEYS, 32)


def test_a_folder_of_write_teacher_is_a_teacher(views, view, tmp_path):
    network = build_student("cnn", 3, 8, seed=2).eval()
    write_teacher(tmp_path / "t", "cnn", network, views=views(), classes=KEYS)
    got = load_named_teacher(str(tmp_path / "t"), KEYS, 8)
    assert torch.equal(got(view), Teacher(network, InputRule.of_views(views()))(view))
    with pytest.raises(UserInputError, match=r"E_TEACHER: .* has no teacher.json; expected a fold"):
        load_named_teacher(str(tmp_path), KEYS, 8)


def test_a_network_of_timm_from_the_users_code_brings_timms_rule(tmp_path, monkeypatch):
    code = "import timm\ndef net(n):\n    return timm.create_model('test_vit', num_classes=n)\n"
    (tmp_path / "of_timm.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rule = load_named_teacher("of_timm:net", KEYS, 8).rule
    assert (rule.size, rule.mean, rule.source) == (160, (0.5,) * 3, "timm's data config")


def test_a_path_that_exists_wins_and_a_file_may_have_equals(folder, tmp_path, view):
    other = tmp_path / "lr=0.1"
    folder.rename(other)
    got = load_named_teacher(str(other), KEYS, 8)
    file = sorted(other.glob("*.safetensors"))[-1]
    assert torch.equal(load_named_teacher(f"cnn={file}", KEYS, 8)(view), got.teachers[2](view))


def test_views_of_another_size_are_resized_by_the_teachers_rule(view, tmp_path):
    network = build_student("cnn", 3, 16)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    text, change = f"cnn={tmp_path / 'w.safetensors'}", RuleChange(size=16)
    got = load_named_teacher(text, KEYS, 8, change=change)
    larger = torch.nn.functional.interpolate(view, (16, 16), mode="bilinear", antialias=True)
    truth = Teacher(network, InputRule())(larger)
    torch.testing.assert_close(got(view), truth)
    assert not torch.allclose(load_named_teacher(text, KEYS, 8)(view), truth)


def test_a_network_with_a_mean_of_its_own_is_asked_about(tmp_path, monkeypatch):
    (tmp_path / "normed.py").write_text(
        "import torch\n"
        "def net(classes):\n"
        "    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes))\n"
        "    network.register_buffer('mean', torch.zeros(1, 3, 1, 1))\n"
        "    network.register_buffer('std', torch.ones(1, 3, 1, 1))\n"
        "    return network\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    state = {"1.weight": torch.ones(3, 192), "1.bias": torch.zeros(3)}
    save_file({**state, "mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, "w.st")
    lines = []
    load_named_teacher("normed:net=w.st", KEYS, 8, say=lines.append)
    assert "`mean`, `std`; if it normalises inside, pass --teacher-mean 0 0 0" in lines[-1]


def test_code_of_the_user_that_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("def net(classes):\n    raise KeyError('weights')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    message = r"`failing:net` cannot be made: KeyError: 'weights' \(failing\.py, line 2\)"
    with pytest.raises(UserInputError, match=r"E_OPTION: network " + message):
        load_named_teacher("failing:net", KEYS, 8)


NETS = """
import torch
from torch import nn
from hellofmt.student.networks import SmallCnn
from hellofmt.teacher import InputRule, Teacher

class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.network, self.change = SmallCnn(3), change
    def forward(self, images):
        return self.change(self.network(images))

def softmax(n): return Changed(lambda z: z.softmax(1))
def log_softmax(n): return Changed(lambda z: z.log_softmax(1))
def broken(n): return Changed(lambda z: z * float("nan"))
def array(n): return Changed(lambda z: z.numpy())
def several(n): return Changed(lambda z: (z, z))
def chance(n): return Changed(lambda z: nn.functional.dropout(z, 0.5, True))
def batch(n): return Changed(lambda z: z - z.mean(0))
def lazy(n): return nn.Sequential(nn.Flatten(), nn.LazyLinear(n))
def half(n): return SmallCnn(n).half()
def none(): return SmallCnn(3)
def keyword(*, num_classes): return SmallCnn(num_classes)
def flag(pretrained=False, **kwargs): return flags(pretrained)
def flags(pretrained=False): return SmallCnn(3 if pretrained is False else 4)
def teacher(n): return Teacher(SmallCnn(n), InputRule())
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "users_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("users_nets", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("softmax", "outputs are probabilities, whose sum is 1; expected logits"),
        ("broken", "logits of a view of noise are not finite"),
        ("array", r"expected logits \(1, classes\) of a view, got ndarray"),
        ("several", r"expected logits \(1, classes\) of a view, got tuple"),
        ("chance", "change with the views beside it, or from call to call"),
        ("batch", "change with the views beside it, or from call to call"),
        ("lazy", "cannot run on 8 x 8 pixels: ValueError: Attempted to use an uninit"),
    ],
)
def test_a_network_whose_outputs_are_no_labels_is_refused(nets, name, message):
    with pytest.raises(UserInputError, match=f"E_TEACHER: teacher `users_nets:{name}`.*{message}"):
        load_named_teacher(f"users_nets:{name}", KEYS, 8)


@pytest.mark.parametrize("name", ["none", "keyword", "flag", "flags", "log_softmax"])
def test_factories_of_any_signature(nets, name, view):
    # A `pretrained` that is set to the number of classes would mean yes.
    assert load_named_teacher(f"users_nets:{name}", KEYS, 8)(view).shape == (4, 3)


def test_a_network_in_half_precision_is_computed_with_in_float32(nets, view):
    lines = []
    got = load_named_teacher("users_nets:half", KEYS, 8, say=lines.append)
    assert got(view).dtype == torch.float32
    assert lines[0] == "teacher users_nets:half: float16 computed with in float32"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("raise SystemExit(2)", "SystemExit: 2"),
        ("def net(:", "SyntaxError"),
        ("open('data/none')", "FileNotFoundError"),
    ],
)
def test_a_module_that_fails_when_it_is_imported_is_one_line(tmp_path, monkeypatch, code, shown):
    name = f"importing{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserInputError, match=f"E_OPTION: network `{name}:net` cannot be .*{shown}"):
        load_named_teacher(f"{name}:net", KEYS, 8)


def test_recorded_classes_are_not_overruled(folder, nets, view):
    other = ["grey", "rows", "columns"]
    file = next(folder.glob("*.safetensors"))
    for text in (str(folder), str(file), f"cnn={file}"):
        load_named_teacher(text, KEYS, 8, teacher_classes=KEYS)
        with pytest.raises(UserInputError, match=r"E_OPTION: .* records its own classes, which di"):
            load_named_teacher(text, KEYS, 8, teacher_classes=other)
    # A `Teacher` of the user's says its rule, but not what its outputs mean.
    torch.manual_seed(0)
    got = load_named_teacher("users_nets:teacher", KEYS, 8, teacher_classes=other)
    assert torch.equal(got(view), Teacher(got.network, got.rule)(view)[:, [1, 2, 0]])


@pytest.mark.parametrize("text", ["resnet18=pretrained", "torchvision:resnet18=IMAGENET1K_V1"])
def test_other_words_for_published_weights(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    message = r"E_OPTION: .*: no such file .* `torchvision:resnet18=pretrained`, which downloads"
    with pytest.raises(UserInputError, match=message):
        load_named_teacher(text, KEYS, 8)


def test_weights_that_cannot_be_downloaded_name_their_network(monkeypatch):
    def offline(*_args, **_kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    message = "E_HTTP: weights of `torchvision:resnet18` cannot be downloaded: .*no route"
    with pytest.raises(HelloIOError, match=message):
        load_named_teacher("torchvision:resnet18=pretrained", KEYS, 8)


def test_a_missing_file_stays_an_os_error():
    with pytest.raises(FileNotFoundError):
        load_named_teacher("cnn=none.safetensors", KEYS, 8)


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


def test_published_weights_are_asked_for_by_word(monkeypatch):
    import timm

    made = []

    def create(name, pretrained, **kwargs):
        made.append((name, pretrained, kwargs))
        network = build_student("cnn", 3, 8)
        network.pretrained_cfg = {
            "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6),
            "input_size": (3, 12, 12),
            "interpolation": "lanczos",
        }
        return network

    monkeypatch.setattr(timm, "create_model", create)
    teacher = load_named_teacher("timm:tiny=pretrained", KEYS, 8)
    assert made == [("tiny", True, {})]
    assert teacher.rule.mean == (0.1, 0.2, 0.3)
    assert teacher.rule.std == (0.4, 0.5, 0.6)
    assert teacher.rule.size == 12
    assert teacher.rule.text().endswith("(timm's data config, whose lanczos is taken as bicubic)")
