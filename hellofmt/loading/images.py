"""Images of a ``HelloDataset``: the archive's own, or those of another dataset of the user's."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np
import torch
from PIL import Image

from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.read.stream import open_stream
from hellofmt.archive.storage.source import display_name
from hellofmt.errors import UserInputError, naming, printable
from hellofmt.sources.columns import Columns
from hellofmt.sources.decode import GREY, to_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.index import Index
    from hellofmt.archive.read.archive import Archive

_logger: Final = logging.getLogger("hellofmt")


class ImageSource(Protocol):
    """Dataset of images to label: torchvision's, without a transform, or Hugging Face's.

    Items are images or (image, class) pairs; an image is a PIL image or a uint8 array (H, W, 3),
    (H, W, 1) or (H, W). Of a Hugging Face dataset the columns of type ``Image`` and ``ClassLabel``
    are read.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return an image, a pair of image and class, or a row of a Hugging Face dataset."""
        ...


class ArchiveImages:
    """Images, sizes and classes of an archive, or of the first ``ipc`` images of each class."""

    def __init__(self, file: Archive, ipc: int | None = None) -> None:
        index = file.index
        if index is None:
            text = "the archive has no images; expected `images`, the data set to be labelled"
            raise UserInputError.make("E_DATA", text)
        self._file = file
        self.stream = open_stream(file)
        self._rows = None if ipc is None else _first_rows(file, index, ipc)
        self.heights, self.widths, self.labels = (
            np.asarray(column if self._rows is None else column[self._rows], np.int64)
            for column in (index.height, index.width, index.label)
        )

    def rows_of(self, rows: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the rows of the archive that these are."""
        return rows if self._rows is None else self._rows[rows]

    def read(self, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Read and decode images, uint8 (H, W, 3)."""
        file = self._file
        rows = self.rows_of(np.asarray(rows, np.int64)).tolist()
        with naming(display_name(file.path)):
            if self.stream is None:
                return file.decode_images(rows)
            files = self.stream.read(rows)
            return [file.decode_bytes(row, data) for row, data in zip(rows, files, strict=True)]

    def targets(self) -> list[int]:
        """Return the class of every image."""
        return self.labels.tolist()


def _first_rows(file: Archive, index: Index, ipc: int) -> NDArray[np.int64]:
    """Return the rows of the first ``ipc`` images of each class."""
    images = file.manifest.images
    if images is UNSET or images.order is UNSET:
        text = "the archive does not say that its images lie in order of value, so none come first"
        advice = "`hello pack --ordered` says it of images that do"
        raise UserInputError.make("E_OPTION", text, argument="ipc", advice=advice)
    counts = np.bincount(index.label, minlength=file.manifest.classes)
    short = int(counts.argmin())
    if counts[short] < ipc:
        key = printable(file.classes.keys[short], 40)
        text = f"class `{key}` has {counts[short]} images; expected at least {ipc}"
        raise UserInputError.make("E_DATA", text, argument="ipc")
    return np.flatnonzero(index.numbers_in_class() < ipc)


class UserImages:
    """Images of the user's dataset; a size or class is known once its image is read."""

    def __init__(self, images: ImageSource, classes: Sequence[str], *, needs_class: bool) -> None:
        """Check what can be checked before any image is read."""
        _check_source(images)
        count = len(images)
        if count == 0:
            raise UserInputError.make("E_DATA", "`images`; expected at least 1 image, got 0")
        self._images = images
        self._columns: Columns | None = None
        if hasattr(images, "features") and hasattr(images, "column_names"):
            self._columns = _columns_of(images, classes, needs_class=needs_class)
        self._classes = len(classes)
        # Shared by all workers.
        self._has_said = torch.zeros(1, dtype=torch.uint8).share_memory_()
        self.heights = np.zeros(count, np.int64)
        self.widths = np.zeros(count, np.int64)
        self.labels = np.full(count, -1, np.int64)

    def read(self, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Read and decode images, uint8 (H, W, 3), and keep their sizes and classes."""
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> NDArray[np.uint8]:
        if self._columns is not None:
            item, label = self._columns.read(row)
            if label is not None:
                self.labels[row] = self._checked(label)
        else:
            item = self._images[row]
            if isinstance(item, (tuple, list)) and len(cast("Sequence[object]", item)) == 2:
                item, label = cast("Sequence[Any]", item)
                self.labels[row] = self._checked(label)
        if not isinstance(item, (Image.Image, np.ndarray)):
            what = type(item).__name__
            if isinstance(item, torch.Tensor):
                what += f" {item.dtype} {tuple(item.shape)}"
            text = f"image {row}; expected a PIL image or a uint8 array (H, W, 3), got"
            text += f" {printable(what)}; views are made here, so give no transform"
            raise UserInputError.make("E_DATA", text)
        converted: Counter[str] = Counter()
        pixels = to_rgb(item, row, converted)
        self._say(row, converted)
        self.heights[row], self.widths[row] = pixels.shape[:2]
        return pixels

    def _say(self, row: int, converted: Counter[str]) -> None:
        """Warn once, in whichever worker comes first, that an image lost something."""
        if converted.keys() - GREY and not self._has_said:
            self._has_said.fill_(1)
            kinds = "; ".join(converted)
            _logger.warning("images: image %d %s; others are not reported", row, kinds)

    def _checked(self, label: object) -> int:
        try:
            value = operator.index(cast("Any", label))
        except TypeError:
            value = -1
        if not 0 <= value < self._classes:
            text = f"class of an image; expected an integer from 0 to {self._classes - 1}"
            raise UserInputError.make("E_DATA", f"{text}, got {printable(label)}")
        return value

    def targets(self) -> list[int]:
        """Return the class of every image."""
        if self._columns is not None:
            known = self._columns.targets()
        else:
            known = getattr(self._images, "targets", None)
        if known is None:
            text = "`images` has no attribute `targets`; expected one class per image"
            raise UserInputError.make("E_DATA", text)
        return [self._checked(label) for label in known]


def _check_source(images: object) -> None:
    if isinstance(images, Mapping):
        names = ", ".join(printable(repr(key), 40) for key in list(cast("Any", images))[:8])
        text = f"`images`; expected one data set, got {type(images).__name__} of {names}"
        raise UserInputError.make("E_OPTION", text + "; pass one of them, such as images['train']")
    is_text = isinstance(images, (str, bytes)) or hasattr(images, "__fspath__")
    if is_text or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        text = f"`images`; expected a data set with a length and items, got {type(images).__name__}"
        advice = "; for a folder per class pass torchvision.datasets.ImageFolder(PATH)"
        raise UserInputError.make("E_OPTION", text + (advice if is_text else ""))


def _columns_of(images: Any, classes: Sequence[str], *, needs_class: bool) -> Columns:
    """Return the columns to read, and say which they are."""
    columns = Columns("`images`", images, needs_class=needs_class)
    if needs_class:
        _check_names(columns.class_names, classes)
    choice = f"`{printable(columns.image)}` (Image) for images, "
    if columns.label is None:
        choice += "no column for classes"
    else:
        choice += f"`{printable(columns.label)}` (ClassLabel) for classes"
        if columns.class_names != list(classes):
            choice += ", which are called otherwise than the archive's: number 0 is its first"
    # A warning, so that it is shown even if logging is not set up.
    _logger.warning("images: a Hugging Face data set; reading %s", choice)
    return columns


def _check_names(names: Sequence[str], classes: Sequence[str]) -> None:
    """Raise E_DATA for classes that cannot be the archive's, or are in another order."""
    if len(names) != len(classes):
        text = f"classes of `images`; expected the archive's {len(classes)}, got {len(names)}"
        raise UserInputError.make("E_DATA", text)
    if list(names) != list(classes) and sorted(names) == sorted(classes):
        first = next(i for i, (a, b) in enumerate(zip(names, classes, strict=True)) if a != b)
        text = "order of the classes of `images`; expected the archive's, in which class"
        text += f" {first} is {printable(classes[first], 40)}, got {printable(names[first], 40)}"
        raise UserInputError.make("E_DATA", f"{text}; pass images.align_labels_with_mapping(...)")
