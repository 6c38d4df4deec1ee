from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hellofmt.distillation import stages
from hellofmt.distillation.fit import FitSettings
from hellofmt.distillation.stages import Result, Stages, digest_of, read_result, write_result
from hellofmt.errors import UserInputError


def test_a_digest_sees_every_part(views, stripes):
    base = ["x", 1, 1.0, None, True, {"a": 2}, FitSettings(), views(), np.zeros(3), torch.zeros(3)]
    first = digest_of(base)
    assert first == digest_of(list(base))
    others = ["y", 2, 1.5, 0, False, {"a": 3}, FitSettings(steps=9), views(16), np.zeros(4)]
    others.append(torch.ones(3))
    for place, other in enumerate(others):
        assert digest_of([*base[:place], other, *base[place + 1 :]]) != first
    assert digest_of(1) != digest_of(1.0)
    assert digest_of(np.zeros(2, np.int64)) != digest_of(np.zeros(2))
    assert digest_of(stripes()) == digest_of(stripes())
    assert digest_of(stripes()) != digest_of(stripes(seed=1))
    network = torch.nn.Linear(2, 2)
    before = digest_of(network)
    with torch.no_grad():
        network.bias += 1
    assert digest_of(network) != before
    with pytest.raises(TypeError, match="no digest of a function"):
        digest_of(len.__class__ and (lambda: 0))


def test_a_result_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"pixels": np.arange(12, dtype=np.uint8).reshape(2, 6), "x": np.array(1 / 3)}
    write_result(path, Result(tensors, {"accuracy": 0.1, "name": "ü"}))
    result = read_result(path)
    assert dict(result.facts) == {"accuracy": 0.1, "name": "ü"}
    for name, array in tensors.items():
        assert result.tensors[name].dtype == array.dtype
        assert np.array_equal(result.tensors[name], array)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserInputError, match=r"E_DATA: `.*` is damaged; delete it, and it is made"):
        read_result(path)


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

    monkeypatch.setattr(stages.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        work.run("b", 1, lambda: Result({"x": np.zeros(3)}, {}))
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
    assert Path(root).exists()
