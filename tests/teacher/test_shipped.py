"""Teachers as label sources on disk: bytes, values, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.ledger import model_bytes
from hellofmt.loading import HelloDataset, StoredLabels, write_labels
from hellofmt.student import build_student, recipe, train_from_archive
from hellofmt.teacher import InputRule, Teacher, label_source, read_teacher, write_teacher
from hellofmt.teacher.shipped import TEACHER_STORAGES

KEYS = ["rows", "columns", "grey"]


@pytest.fixture
def network():
    """A `cnn` whose running statistics are not those of a fresh one."""
    made = build_student("cnn", 3, 8, seed=5)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        made(torch.randn((16, 3, 8, 8), generator=random))
    return made.eval()


@pytest.fixture
def written(tmp_path, network, views):
    def write(storage="float32", name="teacher", **options):
        given = {"views": views(), "classes": KEYS, **options}
        size = write_teacher(tmp_path / name, "cnn", network, storage=storage, **given)
        return tmp_path / name, size

    return write


def pictures():
    return torch.rand((7, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def logits_of(network, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.2)):
    """What the network says of views normalised by hand, in float64."""
    shape = (3, 1, 1)
    images = (pictures().double() - torch.tensor(mean).double().view(shape)) / torch.tensor(
        std
    ).double().view(shape)
    network = network.double()
    try:
        with torch.no_grad():
            return network(images)
    finally:
        network.float()


def test_float32_reads_back_to_the_bit(written, network, views):
    path, _ = written()
    got = read_teacher(path, classes=KEYS)
    assert torch.equal(got(pictures()), Teacher(network, InputRule.of_views(views()))(pictures()))
    assert (got(pictures()).double() - logits_of(network)).abs().max() < 1e-5
    assert not got.training
    assert not any(p.requires_grad for p in got.parameters())
    assert not got.train().network.training


def test_int8_values_are_the_documented_ones(written, network):
    path, _ = written("int8")
    found = load_file(path / "teacher.safetensors")
    state = network.state_dict()
    expected = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            assert name not in found
            continue
        if tensor.ndim < 2:
            assert found[name].dtype == np.float16
            expected[name] = found[name].astype(np.float64)
            assert np.allclose(expected[name], tensor.numpy(), rtol=2**-11, atol=1e-7)
            continue
        assert found[name].dtype == np.int8
        assert found[name].shape == tuple(tensor.shape)
        scale = found[name + "::scale"].astype(np.float64)
        expected[name] = found[name] * scale.reshape(-1, *[1] * (tensor.ndim - 1))
        rows = tensor.reshape(tensor.shape[0], -1).numpy()
        assert np.allclose(scale, np.abs(rows).max(axis=1) / 127, rtol=1e-6)
        assert np.abs(expected[name].reshape(rows.shape) - rows).max(axis=1).max() <= (
            scale.max() / 2 * 1.001
        )
    got = read_teacher(path)
    for name, value in got.network.state_dict().items():
        if name in expected:
            assert np.allclose(value.numpy(), expected[name], rtol=1e-6)
    again = build_student("cnn", 3, 8)
    again.load_state_dict({n: torch.from_numpy(v) for n, v in expected.items()}, strict=False)
    assert (got(pictures()).double() - logits_of(again.eval())).abs().max() < 1e-5
    # Not the numbers themselves: the test above would pass for float32 values as well.
    difference = (got(pictures()).double() - logits_of(network)).abs().max()
    assert 1e-5 < difference < 0.1


@pytest.mark.parametrize("storage", TEACHER_STORAGES)
def test_bytes_are_the_files_and_the_ledgers(written, network, storage):
    path, size = written(storage)
    files = sorted(path.iterdir())
    assert [file.name for file in files] == ["labels.json", "teacher.safetensors"]
    assert size == sum(file.stat().st_size for file in files)
    data = (path / "teacher.safetensors").read_bytes()
    payload = len(data) - 8 - int.from_bytes(data[:8], "little")
    tensors = [t for t in network.state_dict().values() if t.is_floating_point()]
    values = sum(t.numel() for t in tensors)
    if storage != "int8":
        assert payload == model_bytes(values, storage)
        return
    matrices = [t for t in tensors if t.ndim >= 2]
    expected = sum(t.numel() + 4 * len(t) for t in matrices)
    expected += model_bytes(sum(t.numel() for t in tensors if t.ndim < 2), "float16")
    assert payload == expected
    assert payload < 1.1 * model_bytes(values, "int8")


def test_the_network_that_is_written_stays_as_it_was(written, network):
    network.train()
    written("int8")
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert network.state_dict()["features.0.weight"].is_contiguous()


def test_a_teachers_own_normalisation_is_kept(tmp_path, network, views):
    rule = InputRule((0.125, 0.25, 0.5), (0.5, 0.25, 0.125), size=8, interpolation="bicubic")
    teacher = Teacher(network, rule)
    write_teacher(tmp_path / "own", "cnn", teacher, views=views(), classes=KEYS)
    got = read_teacher(tmp_path / "own")
    assert torch.equal(got(pictures()), teacher(pictures()))
    assert got.rule.interpolation == "bicubic"
    truth = logits_of(network, mean=(0.125, 0.25, 0.5), std=(0.5, 0.25, 0.125))
    assert (got(pictures()).double() - truth).abs().max() < 1e-5


def test_a_network_of_torchvision_with_integers(tmp_path, views):
    """The size decides the stem; relative positions and counters are made anew."""
    network = build_student("resnet18-cifar", 4, 32, seed=1).eval()
    write_teacher(
        tmp_path / "r",
        "resnet18-cifar",
        network,
        views=views(32),
        classes=list("abcd"),
        storage="int8",
    )
    got = read_teacher(tmp_path / "r")
    with torch.no_grad():
        images = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        truth = Teacher(network, InputRule.of_views(views(32)))(images)
        assert (got(images) - truth).abs().max() < 0.05 * truth.abs().max()


def test_a_source_is_what_lies_there(written, archive, tmp_path):
    path, _ = written()
    assert isinstance(label_source(path, classes=KEYS), Teacher)
    write_labels(HelloDataset(archive), tmp_path / "stored", epochs=1, batch_size=6)
    found = label_source(tmp_path / "stored", classes=KEYS)
    assert isinstance(found, StoredLabels)
    assert found.form == "safetensors"
    with pytest.raises(
        UserInputError, match=r"E_DATA: labels `.*teacher\.safetensors`; expected a"
    ):
        label_source(path / "teacher.safetensors")
    with pytest.raises(FileNotFoundError, match=r"labels\.json"):
        label_source(tmp_path / "nothing")
    with pytest.raises(UserInputError, match="a teacher, which labels online; expected stored"):
        StoredLabels(path)


def test_stored_labels_of_a_teacher_train_as_the_teacher_does(written, archive, tmp_path):
    """One student, same views and steps: from the file, and from labels kept of it."""
    path, _ = written("int8")
    teacher = label_source(path, classes=KEYS)
    dataset = HelloDataset(archive, seed=2)
    write_labels(dataset, tmp_path / "fkd", epochs=4, form="fkd", label_function=teacher)
    states = []
    plan = replace(recipe("kl"), batch_size=6)
    for options in ({"label_function": teacher}, {"stored": tmp_path / "fkd"}, {}):
        student = build_student("cnn", 3, 8, seed=3)
        train_from_archive(student, archive, plan, steps=3, seed=2, **options)
        states.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    moved = torch.cat(
        [p.detach().flatten() for p in build_student("cnn", 3, 8, seed=3).parameters()]
    )
    step = (states[0] - moved).abs().mean()
    assert (states[0] - states[1]).abs().mean() < 0.1 * step
    assert (states[0] - states[2]).abs().mean() > 0.3 * step


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"storage": "int4"}, "E_OPTION: `storage`; expected float32 or float16 or int8, got int4"),
        ({"classes": ["a", "b"]}, "E_TEACHER: the teacher is not a `cnn` for 2 classes and 8 pix"),
    ],
)
def test_what_cannot_be_written_is_refused(written, tmp_path, options, expected):
    with pytest.raises(UserInputError, match=expected):
        written(**options)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    ("storage", "name", "value"),
    [("float16", "head.weight", 1e6), ("int8", "head.weight", np.inf), ("int8", "head.bias", 1e6)],
)
def test_values_that_a_storage_cannot_hold_are_refused(written, network, storage, name, value):
    with torch.no_grad():
        network.get_parameter(name).fill_(value)
    with pytest.raises(UserInputError, match=f"E_TEACHER: `{name}` of the teacher has values that"):
        written(storage)


def test_an_unknown_network_and_an_existing_directory_are_refused(
    written, tmp_path, network, views
):
    with pytest.raises(UserInputError, match="E_OPTION: unknown network `os:system`"):
        write_teacher(tmp_path / "x", "os:system", network, views=views(), classes=KEYS)
    path, _ = written()
    with pytest.raises(HelloIOError, match="E_TARGET"):
        written()
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"form": "topk"}, r"labels\.json`: Invalid enum value 'topk' - at `\$\.form`"),
        ({"storage": "int4"}, r"Invalid enum value 'int4' - at `\$\.storage`"),
        ({"network": 3}, r"Expected `str`, got `int` - at `\$\.network`"),
        ({"network": "mine:factory"}, "E_OPTION: unknown network `mine:factory`"),
        ({"classes": -1}, r"Expected `int` >= 1 - at `\$\.classes`"),
        ({"size": True}, r"Expected `int`, got `bool` - at `\$\.size`"),
        (
            {"network": "convnet3", "size": 4},
            "E_OPTION: student `convnet3` cannot take 3 classes of 4 px",
        ),
        ({"mean": [0.5, 0.5]}, r"Expected `array` of length 3 - at `\$\.mean`"),
        ({"mean": ["0.5", "0.5", "x"]}, r"Expected `float`, got `str` - at `\$\.mean"),
        ({"mean": ["0.5", "0.5", "nan"]}, "expected 3 means, 3 stds > 0"),
        ({"std": ["0.5", "0.5", "0.0"]}, "expected 3 means, 3 stds > 0"),
        ({"classes": 4}, r"tensor `head.bias`; expected float32 \(4,\), got float32 \(3,\)"),
        ({"network": "resnet18-cifar"}, r"tensor `bn1.bias`; expected float32 \(64,\), got none"),
        ({"storage": "float16"}, r"expected float16 \(32,\), got float32 \(32,\)"),
    ],
)
def test_facts_that_do_not_hold_are_refused(written, change, expected):
    path, _ = written()
    facts = json.loads((path / "labels.json").read_text())
    (path / "labels.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(UserInputError, match=expected):
        read_teacher(path)


def test_damaged_files_are_refused(written):
    path, _ = written()
    tensors = path / "teacher.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-3])
    with pytest.raises(UserInputError, match=r"E_TEACHER: teacher .*: not a safetensors file"):
        read_teacher(path)
    tensors.write_bytes(whole)
    save_file({**load_file(tensors), "more": np.zeros(2, np.float32)}, tensors)
    with pytest.raises(UserInputError, match=r"tensor `more`; expected none, got float32 \(2,\)"):
        read_teacher(path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError):
        read_teacher(path)
    (path / "labels.json").write_text("{")
    with pytest.raises(UserInputError, match=r"labels\.json`: Input data was truncated"):
        read_teacher(path)
    with pytest.raises(UserInputError, match=r"E_DATA: .*no labels of schema"):
        label_source(path)


def test_classes_of_another_data_set_are_refused(written):
    path, _ = written()
    with pytest.raises(UserInputError, match="expected the data set's 3, got the same number in"):
        read_teacher(path, classes=KEYS[::-1])
    with pytest.raises(UserInputError, match="expected the data set's 2, got 3"):
        label_source(path, classes=KEYS[:2])
