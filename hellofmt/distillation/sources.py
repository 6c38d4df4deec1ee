"""Sources: the real images that a data set is distilled from, as plain arrays.

Teacher, fit and selection all read the same object: uint8 pixels of one shape, labels, class lines.
Arrays rather than a lazy dataset, because every stage visits every image many times and the sets
this runs on by itself fit in memory; larger ones are the business of a fit over shards. An image
folder follows ``torchvision.datasets.ImageFolder``: class folders in sorted order are labels 0, 1,
2, ... Nothing is skipped: an unreadable file or an empty class stops with its name, since a data
set that silently lost images looks exactly like a method that works badly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from hellofmt import rng
from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "IMAGE_EXTENSIONS",
    "ArrayImages",
    "digits",
    "read_image_folder",
    "stratified_split",
]

IMAGE_EXTENSIONS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""File names that count as images in a folder, lower case; other files are refused."""

_DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Attributes:
        pixels: uint8 (N, H, W, 3), RGB.
        labels: int64 (N,), each in [0, number of classes).
        classes: one line per class, in label order.
        name: of the data set, for the manifest.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[ClassLine, ...]
    name: str = "images"

    def __post_init__(self) -> None:
        """Check shapes, label range and that no class is empty.

        Raises:
            UserInputError: E_DATA, with what is wrong and what was expected.
        """
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or self.pixels.dtype != np.uint8:
            raise UserInputError.make(
                "E_DATA",
                "pixels: expected uint8 (N, H, W, 3),"
                f" got {self.pixels.dtype} {tuple(self.pixels.shape)}",
            )
        if self.labels.shape != (len(self.pixels),) or self.labels.dtype != np.int64:
            raise UserInputError.make(
                "E_DATA",
                f"labels: expected int64 ({len(self.pixels)},),"
                f" got {self.labels.dtype} {tuple(self.labels.shape)}",
            )
        count = len(self.classes)
        if count < 2:
            raise UserInputError.make(
                "E_DATA", f"a data set needs at least two classes; got {count}"
            )
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < count:
            raise UserInputError.make(
                "E_DATA",
                f"labels: expected 0 to {count - 1},"
                f" got {self.labels.min()} to {self.labels.max()}",
            )
        empty = np.flatnonzero(np.bincount(self.labels, minlength=count) == 0)
        if empty.size:
            raise UserInputError.make(
                "E_DATA", f"class `{printable(self.classes[int(empty[0])].key)}` has no images"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def subset(self, rows: NDArray[np.int64]) -> ArrayImages:
        """The images of these rows, in this order, with the same classes.

        Raises:
            UserInputError: a class would be empty (E_DATA).
        """
        return ArrayImages(self.pixels[rows], self.labels[rows], self.classes, self.name)


def stratified_split(
    labels: NDArray[np.int64], held_out: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows so that every class keeps its share: ``(rest, held out)``, both ascending.

    Each class gives ``held_out * its share`` rows, rounded by largest remainder (ties to the lower
    class), chosen by the counter generator.

    Args:
        labels: int64 (N,).
        held_out: rows of the second part, 0 <= held_out <= N.
        seed: of the choice.

    Returns:
        Two int64 arrays of rows.

    Raises:
        ValueError: ``held_out`` is out of range.
    """
    n = len(labels)
    if not 0 <= held_out <= n:
        raise ValueError(f"held_out: expected 0 to {n}, got {held_out}")
    counts = np.bincount(labels)
    # Integers only: the split is part of every published number and may not hang on a rounding.
    quota, remainder = np.divmod(counts * held_out, max(n, 1))
    short = held_out - int(quota.sum())
    quota[np.argsort(-remainder, kind="stable")[:short]] += 1
    keys = rng.words(seed, 0, rng.Stream.SELECTION, 0, n)
    chosen: list[NDArray[np.int64]] = []
    for label, take in enumerate(quota):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[np.argsort(keys[rows], kind="stable")[:take]])
    out = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), out).astype(np.int64), out.astype(np.int64)


def digits(size: int = 16) -> ArrayImages:
    """scikit-learn's digits: 1,797 handwritten digits of 43 people, 8 x 8, resized bilinearly.

    Real scans (UCI "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998; CC BY
    4.0) that come with scikit-learn, so nothing is downloaded. Values 0..16 become 0..255.

    Args:
        size: side in pixels, >= 8.

    Returns:
        The images, grey as three equal channels, classes ``0`` to ``9``.

    Raises:
        UserInputError: scikit-learn is not installed (E_OPTION).
    """
    try:
        # Only the demo needs it, and only its extra installs it.
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserInputError.make(
            "E_OPTION", "the digits come with scikit-learn; `pip install 'hellofmt[demo]'`"
        ) from None
    data: Any = load_digits()
    grey = np.round(np.asarray(data["images"], np.float64) * (255.0 / 16.0)).astype(np.uint8)
    scaled = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        for image in grey
    ]
    pixels = np.repeat(np.stack(scaled)[..., None], 3, axis=3)
    classes = tuple(ClassLine(str(i), (_DIGIT_NAMES[i],)) for i in range(10))
    return ArrayImages(pixels, np.asarray(data["target"], np.int64), classes, "digits")


def _read_square(path: Path, size: int | None) -> NDArray[np.uint8]:
    """One image as RGB; with ``size``, its shorter side resized to it and the centre cropped."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            rgb = image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserInputError.make(
            "E_DATA", f"cannot read image `{printable(path)}`: {printable(error)}"
        ) from error
    if size is not None and rgb.size != (size, size):
        scale = size / min(rgb.size)
        width, height = (max(size, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        rgb = rgb.crop((left, top, left + size, top + size))
    return np.asarray(rgb)


def read_image_folder(
    path: str | os.PathLike[str], size: int | None = None, *, classes: Sequence[str] | None = None
) -> ArrayImages:
    """Images of a folder with one sub-folder per class, by ``ImageFolder``'s rule.

    Args:
        path: folder of class folders; hidden entries are ignored.
        size: side in pixels that every image is resized and cropped to (bilinear, antialiased,
            centre); None needs images of one shape.
        classes: folder names in label order, for a folder that must match a data set; None sorts.

    Returns:
        The images, sorted by class and then by file name.

    Raises:
        FileNotFoundError: the folder does not exist.
        NotADirectoryError: it is not a folder.
        UserInputError: E_DATA: no class folder, one class, an empty class, a file that is not an
            image, an unreadable image, unequal shapes without ``size``, or other classes than
            expected.
    """
    root = Path(path)
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise UserInputError.make(
            "E_DATA", f"`{printable(root)}` has no class folders; expected one folder per class"
        )
    names = found if classes is None else list(classes)
    if sorted(names) != found:
        odd = sorted(set(names) ^ set(found))[0]
        raise UserInputError.make(
            "E_DATA",
            f"classes of `{printable(root)}` differ from the data set's,"
            f" first in `{printable(odd)}`; expected {len(names)} classes, got {len(found)}",
        )
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(p for p in (root / name).iterdir() if not p.name.startswith("."))
        if not files:
            raise UserInputError.make("E_DATA", f"class `{printable(name)}` has no images")
        for file in files:
            if file.suffix.lower() not in IMAGE_EXTENSIONS:
                raise UserInputError.make(
                    "E_DATA",
                    f"`{printable(file)}` is not an image;"
                    f" expected {', '.join(sorted(IMAGE_EXTENSIONS))}",
                )
            image = _read_square(file, size)
            if images and image.shape != images[0].shape:
                raise UserInputError.make(
                    "E_DATA",
                    f"`{printable(file)}` is {image.shape[1]} x {image.shape[0]} pixels, others"
                    f" are {images[0].shape[1]} x {images[0].shape[0]}; pass a size",
                )
            images.append(image)
            labels.append(label)
    lines = tuple(ClassLine(name, (name,)) for name in names)
    return ArrayImages(np.stack(images), np.array(labels, np.int64), lines, root.resolve().name)
