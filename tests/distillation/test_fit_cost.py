from __future__ import annotations

import pytest
from torch import nn

from hellofmt.distillation.fit import FitSettings
from hellofmt.distillation.fit_cost import fit_gflop


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
