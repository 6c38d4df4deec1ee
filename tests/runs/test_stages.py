from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hellofmt.errors import HelloIOError
from hellofmt.runs.handed import hand_folder
from hellofmt.runs.results import Result, write_result
from hellofmt.runs.stages import Stages


def test_a_stage_is_made_once_for_its_inputs(tmp_path):
    made, said = [], []

    def make(_path):
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
    one.run("a", 1, lambda _: Result({}, {}))
    two.run("b", 1, lambda _: Result({}, {}))
    one.remove()
    assert [path.name[:2] for path in root.iterdir()] == ["b-"]
    two.remove()
    assert not root.exists()


def test_a_full_disk_leaves_finished_stages_and_nothing_half_written(tmp_path, monkeypatch):
    root = tmp_path / "work"
    work = Stages(root)
    work.run("a", 1, lambda _: Result({"x": np.zeros(3)}, {}))
    before = {path.name: path.read_bytes() for path in root.iterdir()}

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        work.run("b", 1, lambda _: Result({"x": np.zeros(3)}, {}))
    assert caught.value.filename == str(work.path("b", 1))
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
    assert Path(root).exists()


def of_two_machines(folder, rank):
    """What a rank with a folder of its own gets of stages that one, the other or none has."""
    stages = Stages(folder / str(rank))
    finished = Result({"x": np.array([rank, -0.0], np.float32)}, {"of": rank})
    write_result(stages.path(("first", "second")[rank], 1), finished)
    got = []
    for name in ("first", "second", "new"):
        made = Result({"x": np.array([rank + 10.0]), "n": np.array(rank)}, {"of": rank + 10})
        result = stages.run(name, 1, lambda _, made=made: made)
        got.append((result.facts["of"], result.tensors["x"].tobytes(), len(result.tensors)))
    try:
        stages.run("bad", 1, lambda _: Result({}, {}))
    except HelloIOError as error:
        got.append(error.code)
    return got


def test_machines_with_disks_of_their_own_agree(tmp_path, in_ranks, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in "01":
        (tmp_path / name).mkdir()

    def full(path, result):
        if path.name.startswith("bad"):
            raise HelloIOError.make("E_NOSPACE", "the disk is full")
        write_result(path, result)

    monkeypatch.setattr("hellofmt.runs.stages.write_result", full)
    first, second = in_ranks(2, lambda rank: of_two_machines(tmp_path, rank))
    assert first == second
    assert first == [
        (0, np.array([0, -0.0], np.float32).tobytes(), 1),
        (1, np.array([1, -0.0], np.float32).tobytes(), 1),
        (10, np.array([10.0]).tobytes(), 2),
        "E_NOSPACE",
    ]
    # Rank 0 alone keeps what was made.
    names = [sorted(path.name.split("-")[0] for path in (tmp_path / n).iterdir()) for n in "01"]
    assert names == [["first", "new"], ["second"]]


def test_a_finished_folder_is_copied_to_every_machine(tmp_path, in_ranks, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    (tmp_path / "1").mkdir()
    for name, data in {"a": b"1", "z": b"2", "last": b"3"}.items():
        (tmp_path / "1" / name).write_bytes(data)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a").write_bytes(b"half")
    in_ranks(2, lambda rank: hand_folder(tmp_path / str(rank), "last"))
    for name in "01":
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert files == {"a": b"1", "z": b"2", "last": b"3"}
    hand_folder(tmp_path / "none", "last")
    assert not (tmp_path / "none").exists()
