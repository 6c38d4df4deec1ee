"""Pixels of views: draw the rows of a view table on a CPU, with the same bits in every batch.

Rejected: ``hellofmt_kernels.views``, which needs images of one size and is written for a GPU;
resizing in uint8, as Pillow does, which differs by a level in a fifth of all pixels and would label
other views than a GPU draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hellofmt.loading.views.buffers import new_batch
from hellofmt.loading.views.parts import CROP, Parts
from hellofmt.loading.views.resample import draw
from hellofmt_kernels import WEIGHT_ONE, ViewColumn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.views import Views

_BOX = slice(ViewColumn.Y0, ViewColumn.X1 + 1)
# Views whose taps are in memory at once.
_VIEWS = 256


def render(
    images: Sequence[NDArray[np.uint8]] | Mapping[int, NDArray[np.uint8]],
    table: NDArray[np.integer],
    views: Views,
) -> Tensor:
    """Draw the views that ``table`` describes, as the labeler takes them: not normalised.

    Per view: stored image / 255, patches shuffled (columns, then rows; lines left over by the
    division stay in place), cropped and resized to S x S with float weights, flipped, then
    the partner's view pasted inside the box or blended by the weight. Neighbours clamp to the crop.
    ``nearest`` takes the pixel under each output centre; what ``bicubic`` overshoots is clamped to
    [0, 1] last, after the mixing.
    torchvision's functional transforms give the same to 1e-6.

    Args:
        images: uint8 (H, W, 3) of each row of the dataset that the table names.
        table: (N, 20) as from ``view_table``.
        views: rules; size, interpolation and antialias are read.

    Returns:
        float32 (N, 3, S, S) in [0, 1], on the CPU. A view has the same bits in every batch.

    Example:
        >>> import numpy as np
        >>> from hellofmt.loading import mixed_labels, normalise, view_recipe, view_table
        >>> views, rows, sides = view_recipe("hello", 16), np.array([0, 1]), np.array([20, 24])
        >>> images = {0: np.zeros((20, 20, 3), np.uint8), 1: np.ones((24, 24, 3), np.uint8)}
        >>> table = view_table(
        ...     views, seed=0, epochs=0, indices=rows, heights=sides, widths=sides, count=2
        ... )
        >>> normalise(render(images, table, views), views).shape
        torch.Size([2, 3, 16, 16])
        >>> mixed_labels(table, np.array([0, 1]), classes=2, size=16).sum(axis=1).tolist()
        [1.0, 1.0]
    """
    out = new_batch((len(table), 3, views.size, views.size))
    whole = np.array([0, 0, views.size, views.size])
    for first in range(0, len(table), _VIEWS):
        rows = np.asarray(table[first : first + _VIEWS], np.int64)
        pixels = out[first : first + _VIEWS].numpy()
        shuffles = rows[:, ViewColumn.SHUFFLE : ViewColumn.PERMUTATION + 1]
        targets = np.arange(len(rows))
        own = Parts(targets, rows[:, :CROP], shuffles, np.tile(whole, (len(rows), 1)))
        draw(images, own, views, pixels, None)
        box = rows[:, _BOX]
        is_blended = rows[:, ViewColumn.WEIGHT] < WEIGHT_ONE
        is_pasted = (box[:, 0] < box[:, 2]) & (box[:, 1] < box[:, 3])
        # Blended first and everywhere: where both happen, the box shows the partner alone.
        for chosen, blend in ((is_blended, rows[:, ViewColumn.WEIGHT]), (is_pasted, None)):
            if chosen.any():
                boxes = box[chosen] if blend is None else np.tile(whole, (int(chosen.sum()), 1))
                crops = rows[chosen, CROP : 2 * CROP]
                partners = Parts(targets[chosen], crops, shuffles[chosen], boxes)
                draw(images, partners, views, pixels, blend)
    # Bicubic weights are negative in places and overshoot at edges.
    return out.clamp_(0.0, 1.0) if views.interpolation == "bicubic" else out
