"""Compressed data walked to its end, beside zlib, Pillow and files of real encoders."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import encode_image
from hellofmt.archive.format.image_data import check_image_data
from hellofmt.archive.format.images import parse_image
from hellofmt.errors import CorruptError

IMAGES = Path(__file__).resolve().parents[1] / "spec" / "images"
NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)


def check(data, codec):
    check_image_data(data, codec, parse_image(data, codec))


def refused(data, codec):
    """The text of the refusal; empty if there is none."""
    try:
        check(data, codec)
    except CorruptError as error:
        found = error
    else:
        return ""
    assert found.code == "E_IMAGE"
    return found.message.removeprefix(f"damaged {codec}: ")


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*streams, width=1, height=1):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"".join(chunk(b"IDAT", stream) for stream in streams)
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def test_what_encoders_write_passes():
    for codec in ("png", "jpeg", "webp"):
        for pixels in (NOISE, NOISE[..., 0], np.zeros((300, 300, 3), np.uint8), NOISE[:1, :1]):
            check(encode_image(pixels, codec), codec)
            check(memoryview(encode_image(pixels, codec)), codec)
    check(encode_image(NOISE, "webp", quality=100), "webp")
    for path in IMAGES.iterdir():
        check(path.read_bytes(), {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:]))


ROWS = zlib.compress(bytes(4))


@pytest.mark.parametrize(
    ("streams", "text"),
    [
        ((zlib.compress(bytes(3)),), "does not hold exactly 4 bytes"),
        ((zlib.compress(bytes(5)),), "does not hold exactly 4 bytes"),
        ((zlib.compress(bytes(1 << 20)),), "does not hold exactly 4 bytes"),
        ((ROWS + b"x",), "does not hold exactly 4 bytes"),
        ((ROWS, b"x"), "does not hold exactly 4 bytes"),
        ((ROWS[:-1],), "does not hold exactly 4 bytes"),
        ((b"",), "does not hold exactly 4 bytes"),
        ((ROWS[:-1] + b"\0",), "compressed data: Error -6 Incorrect checksum"),
        ((b"not zlib",), "compressed data: Error -5"),
        ((b"\x78\xbb" + ROWS[2:],), "compressed data: Error 6"),
        ((zlib.compress(b"\x05\0\0\0"),), "a row with filter type 5; expected 0 to 4"),
        ((ROWS[:3], b"", ROWS[3:], b""), ""),
        (tuple(ROWS[i : i + 1] for i in range(len(ROWS))), ""),
    ],
)
def test_png_stream(streams, text):
    found = refused(png(*streams), "png")
    assert text in found
    assert bool(found) == bool(text)


def test_png_filters_of_every_row():
    """Rows longer and shorter than a part of the inflated stream, the wrong one anywhere."""
    for width, height in ((30_000, 4), (100, 700)):
        rows = np.zeros((height, 1 + 3 * width), np.uint8)
        rows[:, 1:] = 255
        for row in {0, height // 2, height - 1}:
            rows[row, 0] = 5
            found = refused(png(zlib.compress(rows, 1), width=width, height=height), "png")
            assert "filter type 5" in found
            rows[row, 0] = 4
        assert refused(png(zlib.compress(rows, 1), width=width, height=height), "png") == ""


def test_png_flips_are_what_zlib_says():
    random = np.random.default_rng(1)
    stream = zlib.compress(np.repeat(NOISE[:4, :4], 3).tobytes()[:4 * 13])  # fmt: skip
    for _ in range(400):
        flipped = bytearray(stream)
        flipped[random.integers(len(stream))] ^= 1 << int(random.integers(8))
        reference = zlib.decompressobj()
        try:
            rows = reference.decompress(flipped)
            whole = len(rows) == 52 and reference.eof and not reference.unused_data
            whole = whole and max(rows[::13]) <= 4
        except zlib.error:
            whole = False
        assert (refused(png(bytes(flipped), width=4, height=4), "png") == "") == whole


def jpeg(**options):
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "JPEG", **options)
    return out.getvalue()


JPEG = jpeg()
RESTARTS = jpeg(restart_marker_blocks=2)
SCAN = JPEG.index(b"\xff\xda")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (JPEG[: (SCAN + len(JPEG)) // 2] + b"\xff\xd9", "premature end of data segment"),
        (JPEG[:-4] + b"\xff\xd9", "premature end of data segment"),
        (JPEG[:-2] + bytes(9) + b"\xff\xd9", "extraneous bytes before marker 0xd9"),
        (RESTARTS.replace(b"\xff\xd1", b"\xff\xd6"), "found marker 0xd6 instead of RST1"),
        (RESTARTS.replace(b"\xff\xd1", b""), "extraneous bytes before marker"),
        (JPEG[: JPEG.index(b"\xff\xdb")] + JPEG[JPEG.index(b"\xff\xc0") :], "Quantization table"),
        (RESTARTS, ""),
        (jpeg(keep_rgb=True), ""),
    ],
)
def test_jpeg_scan(data, text):
    found = refused(data, "jpeg")
    assert text in found
    assert bool(found) == bool(text)


def test_jpeg_of_every_sampling():
    """Twelve samplings in the profile: of each the library knows how many blocks there are."""
    factors = ("11 11", "21 11", "12 11", "22 11", "41 11", "14 11")
    factors += ("12 12", "21 21", "13 13", "31 31", "22 12", "22 21")
    frame = JPEG.index(b"\xff\xc0")
    for bright, colour in map(str.split, factors):
        data = bytearray(JPEG)
        data[frame + 11] = int(bright, 16)
        data[frame + 14] = data[frame + 17] = int(colour, 16)
        # Another sampling has another number of blocks than the 4:2:0 of the file.
        assert "JPEG data" in refused(bytes(data), "jpeg") or (bright, colour) == ("22", "11")


def test_webp_partitions():
    data = (IMAGES / "four-partitions.webp").read_bytes()
    first = int.from_bytes(data[20:23], "little") >> 5
    table = 30 + first
    sizes = [int.from_bytes(data[table + i : table + i + 3], "little") for i in (0, 3, 6)]
    assert refused(data, "webp") == ""
    rest = len(data) - table - 9 - sum(sizes)
    for grown, text in ((rest - 2, ""), (rest + 1, "4 partitions go past the end")):
        made = bytearray(data)
        made[table : table + 3] = (sizes[0] + grown).to_bytes(3, "little")
        assert refused(bytes(made), "webp") == text
    for tag, text in (
        (1 << 4 | 0x7FFF << 5, "the first partition goes past the end"),
        (first << 5, "not to be shown"),
        (4 << 1 | 1 << 4 | first << 5, "frame of an unknown version"),
    ):
        found = refused(data[:20] + tag.to_bytes(3, "little") + data[23:], "webp")
        assert text in found
