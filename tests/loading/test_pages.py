from __future__ import annotations

import numpy as np

from hellofmt.loading.pages import pages_of


def test_no_image_lies_on_another_or_beyond_a_page():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 9, (2, 60))
    layout = pages_of(heights, widths, 8, 9)
    covered = np.zeros(layout.shape, int)
    for (page, top, left), height, width in zip(layout.places, heights, widths, strict=True):
        part = covered[page, top : top + height, left : left + width]
        assert part.shape == (height, width)
        part += 1
    assert covered.max() == 1


def test_images_of_one_size_have_a_page_each():
    layout = pages_of(np.full(4, 6), np.full(4, 5), 6, 5)
    assert layout.shape == (4, 6, 5)
    assert layout.places.tolist() == [[k, 0, 0] for k in range(4)]


def test_one_large_image_leaves_the_others_their_size():
    heights, widths = np.full(10_000, 256), np.full(10_000, 256)
    heights[17], widths[17] = 4000, 3000
    layout = pages_of(heights, widths, 4000, 3000)
    # Frames of the largest size would take 360 GB.
    assert np.prod(layout.shape) < 1.15 * (heights * widths).sum()
