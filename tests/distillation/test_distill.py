from __future__ import annotations

import dataclasses
import doctest
import errno
import os
from functools import partial

import builders
import pytest
import torch
from msgspec.structs import replace as changed
from PIL import Image

from hellofmt.archive import open_archive, verify_archive
from hellofmt.distillation import archive_of, stage_calls
from hellofmt.distillation.distill import distill
from hellofmt.distillation.fit import FitSettings
from hellofmt.distillation.refine import RefineSettings
from hellofmt.distillation.select import SelectSettings
from hellofmt.distillation.settings import DistillSettings, FitHooks, ProjectorSettings
from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.runs.results import read_result
from hellofmt.teacher import train_teacher


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def arguments(cache, stripes, views, tiny_base):
    source = stripes(per_class=20)
    if not cache:
        cache["teacher"] = train_teacher(source, views(), steps=20, batch_size=24)
    return {
        "source": source,
        "teacher": cache["teacher"],
        "base": tiny_base,
        "views": views(),
    }


SETTINGS = {
    "projector": ProjectorSettings(rank=2, start="stored"),
    "fit": FitSettings(steps=4, batch_size=8),
    "select": SelectSettings(1, 2, crops=2),
    "refine": RefineSettings(steps=2),
}


@pytest.fixture
def make(arguments, tmp_path):
    """``distill`` with changes of any setting, hook or argument by its name."""

    def run(target="x.hello", **changes):
        def taken(kind):
            return {name: changes.pop(name) for name in list(changes) if name in fields_of(kind)}

        settings = DistillSettings(**{**SETTINGS, **taken(DistillSettings)})
        hooks = FitHooks(**taken(FitHooks))
        return distill(
            target=tmp_path / target, settings=settings, hooks=hooks, **{**arguments, **changes}
        )

    return run


def fields_of(kind):
    return {field.name for field in dataclasses.fields(kind)}


def names(folder):
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_an_archive_of_everything(make, arguments, tmp_path):
    report = make(evaluations=1)
    with open_archive(tmp_path / "x.hello", expect=report.id) as file:
        assert len(file) == 3
        assert [file.index.label[k] for k in range(3)] == [0, 1, 2]
        assert file.manifest.dataset.sources == ["stripes"]
        assert (file.manifest.dataset.name, file.manifest.dataset.ipc) == ("stripes-ipc1", 1)
        assert file.classes.keys == ["rows", "columns", "grey"]
    assert report.teacher_accuracy > 90
    assert report.refined[1] <= report.refined[0]
    assert verify_archive(tmp_path / "x.hello").images == 3


def test_a_label_function_alone(make, tmp_path):
    make(select=None, refine=None)
    with open_archive(tmp_path / "x.hello") as file:
        assert len(file) == 0
        assert file.has_section("adapter")
        assert file.manifest.dataset.name == "stripes"


def kill_at(monkeypatch, module, name):
    def killed(*_args, **_kwargs):
        raise Killed

    monkeypatch.setattr(module, name, killed)


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("fit_projector", []),
        ("step", ["state"]),
        ("select_images", ["fit"]),
        ("refine_images", ["fit", "select"]),
        ("write_archive", ["fit", "refine", "select"]),
    ],
)
def test_killed_anywhere_the_rerun_gives_the_same_file(make, tmp_path, monkeypatch, where, left):
    make("whole.hello")
    work = tmp_path / "work"
    with monkeypatch.context() as patched:
        changes = {}
        if where == "step":
            # Every step keeps its state; the one that is killed in its report is taken again.
            patched.setattr(stage_calls, "Checkpoint", partial(stage_calls.Checkpoint, every=1))

            def kill(done, _loss):
                if done == 2:
                    raise Killed

            changes["on_step"] = kill
        else:
            kill_at(patched, archive_of if where == "write_archive" else stage_calls, where)
        with pytest.raises(Killed):
            make(work=work, **changes)
    assert (names(work) if work.exists() else []) == left
    assert not (tmp_path / "x.hello").exists()
    seen = []
    make(work=work, on_step=lambda done, _loss: seen.append(done))
    assert seen == {"fit_projector": [1, 2, 3, 4], "step": [2, 3, 4]}.get(where, [])
    assert (tmp_path / "x.hello").read_bytes() == (tmp_path / "whole.hello").read_bytes()
    assert names(work) == ["fit", "refine", "select"]


def test_other_inputs_are_other_stages(make, arguments, tmp_path, stripes, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    work = tmp_path / "work"

    def steps(target, **changes):
        seen = []
        make(target, work=work, on_step=lambda done, _loss: seen.append(done), **changes)
        return len(seen)

    assert steps("a") == 4
    # Neither images nor storage touch the fit.
    assert steps("b", storage="int8", select=SelectSettings(2, 2, crops=2)) == 0
    # What the device decided counts, not that it did.
    assert steps("b2", fit=FitSettings(steps=4, batch_size=8)) == 0
    assert steps("c", fit=FitSettings(steps=3, batch_size=8)) == 3
    assert steps("d", views=changed(arguments["views"], flip="0.5")) == 4
    assert steps("e", source=stripes(per_class=20, seed=9)) == 4
    assert len(names(work)) == 4 + 5 + 4


def test_a_full_disk_keeps_what_is_finished(make, tmp_path, monkeypatch):
    work = tmp_path / "work"
    real = os.fsync

    def full(descriptor):
        if names(work) and any(n == "fit" for n in names(work)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            make(work=work)
    assert names(work) == ["fit"]
    assert not (tmp_path / "x.hello").exists()
    for path in work.iterdir():
        read_result(path)
    make(work=work)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"select": SelectSettings(21), "refine": None},
            UserInputError,
            "E_DATA: class `rows` has 20 candidates",
        ),
        (
            {"select": SelectSettings(1)},
            UserInputError,
            "E_OPTION: refining needs cells that were shrunk",
        ),
        ({"select": None}, UserInputError, "E_OPTION: refining needs chosen images"),
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
        ({"license_name": "x" * 5000}, UserInputError, "`dataset.license`: expected .*4096"),
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


def test_the_example_runs(tmp_path, monkeypatch):
    source = builders.stripes(20, size=16)
    for row, (pixels, label) in enumerate(zip(*source, strict=True)):
        folder = tmp_path / "photos" / builders.STRIPES[label].key
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    builders.save_clip(tmp_path / "clip", 16)
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder().find(distill, "distill", globs={})
    assert len(example.examples) > 10
    said = []
    doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(example, out=said.append)
    assert said == []
