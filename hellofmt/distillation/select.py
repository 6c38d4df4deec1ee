"""Choose the images: the crops a teacher is surest of, composed into mosaics (RDED).

After Sun et al., "On the diversity and realism of distilled dataset" (RDED, CVPR 2024), as its
code does it (LINs-lab/RDED ``synthesize/``): a few random square crops of each image, each scored
by the teacher's cross-entropy; the best crop of each image; the best images of each class;
``factor**2`` of them to one stored image. Three things differ on purpose. The choice is seeded, by
the counter generator, while RDED's is not. Stored pixels are those that were cut, of 8 bits, where
RDED compresses them to JPEG. And images come in order of value: the first holds the best crops, the
second the next ones, so that the first k of a class are the choice for k, while RDED gives every
image one of the best.

A crop is scored at the size it will have in the mosaic, zero-padded to the full view *after*
normalising, so that the border is the mean colour and not black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional

from hellofmt import rng
from hellofmt.archive.format.canonical import decimal_value
from hellofmt.errors import UserInputError, printable
from hellofmt.making import shown
from hellofmt.runs.progress import Progress
from hellofmt.runs.workers import made
from hellofmt.sources import decode_crops
from hellofmt.teacher.network import device_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.manifest import Views
    from hellofmt.sources import Source

__all__ = [
    "CROPS",
    "SelectSettings",
    "Selection",
    "check_selection",
    "crop_boxes",
    "mosaics",
    "scored_crops",
    "select_images",
]

CROPS: Final = 5
"""Crops per image, as in RDED."""

_UNIT: Final = 64
"""Images whose crops are cut and scored at once."""


@dataclass(frozen=True)
class SelectSettings:
    """How images are chosen.

    Attributes:
        ipc: stored images per class.
        factor: cells per side of a stored image; RDED takes 2 from 128 px and 1 at 32 and 64 px.
        candidates: images per class that are looked at, chosen at random; RDED's scripts take 300.
        crops: crops scored per image.
        crop_scale: smallest and largest area of a crop, as a fraction of the image; RDED's are 0.08
            and 1. With (1, 1) whole images are chosen.
        seed: seed of candidates and crops.

    Example:
        >>> SelectSettings(ipc=10, factor=2).crop_scale
        (0.08, 1.0)
    """

    ipc: int
    factor: int = 1
    candidates: int = 300
    crops: int = CROPS
    crop_scale: tuple[float, float] = (0.08, 1.0)
    seed: int = 0


@dataclass(frozen=True)
class Selection:
    """The images that ``select_images`` chose, sorted by class: where their pixels are.

    Attributes:
        labels: int64 (classes * ipc,), ascending.
        rows: int64 (classes * ipc, factor**2), source row of each cell, row-major.
        losses: float64, the same shape, teacher's cross-entropy of each cell's crop in nats.
        crops: int32 (classes * ipc, factor**2, 4), the crop of each cell in its source image: top,
            left, height and width in pixels.
        pixels: uint8 (classes * ipc, S, S, 3), pixels that are stored instead of these crops; None
            if they were not refined.
    """

    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    losses: NDArray[np.float64]
    crops: NDArray[np.int32]
    pixels: NDArray[np.uint8] | None = None


def crop_boxes(
    words: NDArray[np.uint64], height: int, width: int, settings: SelectSettings
) -> list[tuple[int, int, int, int]]:
    """Square crops of one image.

    Word 3 t of ``word(seed, 1, SELECTION, row, .)`` draws the area of crop t, uniform in
    ``crop_scale`` times the image; words 3 t + 1 and 3 t + 2 its place.

    Args:
        words: uint64 (3 * crops,), the words of the image.
        height: of the image in pixels.
        width: of the image in pixels.
        settings: ``crop_scale`` is read.

    Returns:
        Top, left, height and width of each crop.
    """
    low, high = settings.crop_scale
    shares = (low + (high - low) * rng.uniform(words[0::3])).tolist()
    boxes: list[tuple[int, int, int, int]] = []
    for share, y, x in zip(shares, words[1::3].tolist(), words[2::3].tolist(), strict=True):
        side = min(max(round(math.sqrt(share * (height * width))), 1), height, width)
        boxes.append((y * (height - side + 1) >> 64, x * (width - side + 1) >> 64, side, side))
    return boxes


@dataclass(frozen=True)
class _Candidates:
    """The crops of candidates as workers cut them."""

    source: Source
    settings: SelectSettings
    views: Views
    size: int

    def __call__(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Cut the crops of rows (M,): uint8 (M * crops, s, s, 3), and int32 (M * crops, 4)."""
        settings, boxes = self.settings, list[tuple[int, int, int, int]]()
        cut: list[NDArray[np.uint8]] = []
        # Epoch 1: epoch 0 of this stream chooses the candidates.
        words = rng.words(settings.seed, 1, rng.Stream.SELECTION, rows, 3 * settings.crops)
        for row, word in zip(rows.tolist(), words, strict=True):
            drawn: list[tuple[int, int, int, int]] = []

            def draw(
                height: int,
                width: int,
                word: NDArray[np.uint64] = word,
                drawn: list[tuple[int, int, int, int]] = drawn,
            ) -> list[tuple[int, int, int, int]]:
                drawn[:] = crop_boxes(word, height, width, settings)
                return drawn

            cut.append(decode_crops(self.source, row, draw, self.size, self.views.interpolation))
            boxes += drawn
        return torch.from_numpy(np.concatenate(cut)), torch.tensor(boxes, dtype=torch.int32)


def _losses(
    teacher: Callable[[Tensor], Tensor],
    squares: Tensor,
    labels: NDArray[np.int64],
    views: Views,
) -> NDArray[np.float64]:
    """Teacher's cross-entropy of each crop, padded to the size of a view with the mean colour."""
    device, side = device_of(teacher), squares.shape[1]
    border = (views.size - side) // 2
    rest = views.size - side - border
    # Zero after normalising is the mean before it.
    mean = torch.tensor([decimal_value(value) for value in views.mean], device=device)
    mean = mean.view(1, 3, 1, 1)
    with torch.inference_mode():
        crops = shown(squares, device)
        if side < views.size:
            crops = functional.pad(crops - mean, (border, rest, border, rest)) + mean
        logits = teacher(crops).float()
        truth = torch.from_numpy(labels).to(device)
        return functional.cross_entropy(logits, truth, reduction="none").double().cpu().numpy()


def _candidates(source: Source, settings: SelectSettings) -> NDArray[np.int64]:
    """Rows of the source that are looked at, by class and ascending."""
    keys = rng.words(settings.seed, 0, rng.Stream.SELECTION, 0, len(source))
    by_key = np.lexsort((keys, source.labels))
    drawn = by_key[_place_in_class(source.labels[by_key]) < settings.candidates]
    return drawn[np.lexsort((drawn, source.labels[drawn]))]


def _place_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of each row within its class, of labels that are sorted."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def check_selection(source: Source, views: Views, settings: SelectSettings) -> None:
    """Refuse what ``select_images`` could not do, without doing it.

    Raises:
        UserInputError: E_OPTION: a setting is out of range; E_DATA: too few images in a class.
    """
    if settings.ipc < 1 or settings.factor < 1 or settings.crops < 1:
        raise UserInputError.make(
            "E_OPTION",
            "`ipc`, `factor` and `crops`: expected at least 1,"
            f" got {settings.ipc}, {settings.factor}, {settings.crops}",
        )
    if not 0 < settings.crop_scale[0] <= settings.crop_scale[1] <= 1:
        raise UserInputError.make(
            "E_OPTION",
            f"`crop_scale`: expected 0 < low <= high <= 1, got {settings.crop_scale}",
        )
    if views.size % settings.factor:
        raise UserInputError.make(
            "E_OPTION",
            f"`factor`: expected a divisor of the view size {views.size}, got {settings.factor}",
        )
    needed = settings.ipc * settings.factor**2
    counts = np.bincount(source.labels, minlength=len(source.classes))
    available = np.minimum(counts, settings.candidates)
    short = np.flatnonzero(available < needed)
    if short.size:
        first = int(short[0])
        raise UserInputError.make(
            "E_DATA",
            f"class `{printable(source.classes[first].key)}` has {available[first]} candidates;"
            f" expected at least {needed} for {settings.ipc} images of {settings.factor**2} crops",
        )


def select_images(
    source: Source,
    teacher: Callable[[Tensor], Tensor],
    views: Views,
    settings: SelectSettings,
    *,
    workers: int = 0,
    path: Path | None = None,
) -> Selection:
    """The stored images: per class the ``ipc * factor**2`` crops of lowest teacher loss.

    Cell k (row-major) of image i of a class is its crop number ``i * factor**2 + k`` in ascending
    order of loss, so the first images of each class are the choice for fewer. Ties go to the lower
    source row.

    Under ``torchrun`` every process must call this; each scores its share of the batches of crops,
    which are the same batches whatever the number of processes, and so is the choice, to the bit.

    Args:
        source: real images.
        teacher: views (N, 3, S, S) in [0, 1] to logits, on its own device if it is a module.
        views: size, interpolation and mean are read.
        settings: how many, and from what.
        workers: number of processes that decode images ahead.
        path: file of the stage's result, beside which parts are kept; None keeps nothing.

    Returns:
        The selection.

    Raises:
        UserInputError: E_OPTION: a setting is out of range; E_DATA: too few images in a class.
        HelloError: an image cannot be used.
        OSError: an image cannot be read, or a part cannot be written.

    Example:
        >>> import hellofmt
        >>> from hellofmt.distillation import DistillSettings, RefineSettings, SelectSettings
        >>> from hellofmt.distillation import refine_images, write_distilled
        >>> from hellofmt.sources import open_source
        >>> with hellofmt.open("photos.hello") as archive:
        ...     function, views = hellofmt.Projector.from_file(archive), archive.manifest.views
        >>> source, how = open_source("photos"), SelectSettings(ipc=1, factor=2, candidates=4)
        >>> chosen = select_images(source, function, views, how)
        >>> refined = refine_images(chosen, source, function, views, RefineSettings(steps=2))
        >>> refined.after <= refined.before
        True
        >>> name = write_distilled(
        ...     "chosen.hello", refined.selection, function, source, views, DistillSettings(how)
        ... )
    """
    check_selection(source, views, settings)
    side, crops = views.size // settings.factor, settings.crops
    rows = _candidates(source, settings)
    arrays = {
        "losses": np.zeros((len(rows), crops)),
        "boxes": np.zeros((len(rows), crops, 4), np.int32),
    }
    progress = Progress(arrays, _UNIT, path)
    cutter = _Candidates(source, settings, views, side)
    stream = made(cutter, (rows[unit] for unit in progress.units), workers=workers)
    for unit, (squares, boxes) in zip(progress.filled(), stream, strict=True):
        labels = np.repeat(source.labels_of(rows[unit]), crops)
        losses = _losses(teacher, squares, labels, views).reshape(-1, crops)
        # What cannot be read showed another image instead.
        losses[source.unreadable()[rows[unit]]] = np.inf
        arrays["losses"][unit] = losses
        arrays["boxes"][unit] = boxes.numpy().reshape(-1, crops, 4)
    whole = progress.whole()
    needed = settings.ipc * settings.factor**2
    best_crop = whole["losses"].argmin(axis=1)
    best = np.take_along_axis(whole["losses"], best_crop[:, None], 1)[:, 0]
    ranked = np.lexsort((best, source.labels[rows]))
    chosen = ranked[_place_in_class(source.labels[rows[ranked]]) < needed]
    _check_finite(source, rows[chosen], best[chosen])

    def by_image(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(-1, settings.factor**2, *values.shape[1:])

    return Selection(
        np.repeat(np.arange(len(source.classes), dtype=np.int64), settings.ipc),
        by_image(rows[chosen]),
        by_image(best[chosen]),
        by_image(whole["boxes"][chosen, best_crop[chosen]]),
    )


def _check_finite(source: Source, rows: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
    """Refuse a class that has too few candidates which can be read."""
    broken = np.flatnonzero(~np.isfinite(losses))
    if broken.size:
        label = int(source.labels[rows[broken[0]]])
        raise UserInputError.make(
            "E_DATA",
            f"class `{printable(source.classes[label].key)}` has too few candidates that can be"
            " read and scored",
        )


def scored_crops(source: Source, settings: SelectSettings) -> int:
    """How many crops ``select_images`` shows to the teacher."""
    candidates = np.minimum(np.bincount(source.labels), settings.candidates).sum()
    return int(candidates) * settings.crops


def mosaics(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Join cells (N, factor**2, s, s, 3), row-major, to images (N, factor * s, factor * s, 3)."""
    count, size = cells.shape[0], cells.shape[2]
    factor = math.isqrt(cells.shape[1])
    parts = cells.reshape(count, factor, factor, size, size, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(parts.reshape(count, factor * size, factor * size, 3))
