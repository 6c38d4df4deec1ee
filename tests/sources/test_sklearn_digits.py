"""The digits of the demo."""

import sys

import numpy as np
import pytest

from hellofmt.errors import UserInputError
from hellofmt.sources import digits


def test_digits_are_the_real_scans():
    data = digits(8)
    assert data.pixels.shape == (1797, 8, 8, 3)
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The first row of the first scan is 0 0 5 13 9 1 0 0 in sixteenths.
    assert data.pixels[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert np.array_equal(data.pixels[..., 0], data.pixels[..., 2])
    assert [line.key for line in data.classes] == list("0123456789")
    assert digits(16).pixels.shape == (1797, 16, 16, 3)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserInputError, match=r"pip install 'hellofmt\[demo\]'"):
        digits()
