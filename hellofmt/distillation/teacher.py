"""The teacher: a network that knows the real data, and the first thing to be measured.

Everything after it imitates the teacher, so its accuracy on real images is checked before anything
else: a teacher whose classes stand in another order produces perfectly smooth, perfectly wrong
labels (RDED's issue 10: 8.2 instead of 40.6 % from exactly that). Those 8.2 % of a thousand classes
are far above chance, so chance alone is no test. The order is *recognised*: a permutation is read
off one half of the images and must not explain the other half better than the given order does.

A teacher takes *views*, float32 in [0, 1], and normalises them itself, so that fit, selection and
students can hand the same tensor to teacher and projector. Several teachers give the mean of their
logits, as the paper combines its weak teachers (arXiv 2408.08201).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from hellofmt.errors import UserInputError, printable
from hellofmt.runs.results import write_file
from hellofmt.student.batches import ArrayBatches, HardBatches
from hellofmt.student.evaluate import prepare_images
from hellofmt.student.networks import build_student
from hellofmt.student.recipes import Recipe
from hellofmt.student.teacher import Teacher
from hellofmt.student.train import train_student

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.manifest import Views
    from hellofmt.distillation.sources import ArrayImages

__all__ = [
    "TEACHER_RECIPE",
    "Teacher",
    "TeacherPool",
    "check_teacher",
    "device_of",
    "load_teacher",
    "save_teacher",
    "teacher_accuracy",
    "train_teacher",
]

TEACHER_RECIPE = Recipe(
    "teacher", "ce", learning_rate=3e-3, weight_decay=0.01, warmup=0.05, batch_size=128
)
"""AdamW with a cosine; steps decide the rest. Chosen on a validation part of the digits."""


class TeacherPool(nn.Module):
    """Several teachers as one: the mean of their logits."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        """Join ``teachers``, each from views to logits of the same classes.

        Raises:
            ValueError: no teachers.
        """
        super().__init__()
        if not teachers:
            raise ValueError("teachers: expected at least one, got none")
        self.teachers = nn.ModuleList(teachers)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> TeacherPool:
        """Stay in eval mode whatever is asked."""
        del mode
        return super().train(False)

    def forward(self, views: Tensor) -> Tensor:
        """Mean logits (N, C) of views (N, 3, S, S), float32 in [0, 1]."""
        return torch.stack([teacher(views) for teacher in self.teachers]).mean(0)


def device_of(function: object) -> torch.device:
    """Where the tensors of a network lie; a bare function takes CPU tensors."""
    if isinstance(function, nn.Module):
        for tensor in (*function.parameters(), *function.buffers()):
            return tensor.device
    return torch.device("cpu")


def _logits(
    teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int, batch_size: int
) -> Iterator[Tensor]:
    """Logits of real images on the CPU, a batch at a time."""
    device = device_of(teacher)
    with torch.inference_mode():
        for i in range(0, len(images), batch_size):
            views = prepare_images(images.pixels[i : i + batch_size], size)
            yield teacher(views.to(device)).float().cpu()


def _tried_logits(
    teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int
) -> Iterator[Tensor]:
    """The logits of a teacher that may be anybody's."""
    try:
        yield from _logits(teacher, images, size, 512)
    except Exception as error:
        # What a network that wants other images raises is its own business.
        text = printable(f"{type(error).__name__}: {error}")
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
    predicted = np.concatenate(parts)
    accuracy = 100.0 * float(np.mean(predicted == images.labels))
    chance = 100.0 / classes
    order = _recognised_order(predicted, images.labels, classes)
    if order is None and accuracy > chance:
        return accuracy
    text = (
        f"top-1 of the teacher on {len(images)} real images is {accuracy:.1f} %;"
        f" expected more than chance, {chance:.1f} %, in the data set's class order"
    )
    if order is None:
        raise UserInputError.make("E_TEACHER", f"{text}; no other order explains it either")
    other = 100.0 * float(np.mean(predicted == order[images.labels]))
    moved = np.flatnonzero(order != np.arange(classes))
    examples = ", ".join(
        f"`{printable(images.classes[label].key, 40)}` is its output {order[label]}, not {label}"
        for label in moved[:3].tolist()
    )
    raise UserInputError.make(
        "E_TEACHER",
        f"{text}; {other:.1f} % in another order of {len(moved)} classes, so its class order"
        f" differs: {examples}{', ...' if len(moved) > 3 else ''}",
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


def train_teacher(
    source: ArrayImages,
    views: Views,
    *,
    network: str = "cnn",
    steps: int = 600,
    batch_size: int | None = None,
    seed: int = 0,
    recipe: Recipe = TEACHER_RECIPE,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Teacher:
    """Train a teacher on real images with hard labels, under the data set's own views.

    Args:
        source: training images.
        views: of the data set; mixed views have labels mixed by area.
        network: name for ``build_student``.
        steps: gradient steps.
        batch_size: views per step; None takes the recipe's.
        seed: of weights, order and views.
        recipe: a ``ce`` recipe.
        on_step: called with the steps done and the loss.

    Returns:
        The teacher, frozen.

    Raises:
        UserInputError: unknown network (E_OPTION).
        ValueError: steps < 1, or the loss is not finite.
    """
    if batch_size is not None:
        recipe = replace(recipe, batch_size=batch_size)
    student = build_student(network, len(source.classes), views.size, seed=seed)
    batches = ArrayBatches(
        source.pixels, source.labels, len(source.classes), views, recipe.batch_size, seed
    )
    train_student(student, HardBatches(batches), recipe, steps=steps, on_step=on_step)
    return Teacher(student, views)


def save_teacher(teacher: Teacher, path: str | os.PathLike[str]) -> None:
    """Write the teacher's tensors as safetensors, whole or not at all; see ``load_teacher``.

    Raises:
        OSError: the file cannot be written.
    """
    state = {name: tensor.cpu().contiguous() for name, tensor in teacher.state_dict().items()}
    write_file(Path(path), save({name: tensor.numpy() for name, tensor in state.items()}))


def load_teacher(
    path: str | os.PathLike[str],
    network: str | nn.Module,
    classes: int,
    views: Views,
) -> Teacher:
    """Read a teacher: what ``save_teacher`` wrote, or the bare tensors of a network.

    Args:
        path: safetensors file.
        network: the name it was built by, or the network itself.
        classes: number of logits.
        views: of the data set; its mean and std are replaced by the stored ones, if any.

    Returns:
        The teacher, frozen.

    Raises:
        OSError: the file cannot be read.
        UserInputError: E_TEACHER: not a safetensors file, or not of this network; E_OPTION: unknown
            network.
    """
    module = build_student(network, classes, views.size) if isinstance(network, str) else network
    name = network if isinstance(network, str) else type(network).__name__
    teacher = Teacher(module, views)
    try:
        state = {
            key: torch.from_numpy(array) for key, array in load(Path(path).read_bytes()).items()
        }
        if "mean" in state and "std" in state:
            teacher.load_state_dict(state)
        else:
            teacher.network.load_state_dict(_without_prefix(state))
    except (RuntimeError, SafetensorError) as error:
        # Of all tensors that differ the last is the head, where there is one.
        reason = str(error).rstrip(" .").splitlines()[-1].strip()
        raise UserInputError.make(
            "E_TEACHER",
            f"`{printable(path)}` does not hold a `{printable(name)}` for {classes} classes:"
            f" {printable(reason)}",
        ) from error
    return teacher


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the ``module.`` that DistributedDataParallel puts before every name."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
