from __future__ import annotations

import math
from itertools import repeat

import pytest
import torch

from hellofmt.errors import UserInputError
from hellofmt.runs.loop import descend
from hellofmt.runs.resume import Checkpoint, State
from hellofmt.runs.schedule import cosine


def test_cosine_falls_to_zero_or_to_half():
    assert [cosine(step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert cosine(50, 100, span=math.pi / 2) == pytest.approx(0.8536, abs=1e-4)
    assert cosine(100, 100, span=math.pi / 2) == pytest.approx(0.5, abs=1e-12)


def test_warmup_rises_to_the_full_rate():
    rates = [cosine(step, 40, warmup=0.1) for step in range(6)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] < 1.0


def test_the_schedule_is_that_of_torch():
    # An independent reference: torch's own schedulers, chained.
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / 5, 1.0, total_iters=4)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 36)
    both = torch.optim.lr_scheduler.SequentialLR(optimiser, [rise, fall], [4])
    for step in range(40):
        expected = both.get_last_lr()[0]
        assert cosine(step, 40, warmup=0.1) == pytest.approx(expected, abs=1e-6)
        optimiser.step()
        both.step()


def quadratic(**options):
    """x after steps on x**2 from 1, and what was reported."""
    x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([x], lr=0.25)
    seen = []
    options = {"steps": 4, "on_step": lambda done, loss: seen.append((done, float(loss)))} | options
    descend(optimiser, repeat(None), lambda _: (x**2).sum(), **options)
    return float(x.detach()), seen


def test_steps_follow_the_gradient_and_the_schedule():
    # x <- x - 0.25 * rate * 2 x
    assert quadratic() == (0.5**4, [(k + 1, 0.25**k) for k in range(4)])
    expected = math.prod(1 - 0.5 * cosine(step, 4) for step in range(4))
    assert quadratic(rate=cosine)[0] == pytest.approx(expected, rel=1e-12)
    assert quadratic(start=3)[1] == [(4, 1.0)]
    # Clipped to 1, the gradient of 2 moves x by a quarter.
    assert quadratic(steps=1, clip=1.0)[0] == pytest.approx(0.75, abs=1e-6)


def test_what_cannot_go_on_is_refused():
    x = torch.nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([x], lr=1.0)
    with pytest.raises(ValueError, match="batches: expected 3, got 2"):
        descend(optimiser, iter([1, 2]), lambda k: (k * x).sum(), steps=3)
    with pytest.raises(UserInputError, match=r"expected a finite number, got nan at step 0; a low"):
        descend(optimiser, repeat(math.nan), lambda k: (k * x).sum(), steps=1)


def test_no_state_is_kept_of_a_loss_that_is_not_finite(tmp_path):
    x = torch.nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([x], lr=0.1)
    state = State(Checkpoint(tmp_path / "s", "run", every=2), {"x": x})
    losses = iter([1.0, 1.0, 1.0, math.inf])
    with pytest.raises(UserInputError, match="got inf at step 3"):
        descend(optimiser, losses, lambda k: (k * x).sum(), steps=9, state=state)
    assert state.read(optimiser) == 2
    assert float(x.detach()) == pytest.approx(0.8)


def test_random_numbers_follow_the_step():
    def run(seed, start=0):
        x = torch.nn.Parameter(torch.zeros(1))
        drawn = []

        def loss_of(_):
            drawn.append(float(torch.rand(1)))
            return x.sum()

        descend(torch.optim.SGD([x], lr=0.1), repeat(0), loss_of, steps=4, start=start, seed=seed)
        return drawn

    before = torch.random.get_rng_state()
    drawn = run(5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(set(drawn)) == 4
    assert run(5, start=2) == drawn[2:]
    assert run(6) != drawn
