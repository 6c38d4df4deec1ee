"""To 8-bit RGB: values against numpy's, what is counted, and what is refused by name."""

import io
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hellofmt.errors import UserInputError
from hellofmt.sources.decode import is_grey, open_image, to_rgb

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
GREY = "in grey: converted to RGB"
ALPHA = "with an alpha channel: dropped, the colours under it show"
PALETTE = "with a palette: converted to RGB"


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def deep_png(colour, channels):
    """A 16-bit PNG written by hand, since Pillow writes none in colour."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes(range(8 * channels))) * 4
    head = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def paletted(**options):
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    return encoded(image, **options)


def with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(RAMP), exif=exif)


def with_gamma(value):
    data = encoded(Image.fromarray(RAMP))
    body = b"gAMA" + struct.pack(">I", value)
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    # After the header, which is 13 bytes in a chunk of 25.
    return data[:33] + chunk + data[33:]


def decode_rgb(data, name, converted=None):
    with open_image(data, name) as image:
        return to_rgb(image, name, converted)


PROFILE = "with a colour profile other than sRGB: ignored, values stay as they are stored"


@pytest.mark.parametrize(
    ("data", "pixels", "kinds"),
    [
        (encoded(Image.fromarray(RAMP)), RAMP, []),
        (encoded(Image.fromarray(RAMP), "WEBP", lossless=True), RAMP, []),
        (encoded(Image.new("L", (1, 1), 7)), [[[7, 7, 7]]], [GREY]),
        (encoded(Image.new("1", (1, 1), 1)), [[[255] * 3]],
         ["in black and white: converted to RGB"]),
        (paletted(), [[[9, 8, 7]]], [PALETTE]),
        # As a number and as bytes; for the latter Pillow warns where it is converted at once.
        (paletted(transparency=1), [[[9, 8, 7]]], [ALPHA]),
        (paletted(transparency=b"\xff\x80"), [[[9, 8, 7]]], [ALPHA]),
        (encoded(Image.new("L", (1, 1), 7), transparency=7), [[[7] * 3]], [ALPHA]),
        (encoded(Image.new("RGBA", (1, 1), (1, 2, 3, 0))), [[[1, 2, 3]]], [ALPHA]),
        (encoded(Image.new("LA", (1, 1), (9, 4))), [[[9] * 3]], [ALPHA]),
        (encoded(Image.fromarray(RAMP), icc_profile=b"\0d\0e\0s\0c Display P3"), RAMP, [PROFILE]),
        (encoded(Image.fromarray(RAMP), icc_profile=b"desc s\0R\0G\0B\0 IEC"), RAMP, []),
        (with_gamma(100_000), RAMP, [PROFILE]),
        (with_gamma(45_455), RAMP, []),
        (with_exif(1), RAMP, []),
        (with_exif(6), RAMP, ["with an EXIF orientation: ignored, pixels stay as they are stored"]),
        (encoded(Image.fromarray(RAMP), save_all=True, append_images=[Image.new("RGB", (4, 4))]),
         RAMP, ["with several frames: all but the first dropped"]),
    ],
)  # fmt: skip
def test_files(data, pixels, kinds):
    converted = Counter()
    got = decode_rgb(data, "x.png", converted)
    assert got.dtype == np.uint8
    assert got.tolist() == np.asarray(pixels).tolist()
    assert converted == Counter(kinds)
    assert decode_rgb(data, "x.png").tolist() == got.tolist()


def test_cmyk_is_what_pillow_makes_of_it():
    image = Image.new("CMYK", (8, 8), (10, 20, 30, 40))
    converted = Counter()
    got = decode_rgb(encoded(image, "JPEG", quality=100), "x.jpg", converted)
    expected = [(255 - ink) * (255 - 40) / 255 for ink in (10, 20, 30)]
    assert np.abs(got[4, 4] - np.array(expected)).max() < 3
    assert converted == Counter(["in CMYK: converted to RGB"])


@pytest.mark.parametrize(
    ("image", "pixels", "kinds"),
    [
        (RAMP, RAMP, []),
        (RAMP[..., 0], RAMP[..., :1].repeat(3, 2), [GREY]),
        (RAMP[..., :1], RAMP[..., :1].repeat(3, 2), [GREY]),
        # A BMP of 16 bits a pixel, and of 160 bytes a row, has no more than 8 a channel.
        (Image.open(io.BytesIO(encoded(Image.new("L", (160, 1), 3), "BMP"))), [[[3] * 3] * 160],
         [GREY]),
        (Image.fromarray(RAMP).convert("HSV"), Image.fromarray(RAMP).convert("HSV").convert("RGB"),
         ["in another colour space: converted to RGB"]),
    ],
)  # fmt: skip
def test_objects(image, pixels, kinds):
    converted = Counter()
    assert to_rgb(image, 3, converted).tolist() == np.asarray(pixels).tolist()
    assert converted == Counter(kinds)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (deep_png(2, 3), "image `a.png` has mode RGB of 16 bits; expected 8 bits per channel"),
        (deep_png(6, 4), "image `a.png` has mode RGBA of 16 bits; expected 8"),
        (deep_png(4, 2), "image `a.png` has mode .* of 16 bits; expected 8"),
        (deep_png(0, 1), "image `a.png` has mode I;16; expected 8 bits per channel"),
        (b"", "cannot read image `a.png`: neither PNG nor JPEG nor WebP"),
        (encoded(Image.fromarray(RAMP), "BMP"), "cannot read image `a.png`: neither PNG"),
        (encoded(Image.fromarray(RAMP), "TIFF"), "cannot read image `a.png`: neither PNG"),
        (encoded(Image.fromarray(RAMP))[:50], "cannot read image `a.png`: .*truncated"),
        (
            encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900],
            "cannot read image `a.png`: .*tr",
        ),
    ],
)
def test_files_that_are_refused(data, message):
    with pytest.raises(UserInputError, match="E_DATA: " + message):
        decode_rgb(data, "a.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.zeros((2, 2), np.uint16)), "image `3` has mode I;16; expected 8 bits"),
        (Image.fromarray(np.zeros((2, 2), np.int32)), "image `3` has mode I; expected 8 bits"),
        (Image.fromarray(np.zeros((2, 2), np.float32)), "image `3` has mode F; expected 8 bits"),
        (Image.open(io.BytesIO(deep_png(2, 3))), "image `3` has mode RGB of 16 bits"),
        (RAMP.astype(np.uint16), r"image `3`: expected a PIL .*, got ndarray uint16 \(4, 4, 3\)"),
        (RAMP.astype(np.float32), r"got ndarray float32 \(4, 4, 3\)"),
        (np.zeros((2, 2, 4), np.uint8), r"got ndarray uint8 \(2, 2, 4\)"),
        (np.zeros((0, 2, 3), np.uint8), r"got ndarray uint8 \(0, 2, 3\)"),
        ("a path", "image `3`: expected a PIL image or a uint8 array .*, got str"),
    ],
)
def test_objects_that_are_refused(image, message):
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        to_rgb(image, 3)


def test_what_one_channel_holds():
    assert is_grey(Counter([GREY]))
    assert not is_grey(Counter([PALETTE]))
    assert not is_grey(Counter())
