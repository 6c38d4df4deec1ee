from __future__ import annotations

import pytest
import torch

from hellofmt.archive import open_archive, verify_archive
from hellofmt.distillation.selection import SelectSettings
from hellofmt.distillation.settings import ProjectorSettings
from hellofmt.errors import HelloIOError, UserInputError


def test_an_archive_of_everything(make, arguments, tmp_path):
    report = make(evaluations=1, license="CC0-1.0", card="# Stripes")
    with open_archive(tmp_path / "x.hello", expect=report.id) as file:
        assert len(file) == 3
        assert [file.index.label[k] for k in range(3)] == [0, 1, 2]
        assert file.manifest.images.order == "value"
        assert file.manifest.dataset.sources == ["stripes"]
        assert (file.manifest.dataset.name, file.manifest.dataset.ipc) == ("stripes-ipc1", 1)
        assert file.manifest.dataset.license == "CC0-1.0"
        assert bytes(file.section("card")) == b"# Stripes"
        assert file.classes.keys == ["rows", "columns", "grey"]
    assert report.teacher_accuracy > 90
    assert verify_archive(tmp_path / "x.hello").images == 3


def test_a_label_function_alone(make, tmp_path):
    make(select=None)
    with open_archive(tmp_path / "x.hello") as file:
        assert len(file) == 0
        assert file.has_section("adapter")
        assert file.manifest.dataset.name == "stripes"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"select": SelectSettings(21)},
            UserInputError,
            "E_DATA: class `rows` has 20 candidates",
        ),
        (
            {"projector": ProjectorSettings(rank=80, start="stored")},
            UserInputError,
            "E_OPTION: rank 80 is larger than every adapted weight; expected at most 64",
        ),
        (
            {"projector": ProjectorSettings(rank=2, start="stored", head_rank=40)},
            UserInputError,
            "E_OPTION: head rank 40 is larger than the head of 3 classes and 32 features; .* 3",
        ),
        ({"projector": ProjectorSettings(start="text")}, UserInputError, "E_OPTION: .* no text to"),
        (
            {"projector": ProjectorSettings(start="text", prompts=("a {}", "a photo"))},
            UserInputError,
            "E_OPTION: prompt `a photo`: expected `{}` where the class name goes",
        ),
        ({"name": "caf\udce9"}, UserInputError, "E_DATA: .* a string holds a lone surrogate"),
        ({"card": "caf\udce9"}, UserInputError, "E_DATA: .*card"),
        ({"license": "x" * 5000}, UserInputError, "`dataset.license`: string of 5000 .*4096"),
        (
            {"teacher": lambda view: torch.full((len(view), 3), float("nan"))},
            UserInputError,
            "E_TEACHER: logits of the teacher are not finite for 60 of 60 real images",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_fit(make, tmp_path, changes, error, message):
    def never(_done, _loss):
        raise AssertionError

    with pytest.raises(error, match=message):
        make(on_step=never, **changes)
    assert list(tmp_path.iterdir()) == []


def test_the_target_is_looked_at_first(make, tmp_path):
    (tmp_path / "x.hello").write_bytes(b"mine")
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*x\.hello` exists; `force` replaces it"):
        make(teacher=None)
    assert (tmp_path / "x.hello").read_bytes() == b"mine"
    with pytest.raises(HelloIOError, match=r"E_TARGET: .*none is not a directory; expected an"):
        make("none/x.hello", teacher=None)
    (tmp_path / "folder.hello").mkdir()
    with pytest.raises(HelloIOError, match=r"E_TARGET: .*folder\.hello is not a regular file"):
        make("folder.hello", teacher=None, force=True)
