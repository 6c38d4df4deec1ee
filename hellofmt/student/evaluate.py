"""Measure the accuracy of a trained network on real images: top-1 in percent.

Evaluation images are prepared by one deterministic rule. An image that has the size of the views is
used as it is; any other is resized so that its shorter side is ``size / 7 * 8``, then its centre is
cropped, which is the rule of RDED's validation (LINs-lab/RDED ``validation/utils.py``) and of
ImageNet's 256 / 224. Small images (up to 64 px) are resized to the size itself: they have no border
to spare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchvision.transforms.v2 import functional as transforms

from hellofmt.loading import normalise
from hellofmt.student.networks import SMALL_IMAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.format.manifest import Views

__all__ = ["evaluate", "predict", "prepare_images"]


def prepare_images(images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    """Prepare evaluation images as unnormalised squares: float32 (N, 3, size, size) in [0, 1].

    Args:
        images: uint8 (H, W, 3) each, of any shapes, or one array (N, H, W, 3).
        size: side of the squares in pixels.

    Returns:
        The squares; resizing is bilinear and antialiased.

    Raises:
        ValueError: there are no images.
    """
    if len(images) == 0:
        raise ValueError("images: expected at least one, got none")
    squares: list[Tensor] = []
    for image in images:
        square = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        if square.shape[1:] != (size, size):
            short = size if size <= SMALL_IMAGE_SIZE else size * 8 // 7
            square = transforms.resize(square, [short], antialias=True)
            square = transforms.center_crop(square, [size, size])
        squares.append(square)
    return torch.stack(squares)


def predict(
    network: nn.Module,
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    views: Views,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Compute logits (N, C) of evaluation images, float32 on the CPU; restore the network's mode.

    Args:
        network: takes normalised images; runs in eval mode, on its own device.
        images: uint8 (H, W, 3) each.
        views: views of the archive; provide size, mean and std.
        batch_size: number of images at once.

    Returns:
        Logits in the order of the images.

    Raises:
        ValueError: there are no images.
    """
    if len(images) == 0:
        raise ValueError("images: expected at least one, got none")
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            parts = [
                network(
                    normalise(
                        prepare_images(images[i : i + batch_size], views.size).to(device), views
                    )
                ).cpu()
                for i in range(0, len(images), batch_size)
            ]
    finally:
        network.train(was_training)
    return torch.cat(parts).float()


def evaluate(
    network: nn.Module,
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    labels: NDArray[np.int64],
    views: Views,
    *,
    batch_size: int = 256,
) -> float:
    """Measure top-1 accuracy in percent.

    Args:
        network: takes normalised images; its mode is restored.
        images: uint8 (H, W, 3) each.
        labels: int64 (N,).
        views: views of the archive; provide size, mean and std.
        batch_size: number of images at once.

    Returns:
        Percent, 0 to 100.

    Raises:
        ValueError: there are no images, or the numbers of labels and images differ.
    """
    if len(images) != len(labels):
        raise ValueError(f"labels: expected one per image ({len(images)}), got {len(labels)}")
    logits = predict(network, images, views, batch_size=batch_size)
    correct = logits.argmax(1) == torch.from_numpy(labels)
    return 100.0 * float(correct.float().mean())
