"""Views: which part of which image, mixed with what, as a pure function of (seed, epoch, index).

``view_table`` decides, in integers; ``pixels.render`` draws; ``mixed_labels`` reads the mixing back
out of the table. A row of the table depends on its own coordinates and on
nothing else: not on the rest of the batch, the worker, the rank or earlier rows. So every quantity
is drawn from a numbered word (below) and never "until it fits": all ten tries of a random resized
crop have their own words whether they are needed or not. float64 and only operations that every
machine rounds alike (``hellofmt.loading.views.exact``), so the table is bit-identical everywhere.

==============  ====  ==========================================================================
stream          word  use
==============  ====  ==========================================================================
``VIEWS``       0     flip if u < ``flip``
``VIEWS``       1, 2  top, left of the chosen crop: an integer below (free pixels + 1)
``VIEWS``       3     permutation of the patch shuffle: an integer below (factor!)^2
``VIEWS``       4+2t  try t = 0..9: area fraction, uniform in ``crop_scale``
``VIEWS``       5+2t  try t = 0..9: width / height, log-uniform in ``crop_ratio``
``MIXING``      0     mix if u < ``mix_probability``
``MIXING``      1     partner: an integer below the number of rows
``MIXING``      2     lambda, the share of the row itself: quantile u of Beta(alpha, alpha)
``MIXING``      3, 4  row, column of the CutMix box's centre: integers below S
==============  ====  ==========================================================================

The crop is torchvision's ``RandomResizedCrop``: side lengths rounded half to even, the first try
that fits, else the central crop of the nearest allowed ratio. The box is torchvision's ``CutMix``:
half sides ``floor(S sqrt(1 - lambda) / 2)`` about the centre, cut at the border. The partner is
drawn from the whole dataset, so that it does not depend on the batch, and shows the crop and flip
that it has itself in this epoch; its own mixing is ignored and it takes the row's permutation. A
row that is not mixed, or whose box or weight leaves nothing of the partner, has its own columns as
partner.

Rejected: mixing inside the batch, as in CutMix's own code. It saves a second decode, which the
cache of decoded images saves too, and would make a label depend on who else is in the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from hellofmt.errors import UserInputError
from hellofmt.loading.views.crops import (
    PERMUTATION,
    VIEW_WORDS,
    ViewRules,
    crops_of,
    epoch_words,
    rules_of,
)
from hellofmt.loading.views.exact import beta_quantile
from hellofmt.rng import Stream, below, uniform
from hellofmt_kernels.views.row import VIEW_COLUMNS, WEIGHT_ONE, ViewColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.views import Views

MIX, PARTNER, LAMBDA, _CENTRE_Y, _CENTRE_X = 0, 1, 2, 3, 4
_MIXING_WORDS = 5

_OWN = slice(ViewColumn.IMAGE, ViewColumn.FLIP + 1)
_OTHER = slice(ViewColumn.PARTNER_IMAGE, ViewColumn.PARTNER_FLIP + 1)
_BOX = slice(ViewColumn.Y0, ViewColumn.X1 + 1)

#: Columns that name rows of the dataset: the image and its partner.
SHOWN_COLUMNS = [ViewColumn.IMAGE, ViewColumn.PARTNER_IMAGE]


def cut_boxes(
    rules: ViewRules, word: NDArray[np.uint64], share: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Choose torchvision's CutMix boxes: (N, 4) y0, x0, y1, x1, zeros if empty."""
    size = rules.size
    half = np.floor(0.5 * np.sqrt(1.0 - share) * size).astype(np.int64)
    y, x = below(word[:, _CENTRE_Y], size), below(word[:, _CENTRE_X], size)
    box = np.stack([y - half, x - half, y + half, x + half], axis=1)
    return np.where((half > 0)[:, None], np.clip(box, 0, size), 0)


def _coordinates(
    indices: NDArray[np.integer], epochs: NDArray[np.integer] | int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = np.asarray(indices, np.int64)
    if rows.ndim != 1:
        raise ValueError(f"`indices`: expected one dimension, got {rows.ndim}")
    if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < count):
        raise IndexError(f"`indices`: expected 0 to {count - 1}, got {rows.min()} to {rows.max()}")
    return rows, np.broadcast_to(np.asarray(epochs, np.int64), rows.shape)


def partners(
    views: Views,
    *,
    seed: int,
    epochs: NDArray[np.integer] | int,
    indices: NDArray[np.integer],
    count: int,
) -> NDArray[np.int64]:
    """Draw the row that each view is mixed with, or its own row if it is not mixed: int64 (N,).

    No size is needed for this: a loader whose images have unknown sizes decodes ``indices`` and
    these rows first. ``view_table`` may still find that nothing of the partner is visible.
    """
    rules = rules_of(views)
    rows, passes = _coordinates(indices, epochs, count)
    return _partners(rules, mixing_words(rules, seed, passes, rows), rows, count)


def mixing_words(
    rules: ViewRules, seed: int, passes: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Draw the words that decide about mixing: (N, 5), or (N, 0) if nothing is mixed."""
    used = 0 if rules.mix == "none" else _MIXING_WORDS
    return epoch_words(seed, passes, Stream.MIXING, rows, used)


def _partners(
    rules: ViewRules, word: NDArray[np.uint64], rows: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    if rules.mix == "none" or not rows.size:
        return rows.copy()
    is_mixed = uniform(word[:, MIX]) < rules.probability
    return np.where(is_mixed, below(word[:, PARTNER], count), rows)


def view_table(
    views: Views,
    *,
    seed: int,
    epochs: NDArray[np.integer] | int,
    indices: NDArray[np.integer],
    heights: NDArray[np.integer],
    widths: NDArray[np.integer],
    count: int,
) -> NDArray[np.int32]:
    """Make the parameters that ``render`` takes of views (seed, epoch, index): 20 integers each.

    They are bit-identical on every machine. The module's docstring lists the words behind each
    column, ``hellofmt_kernels.views.row.ViewColumn`` what the columns mean. Image and partner
    columns are rows of the dataset.

    Args:
        views: rules of the views.
        seed: seed of the views, 0 <= seed < 2**64.
        epochs: one epoch, or one per index (N,); 0 <= epoch < 2**32.
        indices: (N,) rows of the dataset; may repeat.
        heights: (count,) pixels; only those of ``indices`` and their partners are read.
        widths: (count,) pixels, likewise.
        count: rows in the dataset, >= 1.

    Returns:
        int32 (N, 20).

    Raises:
        UserInputError: E_OPTION, a rule is out of range.
        IndexError: an index is out of range.
        ValueError: a coordinate is out of range, or a size that is needed is not positive.
    """
    rules = rules_of(views)
    rows, passes = _coordinates(indices, epochs, count)
    word = mixing_words(rules, seed, passes, rows)
    other = _partners(rules, word, rows, count)
    table = np.zeros((rows.size, VIEW_COLUMNS), np.int64)
    if not rows.size:
        return table.astype(np.int32)
    # Partners as further rows of one call, so that a partner cannot differ from the row it is.
    is_mixed = other != rows
    both = np.concatenate([rows, other[is_mixed]])
    view_words = epoch_words(
        seed, np.concatenate([passes, passes[is_mixed]]), Stream.VIEWS, both, VIEW_WORDS
    )
    tall, wide = np.asarray(heights, np.int64)[both], np.asarray(widths, np.int64)[both]
    if int(tall.min()) < 1 or int(wide.min()) < 1:
        raise ValueError("`heights`, `widths`: expected at least 1 px for every row in use")
    crops = np.concatenate([both[:, None], crops_of(rules, view_words, tall, wide)], axis=1)
    table[:, _OWN] = table[:, _OTHER] = crops[: rows.size]
    table[:, ViewColumn.WEIGHT] = WEIGHT_ONE
    table[:, ViewColumn.SHUFFLE] = rules.shuffle
    if rules.shuffle > 1:
        table[:, ViewColumn.PERMUTATION] = below(
            view_words[: rows.size, PERMUTATION], math.factorial(rules.shuffle) ** 2
        )
    if is_mixed.any():
        mixed = table[is_mixed]
        share = beta_quantile(uniform(word[is_mixed, LAMBDA]), rules.alpha)
        if rules.mix == "cutmix":
            mixed[:, _BOX] = cut_boxes(rules, word[is_mixed], share)
            is_visible = mixed[:, ViewColumn.Y0] < mixed[:, ViewColumn.Y1]
        else:
            mixed[:, ViewColumn.WEIGHT] = np.rint(share * WEIGHT_ONE).astype(np.int64)
            is_visible = mixed[:, ViewColumn.WEIGHT] < WEIGHT_ONE
        mixed[is_visible, _OTHER] = crops[rows.size :][is_visible]
        table[is_mixed] = mixed
    return table.astype(np.int32)


def plain_table(
    indices: NDArray[np.integer], heights: NDArray[np.integer], widths: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Make the parameters of whole images, unflipped, unmixed: int32 (N, 20), as ``view_table``."""
    rows = np.asarray(indices, np.int64)
    table = np.zeros((rows.size, VIEW_COLUMNS), np.int32)
    table[:, ViewColumn.IMAGE] = rows
    table[:, ViewColumn.HEIGHT] = np.asarray(heights)[rows]
    table[:, ViewColumn.WIDTH] = np.asarray(widths)[rows]
    table[:, _OTHER] = table[:, _OWN]
    table[:, ViewColumn.WEIGHT] = WEIGHT_ONE
    table[:, ViewColumn.SHUFFLE] = 1
    return table


def rows_shown(table: NDArray[np.int32]) -> list[int]:
    """List every row of the dataset that a table shows, sorted, once each."""
    # `np.unique` would import `numpy.ma` for it.
    return sorted(set(table[:, SHOWN_COLUMNS].ravel().tolist()))


def mixed_labels(
    table: NDArray[np.integer],
    labels: NDArray[np.integer] | Sequence[int],
    classes: int,
    *,
    size: int,
) -> Tensor:
    """Compute the hard labels of mixed views: each class's share of the view; see ``render``.

    The partner's share is the area of its box, after the cut at the border, over S^2; outside the
    box it is 1 - weight / 65536.

    Args:
        table: (N, 20) as from ``view_table``.
        labels: class of every row of the dataset, in 0..C-1; only rows in the table are read.
        classes: C, number of classes.
        size: S, side of the view in pixels.

    Returns:
        float32 (N, C); rows sum to 1.

    Raises:
        UserInputError: E_DATA, a label is out of range.
    """
    box = np.asarray(table[:, _BOX], np.int64)
    area = np.maximum(box[:, 2] - box[:, 0], 0) * np.maximum(box[:, 3] - box[:, 1], 0)
    weight = table[:, ViewColumn.WEIGHT].astype(np.float64) / WEIGHT_ONE
    share = weight * (1.0 - area / float(size * size))
    every = np.asarray(labels)
    own = every[table[:, ViewColumn.IMAGE]]
    other = every[table[:, ViewColumn.PARTNER_IMAGE]]
    if len(table) and not (
        min(own.min(), other.min()) >= 0 and max(own.max(), other.max()) < classes
    ):
        low, high = min(own.min(), other.min()), max(own.max(), other.max())
        text = f"label out of range; expected 0 to {classes - 1}, got {low} to {high}"
        raise UserInputError.make("E_DATA", text)
    out = np.zeros((len(table), classes), np.float64)
    at = np.arange(len(table))
    out[at, own] += share
    out[at, other] += 1.0 - share
    return torch.from_numpy(out.astype(np.float32))
