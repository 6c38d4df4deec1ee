import hashlib
import math

import numpy as np
import pytest

from hellofmt.archive.format.probes import probe_images


def word(p, j):
    """Word j of probe p from NumPy's own Philox, which increments its counter first."""
    counter = (j // 4 + (p << 192) - 1) % 2**256
    return int(np.random.Philox(key=6 << 64, counter=counter).random_raw(4)[j % 4])


@pytest.mark.parametrize("size", [5, 8])
def test_pixels_follow_the_rule(size):
    images = probe_images(size, 3)
    cell = math.ceil(2 * size / 8)
    side = 8 * cell
    assert images.shape == (3, side, side, 3)
    assert images.dtype == np.uint8
    for p, y, x, c in [
        (0, 0, 0, 0),
        (2, side - 1, side - 1, 2),
        (1, 3, 7, 1),
        (1, side // 2, 1, 0),
    ]:
        colour = word(p, ((y // cell) * 8 + x // cell) * 3 + c) >> 56
        noise = (word(p, 192 + (y * side + x) * 3 + c) >> 59) - 16
        assert images[p, y, x, c] == min(max(colour + noise, 0), 255)


def test_golden_digest():
    data = probe_images(32, 2).tobytes()
    assert (
        hashlib.sha256(data).hexdigest()
        == "efe2decd403b00702631489a0f0a5d0c5b2829650484804a63cb90c2e85dc4b3"
    )


def test_a_picture_does_not_depend_on_the_count():
    assert (probe_images(8, 4)[1] == probe_images(8, 2)[1]).all()
