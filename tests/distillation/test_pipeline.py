from __future__ import annotations

import errno
import os
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import builders
import numpy as np
import pytest
import torch
from msgspec.structs import replace as changed

from hellofmt.archive import ClassLine, open_archive, verify_archive
from hellofmt.archive.format.manifest import TextArch
from hellofmt.distillation import pipeline
from hellofmt.distillation.fit import FitSettings
from hellofmt.distillation.pipeline import ProjectorSettings, distill, split_validation
from hellofmt.distillation.refine import RefineSettings
from hellofmt.distillation.select import SelectSettings
from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.projector import seeded_base
from hellofmt.runs.results import read_result
from hellofmt.sources import ArrayImages
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
        "ipc": 1,
        "projector": ProjectorSettings(rank=2, start="stored"),
        "fit": FitSettings(steps=4, batch_size=8),
        "select": SelectSettings(1, 2, crops=2),
        "refine": RefineSettings(steps=2),
    }


@pytest.fixture
def make(arguments, tmp_path):
    def run(target="x.hello", **changes):
        return distill(target=tmp_path / target, **{**arguments, **changes})

    return run


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
    make(ipc=None)
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
            patched.setattr(pipeline, "Checkpoint", partial(pipeline.Checkpoint, every=1))

            def kill(done, _loss):
                if done == 2:
                    raise Killed

            changes["on_step"] = kill
        else:
            kill_at(patched, pipeline, where)
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
    assert steps("b", storage="int8", ipc=2, select=SelectSettings(2, 2, crops=2)) == 0
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
        ({"ipc": 21, "select": None}, UserInputError, "E_DATA: class `rows` has 20 candidates"),
        ({"select": None}, UserInputError, "E_OPTION: refining needs cells that were shrunk"),
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
    with pytest.raises(FileNotFoundError):
        make("none/x.hello", teacher=None)
    (tmp_path / "folder.hello").mkdir()
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*folder\.hello` is no regular file"):
        make("folder.hello", teacher=None, force=True)


def test_numbers_are_no_names(arguments, tiny_base):
    source = arguments["source"]
    for keys in (("0", "1", "2"), ("n01440764", "n01443537", "n01484850")):
        lines = tuple(ClassLine(key, (key,)) for key in keys)
        numbered = ArrayImages(source.pixels, source.labels, lines)
        message = f"E_DATA: class names are missing: all 3 are numbers such as `{keys[0]}`"
        with pytest.raises(UserInputError, match=message):
            ProjectorSettings(start="text").build(tiny_base, numbered)
        ProjectorSettings(start="stored").build(tiny_base, numbered)


@pytest.mark.parametrize(
    ("settings", "classes", "has_text", "start", "rank"),
    [
        # 64 (200 + 128) values are fewer than 200 * 128; for 100 classes they are not.
        ({}, 200, True, "text", 64),
        ({}, 100, True, "stored", None),
        ({}, 200, False, "stored", None),
        ({"head_rank": 3}, 100, True, "text", 3),
        ({"head_rank": 3}, 100, False, "stored", 3),
        ({"start": "text"}, 200, True, "text", None),
        ({"start": "stored", "head_rank": 3}, 200, True, "stored", 3),
    ],
)
def test_a_head_that_nobody_chose_is_the_smaller_one(settings, classes, has_text, start, rank):
    text = TextArch(context_length=8, vocab_size=49408, width=16, heads=2, layers=1)
    base = seeded_base(
        builders.vit(dim=128),
        builders.preprocess(),
        seed=0,
        text=text if has_text else None,
    )
    lines = tuple(ClassLine(f"k{i}", (f"name {chr(97 + i % 26)}",)) for i in range(classes))
    source = ArrayImages(np.zeros((classes, 8, 8, 3), np.uint8), np.arange(classes), lines)
    head = ProjectorSettings(rank=2, **settings).build(base, source).head
    assert ("text" if head.text_digest is not None else "stored") == start
    assert (None if head.delta is None else head.delta.a.shape[0]) == rank
    assert head.weight.requires_grad == (start == "stored" and rank is None)


def test_the_validation_part_is_cut_by_class(stripes):
    source = stripes(per_class=40)
    rest, held_out = split_validation(source)
    assert np.bincount(held_out.labels).tolist() == [2, 2, 2]
    assert len(rest) + len(held_out) == 120
    assert not {p.tobytes() for p in rest.pixels} & {p.tobytes() for p in held_out.pixels}
    few = stripes(per_class=9)
    assert split_validation(few) == (few, few)


def test_classes_of_one_name_keep_their_keys_and_are_said(stripes, tiny_base):
    names = [("n02012849", "crane"), ("n03126707", "crane"), ("n01440764", "tench")]
    source = replace(stripes(), classes=tuple(ClassLine(key, (name,)) for key, name in names))
    base = SimpleNamespace(has_text=True, embed_dim=32)
    (note,) = ProjectorSettings(start="text").notes(base, source)
    assert note == "classes that share a name start with equal rows of the head: `crane`"
    assert ProjectorSettings(start="text").notes(base, stripes()) == []
    assert ProjectorSettings(start="stored").notes(base, source) == []
    assert ProjectorSettings().notes(tiny_base, source) == []
