from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hellofmt.runs.results import Result
from hellofmt.runs.stages import Stages


def test_a_stage_is_made_once_for_its_inputs(tmp_path):
    made, said = [], []

    def make():
        made.append(1)
        return Result({"x": np.array([len(made)])}, {"n": len(made)})

    def run(inputs):
        return Stages(tmp_path / "work", say=said.append).run("fit", inputs, make).facts["n"]

    assert [run([1]), run([1]), run([2]), run([1]), run([2])] == [1, 1, 2, 1, 2]
    assert len(said) == 3
    assert "fit: finished earlier, read from fit-" in said[0]
    alone = Stages(None)
    assert [alone.run("fit", [1], make).facts["n"] for _ in range(2)] == [3, 4]


def test_only_what_was_used_is_removed(tmp_path):
    root = tmp_path / "work"
    one, two = Stages(root), Stages(root)
    one.run("a", 1, lambda: Result({}, {}))
    two.run("b", 1, lambda: Result({}, {}))
    one.remove()
    assert [path.name[:2] for path in root.iterdir()] == ["b-"]
    two.remove()
    assert not root.exists()


def test_a_full_disk_leaves_finished_stages_and_nothing_half_written(tmp_path, monkeypatch):
    root = tmp_path / "work"
    work = Stages(root)
    work.run("a", 1, lambda: Result({"x": np.zeros(3)}, {}))
    before = {path.name: path.read_bytes() for path in root.iterdir()}

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        work.run("b", 1, lambda: Result({"x": np.zeros(3)}, {}))
    assert caught.value.filename == str(work.path("b", 1))
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
    assert Path(root).exists()
