from __future__ import annotations

import math

import pytest
import torch
from builders import linear_teacher

from hellofmt.distillation.fidelity import fidelity, fidelity_table
from hellofmt.distillation.fit import FitSettings, fit_projector


def test_fidelity_of_a_teacher_with_itself_and_with_nothing(stripes, views):
    def teacher(batch):
        return torch.stack([batch[:, 0].mean((1, 2)), batch[:, 1, ::2].mean((1, 2))], 1) * 9

    def uniform(batch):
        return torch.zeros(len(batch), 2)

    same = fidelity(teacher, teacher, stripes(), views(), count=100, batch_size=32)
    assert (same.agreement, same.views) == (100.0, 128)
    assert same.kl == pytest.approx(0.0, abs=1e-9)
    other = fidelity(uniform, teacher, stripes(), views(), count=100, batch_size=32)
    assert other.kl > 1e-3
    assert other.kl < math.log(2)


def test_fewer_bytes_cost_fidelity(make_projector, stripes, views):
    projector = make_projector()
    fit_projector(
        projector,
        linear_teacher,
        stripes(),
        views(),
        FitSettings(steps=20, batch_size=16, learning_rate=5e-3),
    )
    rows = fidelity_table(projector, linear_teacher, stripes(), views(), count=256)
    assert [row.storage for row in rows] == ["float32", "float16", "bfloat16", "int8", "int4"]
    values = projector.trained_count()
    full, half, brain, byte, nibble = (row.size_bytes for row in rows)
    # Values alone, or with headers and compressed: near what the values need.
    assert full == pytest.approx(4 * values, rel=0.1)
    assert half == pytest.approx(2 * values, rel=0.15)
    assert brain == pytest.approx(2 * values, rel=0.25)
    assert nibble < byte < 0.9 * half
    truth = fidelity(projector, linear_teacher, stripes(), views(), count=256)
    assert rows[0].fidelity.kl == pytest.approx(truth.kl, rel=1e-3)
    assert abs(rows[4].fidelity.kl - truth.kl) > abs(rows[1].fidelity.kl - truth.kl)
