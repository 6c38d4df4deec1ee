"""scikit-learn's handwritten digits, the data of the demo."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from PIL import Image

from hellofmt.archive.format.classes import ClassLine
from hellofmt.errors import UserInputError
from hellofmt.sources.arrays import ArrayImages

_NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(size: int = 16) -> ArrayImages:
    """scikit-learn's digits: 1,797 handwritten digits of 43 people, 8 x 8, resized bilinearly.

    Real scans (UCI "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998; CC BY
    4.0) that come with scikit-learn, so nothing is downloaded. Values 0..16 become 0..255.

    Args:
        size: side in pixels, >= 8.

    Returns:
        The images, grey as three equal channels, classes ``0`` to ``9``.

    Raises:
        UserInputError: scikit-learn is not installed (E_OPTION).

    Example:
        >>> images = digits(8)
        >>> len(images), len(images.classes)
        (1797, 10)
    """
    try:
        # Only the demo needs it, and only its extra installs it.
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserInputError.make(
            "E_OPTION", "the digits come with scikit-learn; `pip install 'hellofmt[demo]'`"
        ) from None
    data: Any = load_digits()
    grey = np.round(np.asarray(data["images"], np.float64) * (255.0 / 16.0)).astype(np.uint8)
    scaled = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        for image in grey
    ]
    pixels = np.repeat(np.stack(scaled)[..., None], 3, axis=3)
    classes = tuple(ClassLine(str(i), (_NAMES[i],)) for i in range(10))
    return ArrayImages(pixels, np.asarray(data["target"], np.int64), classes, "digits")
