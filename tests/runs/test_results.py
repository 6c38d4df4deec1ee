from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.archive import default_views
from hellofmt.errors import UserInputError
from hellofmt.runs.results import Result, digest_of, read_result, write_result
from hellofmt.student.recipes import Recipe


def test_a_digest_sees_every_part():
    base = [
        "x",
        1,
        1.0,
        None,
        True,
        {"a": 2},
        Recipe("a", "ce"),
        default_views(8),
        np.zeros(3),
        torch.zeros(3),
    ]
    first = digest_of(base)
    assert first == digest_of(list(base))
    others = [
        "y",
        2,
        1.5,
        0,
        False,
        {"a": 3},
        Recipe("a", "ce", epochs=9),
        default_views(16),
        np.zeros(4),
    ]
    others += [np.zeros(4), torch.ones(3)]
    for place, other in enumerate(others):
        assert digest_of([*base[:place], other, *base[place + 1 :]]) != first
    assert digest_of(1) != digest_of(1.0)
    assert digest_of(np.zeros(2, np.int64)) != digest_of(np.zeros(2))
    assert digest_of(np.eye(3)) == digest_of(np.eye(3))
    assert digest_of(np.eye(3)) != digest_of(np.eye(3)[::-1])
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
    with pytest.raises(UserInputError, match=r"E_DATA: `.*` is damaged; delete it, and it will"):
        read_result(path)
