"""A distillation that fits into so many bytes: number, codec and quality of its images.

What counts are all bytes of the archive. What is left beside the label function is spent by the
rule of ``hellofmt.ledger.budget``, on ways to store images whose bytes and drifts are measured on a
sample of the real ones. Every class gets the same number of images; what that leaves over goes into
quality, which is found last, on the files that are written.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.nn import functional

from hellofmt.archive import DEFAULT_LIMITS, decode_image
from hellofmt.archive.format.layout import BLOCK
from hellofmt.distillation.archive_of import front_bytes
from hellofmt.distillation.selection import mosaics
from hellofmt.distillation.stored_images import StoredImages, unlabelled
from hellofmt.errors import UserInputError
from hellofmt.ledger.budget import (
    ROW_BYTES,
    Spending,
    Way,
    assumed_ways,
    file_bytes,
    spend,
    ways_of,
)
from hellofmt.making import ViewBatches
from hellofmt.sources import sampled_squares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.images import Codec
    from hellofmt.archive.format.record import Record
    from hellofmt.archive.format.views import Views
    from hellofmt.distillation.selection import Selection
    from hellofmt.distillation.settings import DistillSettings
    from hellofmt.projector import Projector
    from hellofmt.sources import Source

_SAMPLE: Final = 256
_AT_ONCE: Final = 64
_TEXTS: Final = 11 * 1024
"""Bytes of record and card, before they are known."""
_SEED: Final = 1
"""Of the views, as for ``fidelity``."""
_RESERVE: Final = 4 * BLOCK
"""Bytes by which a manifest and a record may grow once all of them is known."""


def planned(
    source: Source, views: Views, settings: DistillSettings, projector: Projector
) -> Spending:
    """Say what a budget will be spent on, as ``affordable`` does, before anything is fitted.

    Bytes are measured, drifts assumed, those of ``hellofmt.ledger.budget``, and bytes of texts.
    """
    sample = _sample(source, views, settings)
    found = [Way(codec, quality, size, 0.0) for codec, quality, size, _ in ways_of(sample)]
    ways, _ = assumed_ways(views.size, found)
    return _spent(source, views, settings, projector, ways, None, _TEXTS)


def affordable(
    source: Source,
    views: Views,
    settings: DistillSettings,
    projector: Projector,
    *,
    record: Callable[[DistillSettings], Record] | None = None,
    device: torch.device | str = "cpu",
) -> DistillSettings:
    """Choose what a budget is spent on: number, codec and quality of the images.

    ``record`` says how the archive of some settings is made, as far as it is known; its bytes
    count. The quality is the one that is expected; ``filled`` finds the one that fits.
    """
    logits = projector.labeler(device).logits
    sample = _sample(source, views, settings)

    def log_labels(pixels: NDArray[np.uint8]) -> Tensor:
        shown = ViewBatches(unlabelled(pixels, source), views, len(pixels), _SEED).batch(0).views
        found = torch.cat([logits(part.to(device)) for part in shown.split(_AT_ONCE)])
        return functional.log_softmax(found.cpu().double(), dim=1)

    before = log_labels(sample)
    told = _divergence(before, before.exp().mean(0, keepdim=True).log().expand_as(before))

    def drift(codec: str, files: Sequence[bytes]) -> float:
        if not files:
            return 0.0
        read = np.stack([decode_image(data, codec, DEFAULT_LIMITS) for data in files])
        # Of labels that tell nothing none is lost.
        return _divergence(before, log_labels(read)) / told if told > 0 else 0.0

    ways = [
        Way(codec, quality, size, drift(codec, files))
        for codec, quality, size, files in ways_of(sample)
    ]
    best = _spent(source, views, settings, projector, ways, record)
    return bought(settings, best.ipc, best.way.codec, best.way.quality)


def filled(
    selection: Selection,
    source: Source,
    views: Views,
    settings: DistillSettings,
    projector: Projector,
    *,
    record: Record | None = None,
    workers: int = 0,
) -> DistillSettings:
    """Find the highest quality of the chosen images at which the archive fits into its budget."""
    if settings.codec == "png":
        return settings
    count = len(selection.labels)
    front = front_bytes(count, source, views, settings, projector, record)
    room = (settings.budget or 0) - front - (0 if record is None else _RESERVE // 2)
    few = np.arange(min(count, _SAMPLE)) * count // min(count, _SAMPLE)

    def is_room(quality: int, numbers: Sequence[int] | None = None) -> bool:
        images = StoredImages(selection, source, views, settings.codec, quality)
        sizes = [file_bytes(len(data)) for data in images.files(numbers, workers=workers)]
        return sum(sizes) * count <= room * len(sizes)

    # Found on some of them, corrected on all.
    quality, above = 1, 101
    while above - quality > 1:
        middle = (quality + above) // 2
        quality, above = (middle, above) if is_room(middle, few.tolist()) else (quality, middle)
    if is_room(quality):
        while quality < 100 and is_room(quality + 1):
            quality += 1
        return replace(settings, quality=quality)
    while quality > 1:
        quality -= 1
        if is_room(quality):
            return replace(settings, quality=quality)
    raise UserInputError.make(
        "E_OPTION",
        f"budget of {settings.budget:,} bytes: {count:,} images do not fit at the lowest quality of"
        f" {settings.codec}; expected more",
    )


def _spent(
    source: Source,
    views: Views,
    settings: DistillSettings,
    projector: Projector,
    ways: Sequence[Way],
    record: Callable[[DistillSettings], Record] | None,
    texts: int = 0,
) -> Spending:
    """The best that a budget buys."""
    select, budget = settings.select, settings.budget
    if select is None or budget is None:
        raise UserInputError.make("E_OPTION", "expected a budget for chosen images, got none")
    classes, cells = len(source.classes), select.factor**2
    one = replace(settings, select=replace(select, ipc=1))
    front = front_bytes(
        classes, source, views, one, projector, None if record is None else record(one)
    )
    most = int(np.bincount(source.labels, minlength=classes).min()) // cells
    # Without rows of the index, which are bytes of an image here.
    front += _RESERVE + texts - classes * ROW_BYTES
    spending = spend(budget - front, classes, most, ways)
    if not spending.ipc:
        least = front + math.ceil(classes * spending.way.size)
        raise UserInputError.make(
            "E_OPTION",
            f"budget of {budget:,} bytes; expected at least {least:,}: {front:,} without images,"
            f" and one image for each of {classes:,} classes",
        )
    return spending


def _divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL(before || after) of log-labels (N, C), nats."""
    return float(functional.kl_div(after, before, reduction="batchmean", log_target=True))


def bought(
    settings: DistillSettings, ipc: int, codec: Codec, quality: int | None
) -> DistillSettings:
    """Settings with what a budget is spent on; as many candidates as it takes are looked at."""
    select = settings.select
    if select is not None:
        candidates = max(select.candidates, ipc * select.factor**2)
        select = replace(select, ipc=ipc, candidates=candidates)
    return replace(settings, select=select, codec=codec, quality=quality)


def _sample(source: Source, views: Views, settings: DistillSettings) -> NDArray[np.uint8]:
    """Some real images as they would be stored, from all classes: uint8 (N, S, S, 3)."""
    factor = 1 if settings.select is None else settings.select.factor
    count = min(_SAMPLE, len(source) // factor**2) * factor**2
    side = views.size // factor
    cells = sampled_squares(source, side, count, interpolation=views.interpolation)
    return mosaics(cells.reshape(-1, factor**2, *cells.shape[1:]))
