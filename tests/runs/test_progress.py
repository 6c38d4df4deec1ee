"""Rows that are kept on the way: made once, whatever is killed and whoever goes on."""

from __future__ import annotations

import numpy as np
import pytest

from hellofmt.errors import UserInputError
from hellofmt.runs.progress import Progress, remove_parts


def fill(path, stop=99):
    """Fill rows 0..10 with their squares, in units of 3; return the rows of the units made here."""
    arrays = {"x": np.zeros((11, 2), np.int64)}
    progress, made = Progress(arrays, 3, path), []
    for unit in progress.filled():
        if len(made) == stop:
            raise InterruptedError
        arrays["x"][unit] = np.arange(11)[unit, None] ** 2
        made.append(unit.start)
    return progress.whole()["x"], made


TRUTH = np.stack([np.arange(11) ** 2] * 2, axis=1)


def test_units_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("hellofmt.runs.progress._SECONDS", 0.0)
    path = tmp_path / "work" / "select-1.safetensors"
    with pytest.raises(InterruptedError):
        fill(path, stop=2)
    rows, made = fill(path)
    assert np.array_equal(rows, TRUTH)
    assert made == [6, 9]
    # Another stage does not take them, and nothing is kept without a path.
    assert fill(path.with_name("select-2.safetensors"))[1] == [0, 3, 6, 9]
    assert fill(None)[1] == [0, 3, 6, 9]
    remove_parts(path)
    assert not list(path.parent.glob("select-1*"))


def test_processes_of_another_number_go_on(tmp_path, monkeypatch, in_ranks):
    monkeypatch.setattr("hellofmt.runs.progress._SECONDS", 0.0)
    path = tmp_path / "check-1.safetensors"
    with pytest.raises(InterruptedError):
        fill(path, stop=1)
    (rows, first), (_, second) = in_ranks(2, lambda _: fill(path))
    assert np.array_equal(rows, TRUTH)
    assert [first, second] == [[3], [6, 9]]


def test_parts_on_the_disks_of_two_machines_count_once(tmp_path, monkeypatch, in_ranks):
    monkeypatch.setattr("hellofmt.runs.progress._SECONDS", 0.0)
    paths = [tmp_path / name / "check-1.safetensors" for name in "ab"]
    for path, stop in zip(paths, (1, 2), strict=True):
        with pytest.raises(InterruptedError):
            fill(path, stop=stop)
    (rows, first), (others, second) = in_ranks(2, lambda rank: fill(paths[rank]))
    assert np.array_equal(rows, TRUTH)
    assert np.array_equal(others, TRUTH)
    assert [first, second] == [[6], [9]]


def test_a_damaged_part_is_named(tmp_path):
    (tmp_path / "a-1.part-0").write_bytes(b"x")
    with pytest.raises(UserInputError, match=r"E_DATA: `.*a-1.part-0` is damaged; delete it"):
        fill(tmp_path / "a-1.safetensors")
