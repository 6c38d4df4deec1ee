"""Data sets of torchvision that are on disk already, read image by image."""

from __future__ import annotations

import hashlib
import inspect
import operator
import re
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torchvision

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.format.images import DECODE_ERRORS
from hellofmt.errors import UserInputError, did_you_mean, foreign_text, printable
from hellofmt.sources.decode import to_rgb
from hellofmt.sources.files import FileSource, list_files
from hellofmt.sources.listing import Listing
from hellofmt.sources.places import placed
from hellofmt.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Where its data sets keep their labels: no part of its interface, so compared.
_LABELS: Final = ("targets", "labels", "_labels", "y")
_COMPARED: Final = 8


def open_torchvision(
    text: str, classes: Sequence[ClassLine] | None = None, *, skips_unreadable: bool = False
) -> Source:
    """Open a data set of torchvision: ``NAME:ROOT``, or ``NAME:ROOT:SPLIT``.

    Nothing is downloaded. Some of its data sets (CIFAR) come as pickles, which torchvision reads
    after checking their published digest. Keys of the classes are WordNet ids where the data set
    has them (``ImageNet``, ``Imagenette``), else its names, else numbers.

    Data sets that name their files (``ImageFolder`` and what derives from it, ``Imagenette``) are
    read as our own folders are; others open their images themselves, and what they convert on their
    own cannot be seen. Labels are taken from the attribute in which a data set keeps them, if it
    gives the same for eight images as the data set does; else every image is opened once for its
    label.
    """
    name, _, rest = text.partition(":")
    dataset = _opened(name, *_place(rest))
    own = _class_lines(dataset)
    if own is not None:
        # Refused before an hour of reading labels.
        placed(_listing(name, own), classes)
    if not len(dataset):
        raise UserInputError.make("E_DATA", f"torchvision's `{printable(name)}` has no images")
    paths, labels = _paths_and_labels(name, dataset)
    if own is None:
        own = [ClassLine(str(label), (str(label),)) for label in range(int(labels.max()) + 1)]
    if not 0 <= labels.min() <= labels.max() < len(own):
        raise UserInputError.make(
            "E_DATA",
            f"torchvision's `{printable(name)}`: labels {labels.min()} to {labels.max()}; expected"
            f" 0 to {len(own) - 1}",
        )
    listing = replace(_listing(name, own), key_of=labels.astype(np.int32))
    if paths:
        listing = list_files(listing, paths)
        return FileSource(listing, classes, skips_unreadable=skips_unreadable)
    listing = replace(listing, digest=_digest(name, dataset))
    return TorchvisionSource(name, dataset, listing, classes, skips_unreadable=skips_unreadable)


class TorchvisionSource(Source):
    """A data set that opens its own images."""

    def __init__(
        self,
        name: str,
        dataset: Any,
        listing: Listing,
        classes: Sequence[ClassLine] | None = None,
        *,
        skips_unreadable: bool = False,
    ) -> None:
        super().__init__(listing, classes, skips_unreadable=skips_unreadable)
        self._dataset, self._kind = dataset, name

    def _read(self, row: int) -> NDArray[np.uint8]:
        image, _ = _item(self._kind, self._dataset, row)
        kinds = Counter[str]()
        pixels = to_rgb(image, self._name_of(row), kinds)
        self._note(row, kinds)
        return pixels

    def _name_of(self, row: int) -> str:
        return f"{self._kind} image {row}"


def _item(name: str, dataset: Any, row: int) -> tuple[Any, int]:
    """An image and its label."""
    try:
        image, label = dataset[row]
        return image, operator.index(label)
    except UserInputError:
        raise
    except (*DECODE_ERRORS, AttributeError) as error:
        raise UserInputError.make(
            "E_DATA",
            f"torchvision's {printable(name)} image {row}: expected an image with one class:"
            f" {foreign_text(error)}",
        ) from error


def _paths_and_labels(name: str, dataset: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The files of the images, if that is all they are, and their labels."""
    if isinstance(dataset, torchvision.datasets.DatasetFolder):
        return [path for path, _ in dataset.samples], np.array(dataset.targets, np.int64)
    count = len(dataset)
    compared = list(range(0, count, max(1, count // _COMPARED)))
    expected = [_item(name, dataset, row)[1] for row in compared]

    def is_right(labels: NDArray[np.int64]) -> bool:
        is_plain = labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer)
        return is_plain and labels[compared].tolist() == expected

    pairs = getattr(dataset, "_samples", None)
    if isinstance(pairs, list) and isinstance(pairs[0][0], str):
        labels = np.array([label for _, label in pairs])
        if is_right(labels):
            return [path for path, _ in pairs], labels.astype(np.int64)
    for attribute in _LABELS:
        with suppress(AttributeError, ValueError, RuntimeError):
            labels = np.asarray(getattr(dataset, attribute))
            if is_right(labels):
                return [], labels.astype(np.int64)
    return [], np.array([_item(name, dataset, row)[1] for row in range(count)], np.int64)


def _digest(name: str, dataset: Any) -> str:
    """Of the pixels that a data set holds in memory, else of a few of its images."""
    digest = hashlib.sha256(f"{name} {len(dataset)}".encode())
    data = getattr(dataset, "data", None)
    if isinstance(data, np.ndarray) and data.dtype == np.uint8:
        digest.update(np.ascontiguousarray(data).data)
    else:
        for row in range(0, len(dataset), max(1, len(dataset) // _COMPARED)):
            digest.update(to_rgb(_item(name, dataset, row)[0], f"{name} image {row}").tobytes())
    return digest.hexdigest()


def _listing(name: str, own: list[ClassLine]) -> Listing:
    """The classes as ``placed`` takes them; numbers that the data set does not name are labels."""
    keys = [line.key for line in own]
    is_numbered = keys == [str(label) for label in range(len(keys))]
    return Listing(name.lower(), keys, own, is_numbered=is_numbered)


def _place(text: str) -> tuple[str, str]:
    r"""Root and split of ``ROOT[:SPLIT]``; the colon of ``C:\data`` belongs to the root."""
    drive = text[:2] if re.match(r"[A-Za-z]:[\\/]", text) else ""
    root, _, split = text[len(drive) :].partition(":")
    return drive + root, split


def _opened(name: str, root: str, split: str) -> Any:
    """The data set of a name, from disk."""
    kind: Any = getattr(torchvision.datasets, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torchvision.datasets.VisionDataset)):
        raise UserInputError.make(
            "E_OPTION",
            f"torchvision has no data set `{printable(name)}`; expected `torchvision:NAME:ROOT`",
            advice=did_you_mean(name, torchvision.datasets.__all__),
        )
    known = inspect.signature(kind).parameters
    if "root" not in known:
        raise UserInputError.make(
            "E_OPTION", f"torchvision's `{printable(name)}` does not read images from a folder"
        )
    options: dict[str, Any] = {}
    if "train" in known and split in ("", "train", "test"):
        options["train"] = split != "test"
    elif "split" in known and "train" not in known:
        options["split"] = split or "train"
    elif split:
        raise UserInputError.make(
            "E_OPTION",
            f"torchvision's `{printable(name)}` has no split `{printable(split)}`; expected"
            f" {'`train` or `test`' if 'train' in known else 'none'}",
        )
    try:
        return kind(root, **options)
    except Exception as error:
        # Some need more than a root, or a library; what each raises is its own business.
        raise UserInputError.make(
            "E_DATA", f"cannot read torchvision's `{name}`: {foreign_text(error)}"
        ) from error


def _class_lines(dataset: Any) -> list[ClassLine] | None:
    """The classes that a data set names itself; the names of one may be a text or several."""
    named: Any = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not named:
        return None
    names = [", ".join(each) if isinstance(each, list | tuple) else str(each) for each in named]
    keys = list(map(str, getattr(dataset, "wnids", ())))
    if len(keys) != len(names):
        keys = names
    return [ClassLine(*pair) for pair in zip(keys, map(_split, names), strict=True)]


def _split(names: str) -> tuple[str, ...]:
    return tuple(names.split(", "))
