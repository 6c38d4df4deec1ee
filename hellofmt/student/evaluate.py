"""Measure the accuracy of a trained network on real images: top-1 in percent.

Evaluation images are prepared by one deterministic rule. An image that has the size of the views is
used as it is; of any other the middle is cut, 7/8 of its shorter side, and resized, which is the
rule of RDED's validation (LINs-lab/RDED ``validation/utils.py``) and of ImageNet's 224 of 256.
Views of up to 64 px show the whole shorter side: they have no border to spare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hellofmt.errors import UserInputError, printable
from hellofmt.loading import normalise
from hellofmt.making import CentreSquares, Square, shown
from hellofmt.runs import ranks
from hellofmt.runs.workers import made
from hellofmt.student.networks import SMALL_IMAGE_SIZE

if TYPE_CHECKING:
    from torch import nn

    from hellofmt.archive.format.views import Views
    from hellofmt.sources import Source


def evaluation_square(size: int) -> Square:
    """Return how whole images are cut to squares of ``size`` pixels; see the module."""
    return Square(size, 1.0 if size <= SMALL_IMAGE_SIZE else 7 / 8)


def evaluate(
    network: nn.Module,
    images: Source,
    views: Views,
    *,
    batch_size: int = 256,
    workers: int = 0,
) -> float:
    """Measure top-1 accuracy in percent; images that the source leaves out do not count.

    Under ``torchrun`` every process must call this, and each measures its share of the images.

    Args:
        network: takes normalised images; runs in eval mode on its own device, and its mode is
            restored.
        images: real images with the network's classes.
        views: views of the archive; provide size, mean and std.
        batch_size: number of images at once.
        workers: number of processes that decode images ahead.

    Returns:
        Percent, 0 to 100.

    Raises:
        ValueError: there are no images.
        HelloError: an image cannot be used, or all of them are left out (E_DATA).
        OSError: an image cannot be read.

    Example:
        >>> from hellofmt.archive import default_views
        >>> from hellofmt.sources import open_source
        >>> from hellofmt.student import build_student
        >>> student = build_student("cnn", classes=3, size=16)
        >>> 0 <= evaluate(student, open_source("photos"), default_views(16)) <= 100
        True
    """
    if len(images) == 0:
        raise ValueError("images: expected at least one, got none")
    device = next(network.parameters()).device
    rows = np.arange(len(images))[ranks.share(len(images))]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    squares = CentreSquares(images, (evaluation_square(views.size),))
    is_right = np.zeros(len(rows), bool)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for batch, (pixels,) in zip(
                batches, made(squares, batches, workers=workers), strict=True
            ):
                predicted = network(normalise(shown(pixels, device), views)).argmax(1).cpu().numpy()
                is_right[batch - rows[0]] = predicted == images.labels_of(batch)
    finally:
        network.train(was_training)
    counted = ~images.unreadable()[rows]
    counts = torch.tensor([is_right[counted].sum(), counted.sum()], device=device)
    right, total = ranks.sum_(counts).tolist()
    if not total:
        text = f"`{printable(images.name)}`: no image to measure on can be read"
        raise UserInputError.make("E_DATA", text)
    return 100.0 * right / total
