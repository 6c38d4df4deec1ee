"""Choose the images: the crops a teacher is surest of, composed into mosaics (RDED).

After Sun et al., "On the diversity and realism of distilled dataset" (RDED, CVPR 2024), as its
code does it (LINs-lab/RDED ``synthesize/``): a few random square crops of each image, each scored
by the teacher's cross-entropy; the best crop of each image; the best images of each class;
``factor**2`` of them to one stored image. Two things differ on purpose. The choice is seeded, by
the counter generator, while RDED's is not. And stored pixels are the rendered ones, rounded to
uint8, where RDED truncates and then compresses to JPEG.

A crop is scored at the size it will have in the mosaic, zero-padded to the full view *after*
normalising, so that the border is the mean colour and not black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import msgspec
import numpy as np
import torch
from torch.nn import functional

from hellofmt import rng
from hellofmt.archive.format.canonical import decimal_value
from hellofmt.errors import UserInputError, printable
from hellofmt.loading import plain_table, render
from hellofmt.loading.views.table import ViewColumn
from hellofmt.runs import ranks
from hellofmt.runs.cost import network_gflop
from hellofmt.teacher.network import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.format.manifest import Views
    from hellofmt.sources import ArrayImages

__all__ = [
    "CROPS",
    "SelectSettings",
    "Selection",
    "check_selection",
    "crop_table",
    "select_gflop",
    "select_images",
]

CROPS: Final = 5
"""Crops per image, as in RDED."""

_BATCH = 512


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
    """

    ipc: int
    factor: int = 1
    candidates: int = 300
    crops: int = CROPS
    crop_scale: tuple[float, float] = (0.08, 1.0)
    seed: int = 0


@dataclass(frozen=True)
class Selection:
    """The chosen images, sorted by class.

    Attributes:
        pixels: uint8 (classes * ipc, S, S, 3).
        labels: int64 (classes * ipc,), ascending.
        rows: int64 (classes * ipc, factor**2), source row of each cell, row-major.
        losses: float64, the same shape, teacher's cross-entropy of each cell's crop in nats.
        crops: int32 (classes * ipc, factor**2, 20), the crop of each cell as ``render`` reads it.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    losses: NDArray[np.float64]
    crops: NDArray[np.int32]


def crop_table(
    rows: NDArray[np.int64], height: int, width: int, settings: SelectSettings
) -> NDArray[np.int32]:
    """Square crops of images: one table row of ``render`` per (image, crop), image-major.

    Word 3 t of ``word(seed, 1, SELECTION, row, .)`` draws the area of crop t, uniform in
    ``crop_scale`` times the image; words 3 t + 1 and 3 t + 2 its place.

    Args:
        rows: int64 (N,) rows of the source.
        height: of the images in pixels.
        width: of the images in pixels.
        settings: ``crops``, ``crop_scale`` and ``seed``.

    Returns:
        int32 (N * crops, 20).
    """
    low, high = settings.crop_scale
    # Epoch 1: epoch 0 of this stream chooses the candidates.
    word = rng.words(settings.seed, 1, rng.Stream.SELECTION, rows, 3 * settings.crops)
    area = (low + (high - low) * rng.uniform(word[:, 0::3])) * (height * width)
    side = np.clip(np.rint(np.sqrt(area)), 1, min(height, width)).astype(np.int64)
    sources = np.repeat(rows, settings.crops)
    sides = np.zeros(int(rows.max()) + 1, np.int64)
    table = plain_table(sources, sides, sides)
    table[:, ViewColumn.TOP] = rng.below(word[:, 1::3], height - side + 1).ravel()
    table[:, ViewColumn.LEFT] = rng.below(word[:, 2::3], width - side + 1).ravel()
    table[:, ViewColumn.HEIGHT] = table[:, ViewColumn.WIDTH] = side.ravel()
    return table


def _losses(
    teacher: Callable[[Tensor], Tensor],
    source: ArrayImages,
    table: NDArray[np.int32],
    cell: Views,
    size: int,
) -> NDArray[np.float64]:
    """Teacher's cross-entropy of each crop, padded to (size, size) with the mean colour."""
    border = (size - cell.size) // 2
    rest = size - cell.size - border
    # Zero after normalising is the mean before it.
    mean = torch.tensor([decimal_value(value) for value in cell.mean]).view(1, 3, 1, 1)
    with torch.inference_mode():
        crops = render(cast("Sequence[NDArray[np.uint8]]", source.pixels), table, cell)
        if cell.size < size:
            crops = functional.pad(crops - mean, (border, rest, border, rest)) + mean
        labels = torch.from_numpy(source.labels[table[:, ViewColumn.IMAGE]])
        logits = teacher(crops.to(device_of(teacher))).cpu()
        return functional.cross_entropy(logits, labels, reduction="none").double().numpy()


def _candidates(source: ArrayImages, settings: SelectSettings) -> list[NDArray[np.int64]]:
    """Rows of the source that are looked at, ascending, one array per class."""
    keys = rng.words(settings.seed, 0, rng.Stream.SELECTION, 0, len(source))
    chosen: list[NDArray[np.int64]] = []
    for label in range(len(source.classes)):
        members = np.flatnonzero(source.labels == label).astype(np.int64)
        drawn = np.argsort(keys[members], kind="stable")[: settings.candidates]
        chosen.append(np.sort(members[drawn]))
    return chosen


def check_selection(source: ArrayImages, views: Views, settings: SelectSettings) -> None:
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
    source: ArrayImages,
    teacher: Callable[[Tensor], Tensor],
    views: Views,
    settings: SelectSettings,
) -> Selection:
    """The stored images: per class the ``ipc * factor**2`` crops of lowest teacher loss.

    Cell k (row-major) of image i of a class is its crop number ``k * ipc + i`` in ascending order
    of loss, so that every image gets one of the best crops. Ties go to the lower source row.

    Under ``torchrun`` every process must call this; each scores its share of the batches of crops,
    which are the same batches whatever the number of processes, and so is the choice, to the bit.

    Args:
        source: real images.
        teacher: views (N, 3, S, S) in [0, 1] to logits, on its own device if it is a module.
        views: size, interpolation, antialias, mean and std are read.
        settings: how many, and from what.

    Returns:
        The selection.

    Raises:
        UserInputError: E_OPTION: a setting is out of range; E_DATA: too few images in a class.
    """
    check_selection(source, views, settings)
    height, width = source.pixels.shape[1:3]
    images = cast("Sequence[NDArray[np.uint8]]", source.pixels)
    cell = msgspec.structs.replace(views, size=views.size // settings.factor)
    candidates = _candidates(source, settings)
    scores = [np.zeros(len(rows) * settings.crops) for rows in candidates]
    batches = [
        (label, slice(i, i + _BATCH))
        for label, score in enumerate(scores)
        for i in range(0, len(score), _BATCH)
    ]
    for label, part in batches[ranks.share(len(batches))]:
        table = crop_table(candidates[label], height, width, settings)[part]
        scores[label][part] = _losses(teacher, source, table, cell, views.size)
    ends = np.cumsum([len(score) for score in scores])[:-1]
    scores = np.split(ranks.sum_rows_(np.concatenate(scores)), ends)
    needed = settings.ipc * settings.factor**2
    pixels: list[NDArray[np.uint8]] = []
    rows: list[NDArray[np.int64]] = []
    losses: list[NDArray[np.float64]] = []
    tables: list[NDArray[np.int32]] = []
    for members, score in zip(candidates, scores, strict=True):
        loss = score.reshape(len(members), settings.crops)
        best_crop = loss.argmin(axis=1)
        best = loss[np.arange(len(members)), best_crop]
        chosen = np.argsort(best, kind="stable")[:needed]
        table = crop_table(members, height, width, settings)
        table = table[chosen * settings.crops + best_crop[chosen]]
        pixels.append(_mosaics(render(images, table, cell), settings.ipc, settings.factor))
        rows.append(members[chosen].reshape(-1, settings.ipc).T)
        losses.append(best[chosen].reshape(-1, settings.ipc).T)
        tables.append(table.reshape(-1, settings.ipc, table.shape[1]).swapaxes(0, 1))
    labels = np.repeat(np.arange(len(source.classes), dtype=np.int64), settings.ipc)
    return Selection(
        np.concatenate(pixels),
        labels,
        np.concatenate(rows),
        np.concatenate(losses),
        np.concatenate(tables),
    )


def select_gflop(
    source: ArrayImages, teacher: nn.Module, size: int, settings: SelectSettings
) -> float:
    """Work of choosing in 1e9 operations: the teacher on every crop of every candidate.

    Args:
        source: real images.
        teacher: views to logits.
        size: side of the views in pixels.
        settings: how many candidates, and crops of each.

    Returns:
        The work, counted on one view.
    """
    candidates = np.minimum(np.bincount(source.labels), settings.candidates).sum()
    return network_gflop(teacher, size, int(candidates) * settings.crops)


def _mosaics(crops: Tensor, ipc: int, factor: int) -> NDArray[np.uint8]:
    """(ipc, S, S, 3) uint8 of ``ipc * factor**2`` crops (., 3, S / factor, S / factor)."""
    size = crops.shape[-1]
    # Crop k * ipc + i is cell k = (cell row, cell column) of image i.
    cells = crops.reshape(factor, factor, ipc, 3, size, size)
    images = cells.permute(2, 0, 4, 1, 5, 3).reshape(ipc, factor * size, factor * size, 3)
    return (images * 255).round().clamp(0, 255).to(torch.uint8).numpy()
