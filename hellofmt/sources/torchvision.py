"""Data sets of torchvision that are on disk already."""

from __future__ import annotations

import inspect
import operator
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torchvision

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.format.images import DECODE_ERRORS
from hellofmt.errors import UserInputError, did_you_mean, foreign_text, printable
from hellofmt.sources.arrays import Frames
from hellofmt.sources.decode import decode_rgb, to_rgb
from hellofmt.sources.listing import Listing, placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.sources.arrays import ArrayImages

__all__ = ["read_torchvision"]


def read_torchvision(
    text: str, size: int | None = None, *, classes: Sequence[ClassLine] | None = None
) -> ArrayImages:
    """Read a data set of torchvision into memory: ``NAME:ROOT``, or ``NAME:ROOT:SPLIT``.

    Nothing is downloaded. Some of its data sets (CIFAR) come as pickles, which torchvision reads
    after checking their published digest. Keys of the classes are WordNet ids where the data set
    has them (``ImageNet``, ``Imagenette``), else its names, else numbers.

    Args:
        text: such as ``CIFAR10:data``, ``STL10:data:test``; the training split if none is named.
        size: as for ``read_source``.
        classes: the classes in label order; see ``placed``.

    Returns:
        The images. Files that torchvision opens itself are read by content, as those of a folder;
        what a data set converts on its own cannot be seen.

    Raises:
        UserInputError: unknown name or split (E_OPTION), not on disk, no images with one class
            each, an image that cannot be read, or classes that do not match (E_DATA).
    """
    name, _, rest = text.partition(":")
    dataset = _opened(name, *_place(rest))
    own = _class_lines(dataset)
    if own is not None:
        # Refused before an hour of decoding.
        placed(_listing(name, own), classes)
    frames = Frames(len(dataset), size)
    if isinstance(dataset, torchvision.datasets.DatasetFolder):

        def load(path: str) -> NDArray[np.uint8]:
            return decode_rgb(Path(path).read_bytes(), path, frames.converted)

        # Its own loader converts 16 bits and alpha to RGB without a word.
        dataset.loader = load
    labels: list[int] = []
    for number in range(len(dataset)):
        where = f"{name} image {number}"
        try:
            image, label = dataset[number]
            labels.append(operator.index(label))
        except UserInputError:
            raise
        except (*DECODE_ERRORS, AttributeError) as error:
            raise UserInputError.make(
                "E_DATA",
                f"torchvision's {printable(where)}: expected an image with one class:"
                f" {foreign_text(error)}",
            ) from error
        frames.add(to_rgb(image, where, frames.converted), where)
    if own is None:
        own = [ClassLine(str(label), (str(label),)) for label in range(max(labels, default=0) + 1)]
    if not 0 <= min(labels, default=0) <= max(labels, default=0) < len(own):
        raise UserInputError.make(
            "E_DATA",
            f"torchvision's `{printable(name)}`: labels {min(labels)} to {max(labels)}; expected 0"
            f" to {len(own) - 1}",
        )
    lines, place, notes = placed(_listing(name, own), classes)
    places = np.array([place[line.key] for line in own], np.int64)
    return frames.images(places[np.array(labels, np.int64)], lines, name.lower(), notes)


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


def _listing(name: str, own: list[ClassLine]) -> Listing:
    """The classes as ``placed`` takes them; numbers that the data set does not name are labels."""
    keys = [line.key for line in own]
    is_numbered = keys == [str(label) for label in range(len(keys))]
    return Listing(name.lower(), [], keys, own, is_numbered=is_numbered)
