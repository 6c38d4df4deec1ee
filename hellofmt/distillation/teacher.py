"""The teacher: a network that knows the real data, and the first thing to be measured.

Everything after it imitates the teacher, so its accuracy on real images is checked before anything
else: a teacher whose classes stand in another order produces perfectly smooth, perfectly wrong
labels (RDED's issue 10: 8.2 instead of 40.6 % from exactly that). A teacher takes *views*, float32
in [0, 1], and normalises them itself, so that fit, selection and students can hand the same tensor
to teacher and projector.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from hellofmt.archive.manifest import decimal_value
from hellofmt.errors import UserInputError
from hellofmt.student.batches import ArrayBatches
from hellofmt.student.evaluate import prepare_images
from hellofmt.student.networks import build_student
from hellofmt.student.recipes import Recipe
from hellofmt.student.train import train_student

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.manifest import Views
    from hellofmt.distillation.sources import ArrayImages

__all__ = [
    "TEACHER_RECIPE",
    "Teacher",
    "check_teacher",
    "load_teacher",
    "save_teacher",
    "teacher_accuracy",
    "train_teacher",
]

TEACHER_RECIPE = Recipe(
    "teacher", "ce", learning_rate=3e-3, weight_decay=0.01, warmup=0.05, batch_size=128
)
"""AdamW with a cosine; steps decide the rest. Chosen on a validation part of the digits."""


class Teacher(nn.Module):
    """A network together with the normalisation it was trained under, frozen and in eval mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, views: Views) -> None:
        """Wrap ``network``, which takes images normalised by ``views.mean`` and ``views.std``."""
        super().__init__()
        self.network = network
        for name, values in (("mean", views.mean), ("std", views.std)):
            numbers = [decimal_value(value) for value in values]
            self.register_buffer(name, torch.tensor(numbers).view(3, 1, 1))
        # One layout, so that a teacher read from a file gives the bits of the trained one.
        self.to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode whatever is asked: running statistics must not move while labelling."""
        del mode
        return super().train(False)

    def forward(self, views: Tensor) -> Tensor:
        """Logits (N, C) of views (N, 3, S, S), float32 in [0, 1]."""
        images = (views - self.mean) / self.std
        return self.network(images.contiguous(memory_format=torch.channels_last))


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
    correct = 0
    with torch.inference_mode():
        for i in range(0, len(images), batch_size):
            logits = teacher(prepare_images(images.pixels[i : i + batch_size], size))
            best = logits.argmax(1).cpu().numpy()
            correct += int(np.sum(best == images.labels[i : i + batch_size]))
    return 100.0 * correct / len(images)


def check_teacher(teacher: Callable[[Tensor], Tensor], images: ArrayImages, size: int) -> float:
    """Accuracy of a teacher on real images, refused if it is no better than chance.

    Args:
        teacher: views to logits.
        images: real images with labels in the data set's class order.
        size: side of the views in pixels.

    Returns:
        Top-1 in percent.

    Raises:
        UserInputError: E_TEACHER: other number of classes, or not above chance.
    """
    classes = len(images.classes)
    with torch.inference_mode():
        logits = teacher(prepare_images(images.pixels[:1], size))
    if tuple(logits.shape) != (1, classes):
        raise UserInputError.make(
            "E_TEACHER",
            f"logits of the teacher: expected shape (1, {classes}) for one image,"
            f" got {tuple(logits.shape)}",
        )
    accuracy = teacher_accuracy(teacher, images, size)
    chance = 100.0 / classes
    if accuracy <= chance:
        raise UserInputError.make(
            "E_TEACHER",
            f"top-1 of the teacher on {len(images)} real images is {accuracy:.1f} %;"
            f" expected more than chance, {chance:.1f} % (is its class order the data set's?)",
        )
    return accuracy


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
    stream = ((batch.images, batch.hard) for batch in batches)
    train_student(student, stream, recipe, steps=steps, on_step=on_step)
    return Teacher(student, views)


def save_teacher(teacher: Teacher, path: str | os.PathLike[str]) -> None:
    """Write the teacher's tensors as safetensors; ``load_teacher`` reads them back.

    Raises:
        OSError: the file cannot be written.
    """
    state = {name: tensor.cpu().contiguous() for name, tensor in teacher.state_dict().items()}
    save_file({name: tensor.numpy() for name, tensor in state.items()}, path)


def load_teacher(path: str | os.PathLike[str], network: str, classes: int, views: Views) -> Teacher:
    """Read a teacher that ``save_teacher`` wrote.

    Args:
        path: safetensors file.
        network: the name it was built by.
        classes: number of logits.
        views: of the data set; its mean and std are replaced by the stored ones.

    Returns:
        The teacher, frozen.

    Raises:
        OSError: the file cannot be read.
        UserInputError: E_TEACHER: the tensors are not those of this network.
    """
    teacher = Teacher(build_student(network, classes, views.size), views)
    state = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    try:
        teacher.load_state_dict(state)
    except RuntimeError as error:
        raise UserInputError.make(
            "E_TEACHER", f"`{path}` does not hold a `{network}` for {classes} classes"
        ) from error
    return teacher
