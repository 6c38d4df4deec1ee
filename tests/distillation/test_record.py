"""What a distilled archive remembers, against what was asked for and measured."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import torch

from hellofmt.archive import UNSET, open_archive
from hellofmt.archive.format.digest import tensors_digest
from hellofmt.archive.format.record import Measured
from hellofmt.distillation.record import _loss
from hellofmt.teacher import Teacher, TeacherPool
from hellofmt.teacher.record import teacher_record


@pytest.fixture
def record_of(tmp_path):
    def read(name="x.hello"):
        with open_archive(tmp_path / name) as file:
            return file.record

    return read


def test_every_fact_of_a_distillation(make, arguments, record_of, tmp_path):
    report = make(
        command="hello distill stripes",
        seed=3,
        version="2.0.0",
        license_text="CC0",
        sources=("one", "two"),
        extras={"x_k": "v"},
    )
    record = record_of()
    with open_archive(tmp_path / "x.hello") as file:
        dataset = file.manifest.dataset
        assert (dataset.version, dataset.sources) == ("2.0.0", ["one", "two"])
        assert (file.section("license"), dict(file.extras)) == (b"CC0", {"x_k": "v"})
    (function,) = record.functions
    assert float(function.agreement) == pytest.approx(report.fidelity.agreement, abs=0.005)
    assert float(function.kl) == pytest.approx(report.fidelity.kl, rel=1e-3)
    assert float(function.measured.accuracy) == pytest.approx(report.projector_accuracy, abs=0.005)
    assert (function.loss, function.steps, function.batch_size) == ("kl", 4, 8)
    assert (function.rank, function.targets, function.storage) == (2, ["all"], "float16")
    assert function.parameters == report.trained
    assert (function.learning_rate, function.temperature) == ("0.003", "2.0")
    assert (function.hard_weight, function.head_rank) == (UNSET, UNSET)
    assert function.run.command == "hello distill stripes"
    assert function.run.seeds == {"split": 3, "projector": 0, "fit": 0, "select": 0}
    source = arguments["source"]
    assert msgspec.to_builtins(function.source) == {
        "classes": 3,
        "digest": f"sha256:{source.portable_digest()}",
        "images": 60,
        "name": "stripes",
        "per_class": [20, 20],
    }
    measured = function.teacher.measured
    assert float(measured.accuracy) == pytest.approx(report.teacher_accuracy, abs=0.005)
    assert (measured.images, measured.of) == (3, "held-out images")
    images = record.images
    assert (images.ipc, images.factor, images.crops, images.candidates) == (1, 2, 5, 300)
    assert (images.codec, images.chosen_by) == ("png", "lowest loss of the teacher")
    assert record.results is UNSET

    teacher = arguments["teacher"]
    (network,) = function.teacher.networks
    assert (network.network, network.step, network.origin) == ("cnn", 20, "train_teacher")
    assert network.trained.seeds == {"teacher": 0}
    assert network.trained_on.images == 60
    assert [float(x) for x in network.input.mean] == pytest.approx(teacher.rule.mean)
    lines = [
        (name, "F32", tuple(tensor.shape), tensor.numpy().astype("<f4").tobytes())
        for name, tensor in teacher.network.state_dict().items()
        if tensor.is_floating_point()
    ]
    assert network.digest == tensors_digest(lines)


def test_a_pool_a_module_and_a_function(arguments):
    teacher = arguments["teacher"]
    measured = Measured("50.0", 3, "held-out images")
    few = Teacher(teacher.network, teacher.rule, (0, 1, 2))
    pool = TeacherPool([teacher, TeacherPool([few])])
    one, other = teacher_record(pool, measured).networks
    assert one.digest == other.digest
    assert (one.chosen, other.chosen) == (UNSET, 3)
    (network,) = teacher_record(torch.nn.Linear(2, 2), measured).networks
    assert (network.origin, network.input) == ("a module of the caller", UNSET)
    assert teacher_record(lambda views: views, measured).networks is UNSET


def test_the_same_run_gives_the_same_bytes_and_no_name_of_the_machine(make, tmp_path):
    make("a.hello", select=None)
    make("b.hello", select=None)
    digests = {
        hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("a.hello", "b.hello")
    }
    assert len(digests) == 1
    with open_archive(tmp_path / "a.hello") as file:
        text = file.section("record").decode()
    assert "/" not in text


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e9])
def test_a_loss_that_is_no_number_is_absent(loss):
    assert _loss(loss) is UNSET


def test_losses_keep_four_digits():
    assert (_loss(0.0123456), _loss(12.34567), _loss(0.0)) == ("0.01235", "12.35", "0.0")
