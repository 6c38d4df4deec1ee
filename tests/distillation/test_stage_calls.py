"""Stages of a distillation in a work folder: kept, read again, and never those of other inputs."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from functools import partial

import builders
import pytest
import torch
from msgspec.structs import replace as changed

from hellofmt.distillation import archive_of, stage_calls
from hellofmt.distillation.fit import FitSettings
from hellofmt.distillation.selection import SelectSettings
from hellofmt.runs.results import read_result
from hellofmt.runs.stages import Stages


class Killed(BaseException):
    pass


def names(folder):
    parts = (re.sub(r"-[0-9a-f]{20}", "", path.name) for path in folder.iterdir())
    return sorted(name.rpartition(".safetensors")[0] or name.rpartition("-")[0] for name in parts)


def kill_at(monkeypatch, module, name):
    def killed(*_args, **_kwargs):
        raise Killed

    monkeypatch.setattr(module, name, killed)


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("fit_projector", []),
        # The state of a fit is a part beside its result.
        ("step", ["fit.part"]),
        ("select_images", ["fit"]),
        ("write_archive", ["fit", "select"]),
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
    assert names(work) == ["fit", "select"]


def test_other_inputs_are_other_stages(make, arguments, tmp_path, stripes):
    work = tmp_path / "work"

    def steps(target, **changes):
        seen = []
        make(target, work=work, on_step=lambda done, _loss: seen.append(done), **changes)
        return len(seen)

    assert steps("a") == 4
    # Neither images nor storage touch the fit.
    assert steps("b", storage="int8", select=SelectSettings(2, 2, "rded")) == 0
    assert steps("c", fit=FitSettings(steps=3, batch_size=8)) == 3
    assert steps("d", views=changed(arguments["views"], flip="0.5")) == 4
    assert steps("e", source=stripes(per_class=20, seed=9)) == 4
    # A choice by the teacher outlives the fit, one by the label function does not.
    assert steps("f", select=SelectSettings(2)) == 0
    assert steps("g", select=SelectSettings(2), fit=FitSettings(steps=3, batch_size=8)) == 0
    assert names(work) == 4 * ["fit"] + 6 * ["select"]


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


def test_text_rows_are_kept_in_the_work_folder(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_calls, "_WORTH_KEEPING", 0)
    asked = []

    def texts(lines):
        asked.append(list(lines))
        return torch.eye(len(lines), 32)

    def rows():
        base = replace(builders.tiny_base(dim=32), texts=texts, text_digest="sha256:1")
        stage_calls.keep_text_rows(base, stripes(), ["a {}."], Stages(tmp_path / "work"))
        return base.text_rows([line.names[0] for line in stripes().classes], ["a {}."])

    assert torch.equal(rows(), rows())
    assert asked == [["a rows.", "a columns.", "a grey."]]


def test_a_long_check_is_read_and_judged_again(make, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_calls, "_WORTH_KEEPING", 0)
    work = tmp_path / "work"
    make("a", work=work)
    # Of the source, for the order of the classes, and of the few that are held out.
    assert names(work) == ["check", "check-held-out", "fit", "select"]
    kill_at(monkeypatch, stage_calls, "predictions")
    make("b", work=work, select=SelectSettings(2, 2, "rded"))
    # Another teacher is asked anew.
    other = arguments["teacher"].network
    with pytest.raises(Killed):
        make("c", work=work, teacher=other)


def test_the_teacher_is_checked_and_scores_in_the_chosen_precision(make, monkeypatch):
    seen = {}

    def watch(name):
        real = getattr(stage_calls, name)

        def watched(*given, **named):
            seen[name] = torch.is_autocast_enabled("cpu")
            return real(*given, **named)

        monkeypatch.setattr(stage_calls, name, watched)

    names = ("predictions", "select_images", "fit_projector")
    for name in names:
        watch(name)
    make("x.hello", fit=FitSettings(steps=1, batch_size=8, bfloat16=True))
    # A fit knows its own precision, and measures in float32.
    assert [seen[name] for name in names] == [True, True, False]
    make("y.hello", fit=FitSettings(steps=1, batch_size=8))
    assert not any(seen.values())
