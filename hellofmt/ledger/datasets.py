"""Data sets by name: the sizes that a plan starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DATASETS", "DataSet"]


@dataclass(frozen=True)
class DataSet:
    """A data set by name: what a plan takes from it unless told otherwise.

    Attributes:
        classes: C.
        ipc: images per class that are kept, or 0 where every image is.
        images: N where every image is kept, else 0.
        epochs: E.
        note: assumption in one sentence, or empty.
    """

    classes: int
    ipc: int = 0
    images: int = 0
    epochs: int = 300
    note: str = ""


DATASETS: Final[Mapping[str, DataSet]] = {
    "cifar-10": DataSet(10, ipc=10),
    "cifar-100": DataSet(100, ipc=10),
    "tiny-imagenet": DataSet(200, ipc=10),
    "imagenet-1k": DataSet(1000, ipc=10),
    "imagenet-22k": DataSet(
        21_841,
        images=14_197_122,
        epochs=90,
        note="imagenet-22k: all 14,197,122 images of 21,841 classes, 90 epochs as TinyViT trained",
    ),
    "laion-400m": DataSet(
        21_841,
        images=400_000_000,
        epochs=32,
        note=(
            "laion-400m: 400 million images without classes of their own, labelled in the 21,841 "
            "of ImageNet-22k, 32 epochs as open_clip trained"
        ),
    ),
}
"""Presets: distilled sets of 10 images per class, or whole sets that are only labelled."""
