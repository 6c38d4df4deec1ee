from __future__ import annotations

import pytest
import torch
from builders import linear_teacher
from torch import nn

from hellofmt.distillation.fit import FitSettings
from hellofmt.distillation.fit_cost import fit_gflop, predicted_seconds


def test_the_prediction_changes_nothing(make_projector, stripes, views):
    projector = make_projector()
    before = {name: p.detach().clone() for name, p in projector.named_parameters()}
    settings = FitSettings(steps=1000, batch_size=4)
    seconds = predicted_seconds(projector, linear_teacher, stripes(), views(), settings)
    assert 0.1 < seconds < 1000
    assert all(torch.equal(t, before[n]) for n, t in projector.named_parameters())
    assert all(p.grad is None for p in projector.parameters())


def test_work_is_proportional_to_steps_and_views(make_projector, stripes, views):
    layer = nn.Conv2d(3, 4, 3)

    def teacher(batch):
        return layer(batch).flatten(1)[:, :3]

    def fit(steps, batch_size, function=teacher):
        settings = FitSettings(steps=steps, batch_size=batch_size)
        return fit_gflop(make_projector(), function, 8, settings)

    one = fit(1, 4)
    assert fit(10, 4) == pytest.approx(10 * one)
    assert one < fit(1, 8) <= 2 * one
    alone = fit(1, 4, lambda batch: batch[:, :, 0, 0])
    assert one - alone == pytest.approx(4 * 2 * 36 * 4 * 27 / 1e9, rel=1e-4)
