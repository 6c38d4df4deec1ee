"""Squares of images, against Pillow on the whole image."""

import io

import numpy as np
import pytest
from PIL import Image

from hellofmt.errors import UserInputError
from hellofmt.sources.crops import decode_centre, decode_crop


class Files:
    """A source of encoded images."""

    skips_unreadable = False

    def __init__(self, *files):
        self.files, self.noted = files, {}

    def read(self, row):
        return self.files[row]

    def name_of(self, row):
        return f"{row}.jpg"

    def note(self, row, kinds=()):
        self.noted[row] = list(kinds)


def picture(height, width):
    """Slow waves, which every scale shows alike."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 19 + k) + np.cos(y / 23 - k) for k in range(3)]
    return (127.5 + 60 * np.stack(waves, 2)).clip(0, 255).astype(np.uint8)


def encoded(pixels, kind, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def expected(data, box, size, filter=Image.Resampling.BILINEAR):
    top, left, height, width = box
    with Image.open(io.BytesIO(data)) as image:
        cut = image.convert("RGB").crop((left, top, left + width, top + height))
    return np.asarray(cut.resize((size, size), filter))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("box", [(3, 5, 40, 31), (0, 0, 61, 83)])
def test_a_crop_of_the_original(kind, box):
    data = encoded(picture(61, 83), kind)
    asked = []
    crop = decode_crop(Files(data), 0, lambda *shape: asked.append(shape) or box, 32)
    assert asked == [(61, 83)]
    if kind == "PNG" or min(box[2:]) < 64:
        np.testing.assert_array_equal(crop, expected(data, box, 32))
    else:
        assert np.abs(crop.astype(int) - expected(data, box, 32)).mean() < 1


def test_bicubic_and_arrays():
    pixels, box = picture(61, 83), (3, 5, 40, 31)
    data = encoded(pixels, "PNG")
    crop = decode_crop(Files(pixels), 0, lambda *_: box, 32, "bicubic")
    np.testing.assert_array_equal(crop, expected(data, box, 32, Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("side", "factor"), [(63, 1), (64, 2), (127, 2), (128, 4), (256, 8), (301, 8)]
)
def test_jpeg_is_decoded_at_the_smallest_scale_that_covers_the_crop(side, factor, monkeypatch):
    data = encoded(picture(310, 401), "JPEG", quality=95)
    loaded = []
    load = Image.Image.crop
    monkeypatch.setattr(
        Image.Image, "crop", lambda self, box: loaded.append(self.size) or load(self, box)
    )
    box = (7, 13, side, side)
    crop = decode_crop(Files(data), 0, lambda *_: box, 32)
    assert crop.shape == (32, 32, 3)
    assert loaded == [(-(-401 // factor), -(-310 // factor))]
    assert np.abs(crop.astype(int) - expected(data, box, 32)).mean() < 2


def test_the_middle():
    pixels = picture(40, 61)
    data = encoded(pixels, "PNG")
    centre = decode_centre(Files(data), 0, 20)
    np.testing.assert_array_equal(centre, expected(data, (0, 10, 40, 40), 20))
    share = decode_centre(Files(data), 0, 20, share=7 / 8)
    np.testing.assert_array_equal(share, expected(data, (2, 13, 35, 35), 20))
    exact = decode_centre(Files(encoded(pixels[:20, :20], "PNG")), 0, 20, share=7 / 8)
    np.testing.assert_array_equal(exact, pixels[:20, :20])


def test_what_was_changed_is_noted_and_what_cannot_be_read_named():
    grey = encoded(picture(40, 40)[..., 0], "JPEG")
    source = Files(grey, b"\xff\xd8\xff nothing", grey[: len(grey) // 2])
    assert decode_centre(source, 0, 8).shape == (8, 8, 3)
    assert source.noted == {0: ["in grey: converted to RGB"]}
    for row in (1, 2):
        with pytest.raises(UserInputError, match=rf"cannot read image `{row}\.jpg`"):
            decode_centre(source, row, 8)
