"""DATA as a command works on it: real images, and the views that networks will see of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hellofmt.archive import changed_views, default_views, read_class_lines
from hellofmt.errors import UserInputError
from hellofmt.sources import ArrayImages, read_source
from hellofmt_cli.console import console
from hellofmt_cli.output import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.archive import ClassLine, Views
    from hellofmt_cli.options import DataOptions

__all__ = ["Data", "read_data", "read_images", "steps_of"]


@dataclass(frozen=True)
class Data:
    """DATA as a command works on it.

    Attributes:
        images: all of it.
        views: how students will see it.
        workers: processes that read and decode it.
    """

    images: ArrayImages
    views: Views
    workers: int


def read_data(options: DataOptions) -> Data:
    """Read DATA, and say what was changed on the way.

    Views are random crops with flips, every second one under CutMix, unless the options say
    otherwise.

    Args:
        options: what the user typed.

    Returns:
        Images and views.

    Raises:
        UserInputError: the data or an option cannot be used.
        OSError: something cannot be read.
    """
    from hellofmt.making import default_workers

    changes = options.changes(mix="cutmix")
    lines = None
    if options.classes is not None:
        lines = read_class_lines(options.classes, say=console.say)
    images = read_images(list(options.data), options.view_size, lines)
    height, width = images.pixels.shape[1:3]
    if height != width:
        raise UserInputError.make(
            "E_OPTION",
            f"images are {width} x {height} pixels; pass `--view-size`, the side of a view",
        )
    number = count(len(images.classes), "class", "classes")
    console.say(f"data: {count(len(images), 'image')} of {number}, {height} x {width} pixels")
    views = changed_views(default_views(height), changes)
    workers = options.workers
    if workers is None:
        workers = 0 if isinstance(images, ArrayImages) else default_workers()
    return Data(images, views, workers)


def read_images(
    data: str | list[str], size: int | None, classes: Sequence[ClassLine] | None
) -> ArrayImages:
    """Read real images, and warn of what was changed on the way.

    Args:
        data: paths, or one name of a torchvision data set.
        size: side in pixels that images are brought to; None keeps theirs.
        classes: in label order; None takes those of the data.

    Raises:
        UserInputError: the data cannot be used.
        OSError: something cannot be read.
    """
    with console.stage("reading images"):
        images = read_source(data, size, classes=classes)
    for note in images.notes:
        console.warn(note)
    return images


def steps_of(epochs: int, images: int, batch_size: int) -> int:
    """Gradient steps of so many passes."""
    return max(1, -(-epochs * images // batch_size))
