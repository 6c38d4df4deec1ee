"""Refine stored images: let an encoder see in a small patch what it saw in the large one.

A cell of a mosaic is a crop that was shrunk by ``factor``, and students and encoder see it blown up
again. The paper's image update (arXiv 2408.08201) moves the stored pixels so that this detour costs
the encoder little: with p the crop at the size of a view, and p' the stored cell enlarged to it,
minimise ``MSE(E(p), E(p'))`` over the pixels of the cell. E is the encoder with the fitted deltas
merged, since that is what will label the images. Steps and optimiser are those of CIM
(``LINs-lab/CIM``): 200 steps of AdamW at 0.01, which does the same with a ResNet's features.

The other objective, ``labels``, asks for less and aims nearer: ``KL(f(p) || f(p'))`` of the label
function f at its own temperature, so that a stored cell has the label of the crop it was made from,
whatever becomes of features that no class depends on.

There is nothing random in it, so nothing is seeded. With factor 1 nothing was shrunk, p' is p, and
the loss starts at 0; that is refused rather than run without effect. The gain in the paper's own
ablation is 0.1 points, so it is off unless asked for, and both losses are reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn import functional

from hellofmt.distillation.selection import mosaics
from hellofmt.errors import UserInputError, printable
from hellofmt.making import CropSquares, shown
from hellofmt.projector.lowrank import Delta
from hellofmt.runs.cost import gflop_of
from hellofmt.runs.loop import descend
from hellofmt.runs.progress import Progress
from hellofmt.runs.workers import made

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.manifest import Views
    from hellofmt.distillation.selection import Selection
    from hellofmt.projector import Projector
    from hellofmt.sources import Source


@dataclass(frozen=True)
class RefineSettings:
    """How ``refine_images`` moves pixels; see ``select_images``.

    Attributes:
        steps: steps of AdamW; CIM takes 200.
        learning_rate: learning rate of pixels in [0, 1]; CIM takes 0.01.
        batch_size: cells at once; it changes nothing but rounding.
        objective: ``features``, the paper's, or ``labels``.
    """

    steps: int = 200
    learning_rate: float = 0.01
    batch_size: int = 64
    objective: Literal["features", "labels"] = "features"


@dataclass(frozen=True)
class Refinement:
    """What ``refine_images`` did.

    Attributes:
        selection: the same choice with other pixels.
        before: mean over all cells, of the stored pixels as chosen: squared difference of
            features, or KL of labels in nats.
        after: the same of the pixels as they are stored now, rounded to 8 bits.
    """

    selection: Selection
    before: float
    after: float


def _merged(projector: Projector, objective: str) -> Callable[[Tensor], Tensor]:
    """Unit features or log-labels of views, differentiable in the views alone."""
    encoder = projector.encoder
    with torch.no_grad():
        merged = {
            f"visual.{delta.param}": delta(encoder.visual.get_parameter(delta.param))
            for delta in projector.deltas
            if isinstance(delta, Delta)
        }

        head = {name: tensor.detach() for name, tensor in projector.head.named_parameters()}

    def encode(views: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, merged, (views,))

    def log_labels(views: Tensor) -> Tensor:
        logits = torch.func.functional_call(projector.head, head, (encode(views),))
        return functional.log_softmax(logits / projector.temperature, dim=1)

    return encode if objective == "features" else log_labels


def _distance(objective: str, got: Tensor, wanted: Tensor) -> Tensor:
    """(N,): mean squared difference of features, or KL(wanted || got) of log-labels."""
    if objective == "features":
        return (got - wanted).square().mean(1)
    return functional.kl_div(got, wanted, reduction="none", log_target=True).sum(1)


def refine_images(
    selection: Selection,
    source: Source,
    projector: Projector,
    views: Views,
    settings: RefineSettings | None = None,
    *,
    workers: int = 0,
    path: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Refinement:
    """Move the stored pixels towards features, or labels, of the crops they were made from.

    ``select_images`` has an example.

    Under ``torchrun`` every process must call this; each moves its share of the batches of cells,
    which are the same batches whatever the number of processes.

    Args:
        selection: chosen with factor 2 or more.
        source: the images it was chosen from.
        projector: fitted; its merged encoder gives the features, and its head the labels.
        views: size and interpolation are read.
        settings: steps and learning rate; None takes CIM's.
        workers: number of processes that decode images ahead.
        path: file of the stage's result, beside which parts are kept; None keeps nothing.
        on_step: called with the steps done and their number, over all batches of this process.

    Returns:
        The refined selection and both losses. Cells whose rounded pixels got worse keep the ones
        they had, so that ``after <= before``.

    Raises:
        UserInputError: factor 1, steps < 1, or another objective (E_OPTION).
    """
    settings = RefineSettings() if settings is None else settings
    factor = round(selection.rows.shape[1] ** 0.5)
    if factor < 2:
        raise UserInputError.make(
            "E_OPTION", "refining needs cells that were shrunk; expected factor 2 or more, got 1"
        )
    if settings.steps < 1:
        raise UserInputError.make(
            "E_OPTION", f"refining steps: expected at least 1, got {settings.steps}"
        )
    if settings.objective not in {"features", "labels"}:
        raise UserInputError.make(
            "E_OPTION",
            "refining objective: expected `features` or `labels`, got"
            f" `{printable(settings.objective)}`",
        )
    encode = _merged(projector, settings.objective)
    device = next(projector.parameters()).device
    crops = np.concatenate([selection.rows[..., None], selection.crops], 2)
    crops = crops.reshape(-1, 5).astype(np.int64)
    side = views.size // factor
    arrays = {
        "cells": np.zeros((len(crops), side, side, 3), np.uint8),
        "losses": np.zeros((len(crops), 2)),
    }
    progress = Progress(arrays, settings.batch_size, path)
    total = settings.steps * len(progress.units)
    cut = partial(_at_both_sizes, source, views.interpolation, (views.size, side))
    stream = made(cut, (crops[unit] for unit in progress.units), workers=workers)
    for number, (unit, (squares, cells)) in enumerate(zip(progress.filled(), stream, strict=True)):
        with torch.no_grad():
            wanted = encode(shown(squares, device))

        def report(done: int, offset: int = number * settings.steps) -> None:
            if on_step is not None:
                on_step(offset + done, total)

        stored = cells.permute(0, 3, 1, 2)
        moved, loss = _refine_batch(encode, wanted, stored.to(device), views.size, settings, report)
        arrays["cells"][unit] = moved.permute(0, 2, 3, 1).cpu().numpy()
        arrays["losses"][unit] = loss.cpu().double().numpy()
    whole = progress.whole()
    before, after = whole["losses"].mean(0).tolist()
    pixels = mosaics(whole["cells"].reshape(-1, factor**2, side, side, 3))
    return Refinement(replace(selection, pixels=pixels), before, after)


def refine_gflop(
    projector: Projector, cells: int, size: int, settings: RefineSettings | None = None
) -> float:
    """Work of refining in 1e9 operations, counted on one step of one cell.

    It is that of the gradient steps, and of the three measurements around them.
    """
    settings = RefineSettings() if settings is None else settings
    encode = _merged(projector, settings.objective)
    view = torch.zeros(1, 3, size, size, device=next(projector.parameters()).device)

    def forward() -> Tensor:
        with torch.no_grad():
            return encode(view)

    step = gflop_of(lambda: encode(view.clone().requires_grad_()), backward=True)
    return cells * (settings.steps * step + 3 * gflop_of(forward))


def _enlarged(pixels: Tensor, size: int) -> Tensor:
    """A stored cell as a student's crop of it looks: bilinear, to the size of a view."""
    return functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)


def _refine_batch(
    encode: Callable[[Tensor], Tensor],
    wanted: Tensor,
    stored: Tensor,
    size: int,
    settings: RefineSettings,
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Cells uint8 (N, 3, s, s) and their losses (N, 2), before and after."""

    def distance(pixels: Tensor) -> Tensor:
        return _distance(settings.objective, encode(_enlarged(pixels, size)), wanted)

    start = stored.float() / 255
    pixels = start.clone().requires_grad_()
    optimiser = torch.optim.AdamW([pixels], lr=settings.learning_rate, weight_decay=0.0)

    def clamp(done: int, _: Tensor) -> None:
        with torch.no_grad():
            pixels.clamp_(0, 1)
        report(done)

    # A sum over cells, each with moments of its own: cells do not feel each other.
    descend(
        optimiser,
        repeat(None),
        lambda _: distance(pixels).sum(),
        steps=settings.steps,
        on_step=clamp,
    )
    with torch.no_grad():
        moved = (pixels * 255).round().clamp(0, 255)
        before, after = distance(start), distance(moved / 255)
        better = after < before
        kept = torch.where(better[:, None, None, None], moved.to(torch.uint8), stored)
        return kept, torch.stack([before, torch.where(better, after, before)], dim=1)


def _at_both_sizes(
    source: Source, interpolation: str, sizes: tuple[int, int], crops: NDArray[np.int64]
) -> list[Tensor]:
    """Crops at the size of a view, and at that of a stored cell: uint8 (M, s, s, 3) each."""
    return [CropSquares(source, size, interpolation)(crops) for size in sizes]
