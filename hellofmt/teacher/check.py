"""Measure a teacher before anything imitates it.

A teacher whose classes are in another order gives perfectly smooth, perfectly wrong labels (RDED's
issue 10: 8.2 instead of 40.6 %). Those 8.2 % of a thousand classes are far above chance, so chance
alone is no test. The order is *recognised*: a permutation is read off one half of the images and
must not explain the other half better than the stated order does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.making import CentreSquares, shown
from hellofmt.runs.progress import Progress
from hellofmt.runs.workers import made
from hellofmt.teacher.network import Teacher, TeacherPool, device_of
from hellofmt.teacher.rule import InputRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive import ClassLine
    from hellofmt.sources import Source

_UNIT: Final = 128
"""Images that are decoded and shown to the networks at once."""


def _members(teacher: Callable[[Tensor], Tensor]) -> list[Callable[[Tensor], Tensor]]:
    return list(teacher.teachers) if isinstance(teacher, TeacherPool) else [teacher]


def _logits(
    teacher: Callable[[Tensor], Tensor],
    images: Source,
    size: int,
    units: Iterable[NDArray[np.int64]],
    workers: int,
) -> Iterator[list[Tensor]]:
    """Yield the logits of each network for whole images, on their device, a unit at a time."""
    device = device_of(teacher)
    ways = [
        (member, (member.rule if isinstance(member, Teacher) else InputRule()).whole(size))
        for member in _members(teacher)
    ]
    cuts = tuple(dict.fromkeys(way for _, way in ways))
    with torch.inference_mode():
        for squares in made(CentreSquares(images, cuts), units, workers=workers):
            views = {cut: shown(s, device) for cut, s in zip(cuts, squares, strict=True)}
            try:
                logits = [member(views[way]).float() for member, way in ways]
            except Exception as error:
                # A network that expects other images may raise anything.
                text = f"the teacher cannot run on views of {size} x {size} pixels:"
                text += f" {type(error).__name__}: {foreign_text(error)}"
                raise UserInputError.make("E_TEACHER", text) from error
            yield logits


def predictions(
    teacher: Callable[[Tensor], Tensor],
    images: Source,
    size: int,
    rows: NDArray[np.int64] | None = None,
    *,
    workers: int = 0,
    path: Path | None = None,
) -> NDArray[np.int64]:
    """Find the largest output for real images, of each network of a teacher and of their mean.

    Under ``torchrun`` every process must call this, and each takes its share of the images. Returns
    int64 (N, networks + 1), the mean last; one network is its own mean. -1 is an image that cannot
    be read and is left out. Parts are kept beside ``path``, the file of the stage's result.
    """
    rows = np.arange(len(images)) if rows is None else rows
    members, classes = len(_members(teacher)), len(images.classes)
    arrays = {"predicted": np.zeros((len(rows), members + 1), np.int64)}
    progress = Progress(arrays, _UNIT, path)
    units = (rows[unit] for unit in progress.units)
    stream = _logits(teacher, images, size, units, workers)
    for unit, logits in zip(progress.filled(), stream, strict=True):
        for each in logits:
            if each.ndim != 2 or each.shape[1] != classes:
                raise UserInputError.make(
                    "E_TEACHER",
                    f"logits of the teacher: expected shape ({len(each)}, {classes}) for"
                    f" {len(each)} images of {classes} classes, got {tuple(each.shape)}",
                )
        every = torch.stack([*logits, torch.stack(logits).mean(0)])
        broken = ~torch.isfinite(every).all(2)
        # Both facts in one tensor, since reading each would make the host wait for a GPU.
        found = torch.where(broken, -1, every.argmax(2)).T.cpu().numpy()
        if (found < 0).any():
            count = int((found < 0).any(1).sum())
            raise UserInputError.make(
                "E_TEACHER",
                f"logits of the teacher are not finite for {count} of {len(found)} real"
                " images; expected finite numbers",
            )
        found[images.unreadable()[rows[unit]]] = -1
        arrays["predicted"][unit] = found
    return progress.whole()["predicted"]


def teacher_accuracy(
    teacher: Callable[[Tensor], Tensor], images: Source, size: int, *, workers: int = 0
) -> float:
    """Measure top-1 on real images as ``predictions`` and ``top1`` do, in percent.

    Example:
        >>> from hellofmt.sources import open_source
        >>> def always_first(views):
        ...     return views.new_tensor([1.0, 0.0, 0.0]).expand(len(views), 3)
        >>> round(teacher_accuracy(always_first, open_source("photos"), 16))
        33
    """
    return top1(predictions(teacher, images, size, workers=workers), images.labels)


def top1(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Compute the top-1 in percent of ``predictions``, without images that are left out."""
    predicted, labels = _counted(predicted, labels)
    return 100.0 * float(np.mean(predicted[:, -1] == labels))


def _counted(
    predicted: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Without images that are left out."""
    is_read = predicted[:, -1] >= 0
    if not is_read.any():
        raise UserInputError.make("E_DATA", "no image to measure the teacher on can be read")
    return predicted[is_read], labels[is_read]


def check_predictions(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[ClassLine]
) -> float:
    """Compute top-1 of a teacher in percent; refuse one whose class order is not the data set's.

    Each network of a pool is checked for its own order: the mean of three hides one that is wrong.
    """
    predicted, labels = _counted(predicted, labels)
    # The mean of one network is that network.
    for each in predicted.T[1 if predicted.shape[1] == 2 else 0 :]:
        _check_order(each, labels, classes)
    last = predicted[:, -1]
    accuracy = 100.0 * float(np.mean(last == labels))
    if accuracy <= 100.0 / len(classes):
        text = _accuracy_text(last, labels, len(classes))
        raise UserInputError.make("E_TEACHER", f"{text}; no other order explains it either")
    return accuracy


def _accuracy_text(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> str:
    return (
        f"top-1 of the teacher on {len(labels)} real images is"
        f" {100.0 * np.mean(predicted == labels):.1f} %; expected more than chance,"
        f" {100.0 / classes:.1f} %, in the data set's class order"
    )


def _check_order(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[ClassLine]
) -> None:
    """Refuse predictions that another order of the classes explains better."""
    order = _recognised_order(predicted, labels, len(classes))
    if order is None:
        return
    other = 100.0 * float(np.mean(predicted == order[labels]))
    moved = np.flatnonzero(order != np.arange(len(classes)))
    examples = ", ".join(
        f"`{printable(classes[label].key, 40)}` is its output {order[label]}, not {label}"
        for label in moved[:3].tolist()
    )
    raise UserInputError.make(
        "E_TEACHER",
        f"{_accuracy_text(predicted, labels, len(classes))}; {other:.1f} % in another order of"
        f" {len(moved)} classes, so its class order differs: {examples}"
        f"{', ...' if len(moved) > 3 else ''}",
        advice="{teacher_classes:FILE} says the order of its outputs",
    )


def _recognised_order(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int
) -> NDArray[np.int64] | None:
    """Find the output for each class, if another order than 0, 1, 2, ... explains more; else None.

    The order is read off every second image of each class, largest counts first, and judged on the
    others (McNemar's test, three standard deviations): a weak teacher that merely confuses two
    classes passes.
    """
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(classes))
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
    first = rank % 2 == 0
    # Pairs that occur, not a table of all: 21,841 classes would fill 4 GB.
    flat, counts = np.unique(labels[first] * classes + predicted[first], return_counts=True)
    order = np.full(classes, -1, np.int64)
    free = np.ones(classes, bool)
    # Stable, and the diagonal wins a tie: the given order stands until something speaks against it.
    weight = 2 * counts + (flat // classes == flat % classes)
    for place in flat[np.argsort(-weight, kind="stable")].tolist():
        label, output = divmod(place, classes)
        if order[label] < 0 and free[output]:
            order[label], free[output] = output, False
    lowest = 0
    for label in np.flatnonzero(order < 0).tolist():
        while not free[lowest]:
            lowest += 1
        output = label if free[label] else lowest
        order[label], free[output] = output, False
    given = predicted[~first] == labels[~first]
    other = predicted[~first] == order[labels[~first]]
    better, worse = int(np.sum(other & ~given)), int(np.sum(given & ~other))
    # Two points at least: a large set makes any difference significant.
    is_other = better - worse > max(3.0 * math.sqrt(better + worse), 0.02 * len(given))
    return order if is_other else None
