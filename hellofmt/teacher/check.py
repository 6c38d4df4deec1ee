"""The accuracy of a teacher, the first thing to be measured.

Everything imitates the teacher, so it is checked before anything else: a teacher whose classes
are in another order produces perfectly smooth, perfectly wrong labels (RDED's issue 10: 8.2
instead of 40.6 % from exactly that). Those 8.2 % of a thousand classes are far above chance, so
chance alone is no test. The order is *recognised*: a permutation is read off one half of the images
and must not explain the other half better than the stated order does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.student.evaluate import prepare_images
from hellofmt.teacher.network import Teacher, TeacherPool, device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.sources import ArrayImages

__all__ = ["check_teacher", "teacher_accuracy"]


def _logits(
    teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int, batch_size: int
) -> Iterator[Tensor]:
    """Logits of real images on the CPU, a batch at a time."""
    device = device_of(teacher)
    with torch.inference_mode():
        for i in range(0, len(images), batch_size):
            pixels = images.pixels[i : i + batch_size]
            if isinstance(teacher, Teacher | TeacherPool):
                yield teacher.of_images(pixels, size).float().cpu()
            else:
                yield teacher(prepare_images(pixels, size).to(device)).float().cpu()


def _tried_logits(
    teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int
) -> Iterator[Tensor]:
    """Yield logits of an untrusted teacher: any exception becomes E_TEACHER."""
    try:
        yield from _logits(teacher, images, size, 512)
    except Exception as error:
        # What a network that wants other images raises is its own business.
        text = f"{type(error).__name__}: {foreign_text(error)}"
        raise UserInputError.make(
            "E_TEACHER", f"the teacher cannot run on views of {size} x {size} pixels: {text}"
        ) from error


def teacher_accuracy(
    teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int, *, batch_size: int = 512
) -> float:
    """Top-1 of a function from views to logits on real images, in percent.

    Args:
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C); a projector fits as well.
        images: real images.
        size: side of the views in pixels.
        batch_size: images at once.

    Returns:
        Percent, 0 to 100.
    """
    parts = [z.argmax(1).numpy() for z in _logits(teacher, images, size, batch_size)]
    return 100.0 * float(np.mean(np.concatenate(parts) == images.labels))


def check_teacher(teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int) -> float:
    """Accuracy of a teacher on real images, refused if its class order is not the data set's.

    Each member of a pool is checked for its own order: the mean of three hides one that is wrong.

    Args:
        teacher: views to logits.
        images: real images with labels in the data set's class order.
        size: side of the views in pixels.

    Returns:
        Top-1 in percent.

    Raises:
        UserInputError: E_TEACHER: it cannot run on such views, has another number of classes or
            logits that are not finite, is not above chance, or is significantly better with its
            outputs in another order.
    """
    if isinstance(teacher, TeacherPool):
        for member in teacher.teachers:
            _check_order(_predicted(member, images, size), images)
    predicted = _predicted(teacher, images, size)
    _check_order(predicted, images)
    accuracy = 100.0 * float(np.mean(predicted == images.labels))
    if accuracy <= 100.0 / len(images.classes):
        raise UserInputError.make(
            "E_TEACHER", f"{_accuracy_text(predicted, images)}; no other order explains it either"
        )
    return accuracy


def _predicted(
    teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int
) -> NDArray[np.int64]:
    """The largest output for each image."""
    classes = len(images.classes)
    parts: list[NDArray[np.int64]] = []
    for logits in _tried_logits(teacher, images, size):
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise UserInputError.make(
                "E_TEACHER",
                f"logits of the teacher: expected shape ({len(logits)}, {classes}) for"
                f" {len(logits)} images of {classes} classes, got {tuple(logits.shape)}",
            )
        broken = int((~torch.isfinite(logits)).any(1).sum())
        if broken:
            raise UserInputError.make(
                "E_TEACHER",
                f"logits of the teacher are not finite for {broken} of {len(logits)} real"
                " images; expected finite numbers",
            )
        parts.append(logits.argmax(1).numpy())
    return np.concatenate(parts)


def _accuracy_text(predicted: NDArray[np.int64], images: ArrayImages) -> str:
    return (
        f"top-1 of the teacher on {len(images)} real images is"
        f" {100.0 * np.mean(predicted == images.labels):.1f} %; expected more than chance,"
        f" {100.0 / len(images.classes):.1f} %, in the data set's class order"
    )


def _check_order(predicted: NDArray[np.int64], images: ArrayImages) -> None:
    """Refuse outputs that another order of the classes explains better."""
    classes = len(images.classes)
    order = _recognised_order(predicted, images.labels, classes)
    if order is None:
        return
    other = 100.0 * float(np.mean(predicted == order[images.labels]))
    moved = np.flatnonzero(order != np.arange(classes))
    examples = ", ".join(
        f"`{printable(images.classes[label].key, 40)}` is its output {order[label]}, not {label}"
        for label in moved[:3].tolist()
    )
    raise UserInputError.make(
        "E_TEACHER",
        f"{_accuracy_text(predicted, images)}; {other:.1f} % in another order of"
        f" {len(moved)} classes, so its class order differs: {examples}"
        f"{', ...' if len(moved) > 3 else ''}",
        advice="{teacher_classes:FILE} says the order of its outputs",
    )


def _recognised_order(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int
) -> NDArray[np.int64] | None:
    """Output that stands for each class, where another order than 0, 1, 2, ... explains more.

    The order is read off every second image of each class, largest counts first, and judged on the
    others (McNemar's test, three standard deviations), so that a weak teacher that merely confuses
    two classes is not accused.
    """
    rank = np.empty(len(labels), np.int64)
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    first = rank % 2 == 0
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels[first], predicted[first]), 1)
    order = np.full(classes, -1, np.int64)
    free = np.ones(classes, bool)
    # Stable, and the diagonal wins a tie: the given order stands until something speaks against it.
    weight = 2 * counts + np.eye(classes, dtype=np.int64)
    flat = np.flatnonzero(counts)
    for place in flat[np.argsort(-weight.ravel()[flat], kind="stable")].tolist():
        label, output = divmod(place, classes)
        if order[label] < 0 and free[output]:
            order[label], free[output] = output, False
    for label in np.flatnonzero(order < 0).tolist():
        output = label if free[label] else int(np.flatnonzero(free)[0])
        order[label], free[output] = output, False
    given = predicted[~first] == labels[~first]
    other = predicted[~first] == order[labels[~first]]
    better, worse = int(np.sum(other & ~given)), int(np.sum(given & ~other))
    # Two points at least: a large set makes any difference significant.
    is_other = better - worse > max(3.0 * math.sqrt(better + worse), 0.02 * len(given))
    return order if is_other else None
