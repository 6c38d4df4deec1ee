from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hellofmt.student.curve import Curve, Point
from hellofmt.student.recipes import recipe

PLAN = replace(recipe("rded"), learning_rate=2e-3)


def filled(curve, losses, first=0, marks=()):
    for step, loss in enumerate(losses[first:], first + 1):
        curve.add(step, torch.tensor(loss), 10.0 * step if step in marks else None)
    return curve


def test_a_point_is_the_mean_since_the_one_before():
    losses = np.random.default_rng(0).random(1000).tolist()
    curve = filled(Curve(PLAN, 1000), losses, marks={7, 1000})
    # Every fifth step, and where it was measured.
    assert [p.step for p in curve.points] == sorted({*range(5, 1001, 5), 7})
    by_step = {p.step: p for p in curve.points}
    assert by_step[5].loss == pytest.approx(np.mean(losses[:5]), rel=1e-6)
    assert by_step[7].loss == pytest.approx(np.mean(losses[5:7]), rel=1e-6)
    assert by_step[10].loss == pytest.approx(np.mean(losses[7:10]), rel=1e-6)
    assert by_step[10].learning_rate == 2e-3 * PLAN.rate(9, 1000)
    assert [(p.step, p.accuracy) for p in curve.measured] == [(7, 70.0), (1000, 10_000.0)]


def test_last_and_best_are_apart():
    curve = Curve(PLAN, 4)
    for step, accuracy in enumerate([10.0, 30.0, 30.0, 20.0], 1):
        assert curve.add(step, torch.tensor(1.0), accuracy) == Point(
            step, 1.0, 2e-3 * PLAN.rate(step - 1, 4), accuracy
        )
    assert curve.last() == 20.0
    assert curve.best() == (30.0, 2)


def test_nothing_measured():
    curve = filled(Curve(PLAN, 3), [1.0, 2.0, 3.0])
    for ask in (curve.last, curve.best):
        with pytest.raises(ValueError, match="curve: expected at least one measurement, got none"):
            ask()


def test_a_restored_curve_goes_on_as_if_nothing_had_happened():
    losses = np.random.default_rng(1).random(900).astype(np.float32).tolist()
    whole = filled(Curve(PLAN, 900), losses, marks={450, 900})
    half = filled(Curve(PLAN, 900), losses[:502], marks={450, 900})
    half.seconds = 2.5
    again = Curve(PLAN, 900)
    again.restore(json.loads(json.dumps(half.facts())))
    assert again.seconds == 2.5
    filled(again, losses, first=502, marks={900})
    assert again.points == whole.points
