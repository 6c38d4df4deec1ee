"""Run gradient steps: teachers, projectors and students all use this loop.

A step is a function of the state before it and of its number, which determines the batch, the
learning rate and the seed of torch's random numbers (dropout). So on a CPU a run that was killed
and resumed ends with the same bits as an uninterrupted one.

Under ``torchrun`` the processes of a split run each work on their rows of the same global batch and
sum gradients: the same training as in one process, except for the rounding of sums.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar

import torch

from hellofmt import rng
from hellofmt.errors import UserInputError
from hellofmt.runs import ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from hellofmt.runs.resume import State
    from hellofmt.runs.schedule import Rate

_CHECK_EVERY: Final = 64

_Batch = TypeVar("_Batch")


def descend(
    optimiser: torch.optim.Optimizer,
    batches: Iterator[_Batch],
    loss_of: Callable[[_Batch], Tensor],
    *,
    steps: int,
    start: int = 0,
    rate: Rate = lambda _step, _steps: 1.0,
    clip: float | None = None,
    seed: int | None = None,
    is_split: bool = False,
    state: State | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Take gradient steps ``start`` to ``steps - 1``.

    ``loss_of`` returns a batch's loss, a scalar; in a split run, whose gradients are summed over
    all processes, this one's share. Each group of the optimiser has its full learning rate, of
    which ``rate`` is a fraction. ``seed`` is that of torch's random numbers in each step, such as
    dropout's; the global generator is restored afterwards. Rank 0 writes ``state``.
    """
    trained: list[torch.nn.Parameter] = [p for g in optimiser.param_groups for p in g["params"]]
    full: list[float] = [group["lr"] for group in optimiser.param_groups]
    devices = sorted({p.device.index or 0 for p in trained if p.device.type == "cuda"})
    if ranks.current().rank != 0:
        state = None
    with torch.random.fork_rng(devices, enabled=seed is not None):
        for step in range(start, steps):
            try:
                batch = next(batches)
            except StopIteration:
                raise ValueError(f"batches: expected {steps}, got {step}") from None
            if seed is not None:
                # After `next(batches)`, since a DataLoader that starts draws from torch's
                # generator. Each process drops different units, as it sees different rows.
                rank = ranks.current().rank
                torch.manual_seed(int(rng.words(seed, rank, rng.Stream.FIT, step, 1)[0]))
            for group, value in zip(optimiser.param_groups, full, strict=True):
                group["lr"] = value * rate(step, steps)
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(batch)
            loss.backward()
            loss = loss.detach()
            if is_split:
                loss = ranks.sum_gradients(trained, loss)
            done = step + 1
            is_due = state is not None and state.is_due(done)
            # Only now and then on a GPU: reading the loss makes the host wait.
            if not devices or is_due or step % _CHECK_EVERY == 0 or done == steps:
                _check_finite(loss, step)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(trained, clip)
            optimiser.step()
            if on_step is not None:
                on_step(done, loss)
            if state is not None and is_due:
                state.write(done, optimiser)


def _check_finite(loss: Tensor, step: int) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise UserInputError.make(
            "E_OPTION",
            f"loss: expected a finite number, got {value} at step {step};"
            " a lower learning rate helps, unless the labels themselves are not finite",
        )
