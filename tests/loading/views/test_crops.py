"""Crops that are drawn one image at a time are those of ``view_table``."""

from __future__ import annotations

import numpy as np
import pytest

from hellofmt.archive import default_views
from hellofmt.loading.views.crops import CropDraws
from hellofmt.loading.views.table import ViewColumn, view_table


@pytest.mark.parametrize("ratio", [["0.75", "1.3333333333333333"], ["0.1", "0.2"], ["1", "1"]])
@pytest.mark.parametrize("scale", [["0.08", "1"], ["0.9", "1"]])
def test_they_are_those_of_the_view_table(ratio, scale):
    import msgspec

    views = msgspec.structs.replace(
        default_views(32), crop_ratio=ratio, crop_scale=scale, mix="none", mix_probability="0"
    )
    random = np.random.default_rng(0)
    heights, widths = random.integers(1, 900, (2, 300))
    heights[:20], widths[20:40] = 1, 1
    rows, epochs = np.arange(300), random.integers(0, 3, 300)
    table = view_table(
        views, seed=7, epochs=epochs, indices=rows, heights=heights, widths=widths, count=300
    )
    draws = CropDraws(views, seed=7, epochs=epochs, rows=rows)
    boxes = [draws.box(i, int(heights[i]), int(widths[i])) for i in range(300)]
    assert boxes == [tuple(box) for box in table[:, ViewColumn.TOP : ViewColumn.WIDTH + 1].tolist()]
    assert draws.flips.tolist() == (table[:, ViewColumn.FLIP] == 1).tolist()
