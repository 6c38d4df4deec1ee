"""Choose the images that an archive stores: which of a class, in which order, and what of each.

Crops and mosaics are RDED's (Sun et al., "On the diversity and realism of distilled dataset", CVPR
2024), as its code does them (LINs-lab/RDED ``synthesize/``), with three differences. The choice is
seeded, by the counter generator, while RDED's is not. Stored pixels are those that were cut, of 8
bits, where RDED compresses them to JPEG. And images come in order of value: the first mosaic holds
the best crops, the second the next ones, so that the first k of a class are the choice for k, while
RDED gives every mosaic one of the best.

A crop is scored at the size it will have in the mosaic, zero-padded to the full view *after*
normalising, so that the border is the mean colour and not black.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hellofmt.distillation.candidates import Cut, Eyes, drawn
from hellofmt.distillation.coverage import balanced_order, coverage_order
from hellofmt.distillation.selection import METHODS, Selection
from hellofmt.errors import UserInputError, printable
from hellofmt.runs.progress import Progress
from hellofmt.runs.workers import made

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.views import Views
    from hellofmt.distillation.selection import SelectSettings
    from hellofmt.projector import Labeler
    from hellofmt.sources import Source

_UNIT: Final = 64
"""Images that are cut and looked at at once, of one class."""


def check_selection(source: Source, views: Views, settings: SelectSettings) -> None:
    """Refuse what ``select_images`` could not do, without doing it."""
    if settings.method not in METHODS or settings.crop not in {None, "none", "easiest"}:
        raise UserInputError.make(
            "E_OPTION",
            f"`method` and `crop`: expected one of {', '.join(METHODS)}, and `none` or `easiest`,"
            f" got `{printable(settings.method)}` and `{printable(settings.crop)}`",
        )
    if settings.method == "balanced" and find_spec("sklearn") is None:
        raise UserInputError.make(
            "E_OPTION", "a balanced choice needs scikit-learn; `pip install 'hellofmt[balanced]'`"
        )
    if settings.ipc < 1 or settings.factor < 1:
        raise UserInputError.make(
            "E_OPTION",
            f"`ipc` and `factor`: expected at least 1, got {settings.ipc}, {settings.factor}",
        )
    if views.size % settings.factor:
        raise UserInputError.make(
            "E_OPTION",
            f"`factor`: expected a divisor of the view size {views.size}, got {settings.factor}",
        )
    needed = settings.ipc * settings.factor**2
    counts = np.bincount(source.labels, minlength=len(source.classes))
    available = np.minimum(counts, settings.candidates)
    short = np.flatnonzero(available < needed)
    if short.size:
        first = int(short[0])
        raise UserInputError.make(
            "E_DATA",
            f"class `{printable(source.classes[first].key)}` has {available[first]} candidates;"
            f" expected at least {needed} for {settings.ipc} images of {settings.factor**2} crops",
        )


def select_images(
    source: Source,
    teacher: Callable[[Tensor], Tensor],
    views: Views,
    settings: SelectSettings,
    *,
    labeler: Labeler | None = None,
    workers: int = 0,
    path: Path | None = None,
) -> Selection:
    """Choose the stored images.

    Of the candidates of a class, drawn at random, these come first:

    * ``random``: those drawn first.
    * ``rded``: those that the teacher is surest of, by its cross-entropy; a tie goes to the one
      drawn first.
    * ``coverage``: those that the others are nearest to in the label function's embeddings of whole
      images (``coverage_order``).
    * ``balanced``: half of them such, and half such among hard images (``balanced_order``).

    Cell k (row-major) of image i of a class is number ``i * factor**2 + k`` in that order, so the
    first images of each class are the choice for fewer.

    Under ``torchrun`` every process must call this; each looks at its share of the classes, in the
    same batches whatever the number of processes, and so is the choice, to the bit.

    Args:
        source: real images.
        teacher: views (N, 3, S, S) in [0, 1] to logits, on its own device if it is a module.
        views: size, interpolation and mean are read.
        settings: how many, from what, and by which method.
        labeler: the label function, for ``coverage`` and ``balanced``.
        workers: number of processes that decode images ahead.
        path: file of the stage's result, beside which parts are kept; None keeps nothing.

    Returns:
        The selection.

    Raises:
        UserInputError: E_OPTION: a setting is out of range, or something is missing; E_DATA: too
            few images in a class.
        HelloError: an image cannot be used.
        OSError: an image cannot be read, or a part cannot be written.

    Example:
        >>> import hellofmt
        >>> from hellofmt.distillation import DistillSettings, SelectSettings, write_distilled
        >>> from hellofmt.sources import open_source
        >>> with hellofmt.open("photos.hello") as archive:
        ...     function, views = hellofmt.Projector.from_file(archive), archive.manifest.views
        >>> source, how = open_source("photos"), SelectSettings(ipc=1, factor=2, candidates=4)
        >>> chosen = select_images(source, function, views, how, labeler=function.labeler())
        >>> chosen.labels.tolist()
        [0, 1, 2]
        >>> name = write_distilled(
        ...     "chosen.hello", chosen, function, source, views, DistillSettings(how)
        ... )
    """
    check_selection(source, views, settings)
    if settings.is_embedded and labeler is None:
        raise UserInputError.make(
            "E_OPTION", f"`{settings.method}` needs `labeler`, a label function; got None"
        )
    needed, classes = settings.ipc * settings.factor**2, len(source.classes)
    candidates = drawn(source, settings)
    eyes = Eyes(settings, teacher, labeler, views)
    # One class at a time: neither pixels nor embeddings of all fit in memory.
    arrays = {
        "rows": np.zeros((classes, needed), np.int64),
        "crops": np.zeros((classes, needed, 4), np.int32),
    }
    progress = Progress(arrays, 1, path)
    parts = (part for unit in progress.units for part in _parts(candidates[unit.start]))
    stream = made(Cut(source, settings, views), parts, workers=workers)
    for unit in progress.filled():
        rows = candidates[unit.start]
        seen = [eyes(next(stream), unit.start) for _ in _parts(rows)]
        # What cannot be read showed another image instead.
        is_usable = ~source.unreadable()[rows]
        found = {name: np.concatenate([s[name] for s in seen])[is_usable] for name in seen[0]}
        if is_usable.sum() < needed:
            arrays["rows"][unit] = -1
            continue
        order = _order(settings, found, needed)
        arrays["rows"][unit] = rows[is_usable][order]
        arrays["crops"][unit] = found["boxes"][order]
    whole = progress.whole()
    short = np.flatnonzero(whole["rows"][:, 0] < 0)
    if short.size:
        raise UserInputError.make(
            "E_DATA",
            f"class `{printable(source.classes[short[0]].key)}` has too few candidates that can be"
            " read",
        )
    cells = settings.factor**2
    return Selection(
        np.repeat(np.arange(classes, dtype=np.int64), settings.ipc),
        whole["rows"].reshape(-1, cells),
        whole["crops"].reshape(-1, cells, 4),
    )


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[at : at + _UNIT] for at in range(0, len(rows), _UNIT)]


def _order(
    settings: SelectSettings, found: dict[str, NDArray[Any]], needed: int
) -> NDArray[np.int64]:
    """The places of the first ``needed`` images of a class."""
    if settings.method == "coverage":
        return coverage_order(found["embeddings"], needed)
    if settings.method == "balanced":
        return balanced_order(found["embeddings"], found["entropies"], needed)
    if settings.method == "rded":
        return np.argsort(found["losses"], kind="stable")[:needed]
    return np.arange(needed)
