import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from simplejpeg import encode_jpeg

from hellofmt.archive import Limits, decode_image, encode_image
from hellofmt.archive.format.image_data import check_image_data
from hellofmt.archive.format.images import parse_image, parse_png_header
from hellofmt.errors import CorruptError, LimitError, SpecError, UserInputError

RED = np.zeros((9, 11, 3), np.uint8)
RED[..., 0] = 200
SMOOTH = (np.arange(32)[:, None, None] * 3 + np.arange(40)[None, :, None] * [1, 2, 3]).astype(
    np.uint8
)


def saved(form, pixels=SMOOTH, **options):
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, form, **options)
    return out.getvalue()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 17), st.integers(1, 17), st.sampled_from([1, 3]), st.randoms())
def test_png_is_exact(height, width, channels, random):
    pixels = np.frombuffer(random.randbytes(height * width * channels), np.uint8)
    pixels = pixels.reshape(height, width, channels)
    data = encode_image(pixels, "png")
    shape = parse_image(data, "png")
    assert (shape.height, shape.width, shape.channels) == (height, width, channels)
    assert parse_png_header(data[:33]) == shape
    assert (decode_image(data, "png", Limits()) == pixels).all()


def test_png_of_the_sample_builder(samples):
    pixels = samples.pattern(1, 5, 7, 3)
    data = samples.png(pixels, extra=[(b"sRGB", b"\0")])
    assert (decode_image(data, "png", Limits()) == pixels).all()


def test_lossless_webp_is_exact():
    data = encode_image(SMOOTH, "webp", quality=100)
    assert (decode_image(data, "webp", Limits()) == SMOOTH).all()


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_lossy_codecs_are_close(codec):
    data = encode_image(SMOOTH, codec, quality=95)
    shape = parse_image(data, codec)
    assert (shape.height, shape.width, shape.channels) == (32, 40, 3)
    error = np.abs(decode_image(data, codec, Limits()).astype(int) - SMOOTH)
    assert error.mean() < 4
    assert len(encode_image(SMOOTH, codec, quality=20)) < len(data)


def test_grey():
    grey = SMOOTH[..., 0]
    for pixels in (grey, grey[..., None]):
        assert decode_image(encode_image(pixels, "png"), "png", Limits()).shape == (32, 40, 1)
        assert decode_image(encode_image(pixels, "jpeg"), "jpeg", Limits()).shape == (32, 40, 1)
        webp = decode_image(encode_image(pixels, "webp", quality=100), "webp", Limits())
        assert (webp == grey[..., None]).all()


@pytest.mark.parametrize(
    ("pixels", "options", "code", "text"),
    [
        (SMOOTH.astype(np.float32), {}, "E_DATA", "expected uint8 H x W x 3 or H x W"),
        (np.zeros((4, 4, 4), np.uint8), {}, "E_DATA", "got uint8 (4, 4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), {}, "E_DATA", "got uint8 (0, 4, 3)"),
        (np.zeros((4097, 1), np.uint8), {}, "E_DATA", "up to 4096 pixels"),
        (SMOOTH, {"quality": 0}, "E_OPTION", "`quality`; expected 1 to 100, got 0"),
        (SMOOTH, {"quality": 101}, "E_OPTION", "`quality`; expected 1 to 100, got 101"),
    ],
)
def test_encode_refuses(pixels, options, code, text):
    with pytest.raises(UserInputError) as caught:
        encode_image(pixels, "png", **options)
    assert caught.value.code == code
    assert text in str(caught.value)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width=1, height=1, depth=8, colour=2, packing=0, filters=0, interlace=0, middle=None):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, packing, filters, interlace)
    middle = (
        chunk(b"IDAT", zlib.compress(bytes(1 + 3 * width) * height)) if middle is None else middle
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + chunk(b"IEND", b"")


IDAT = chunk(b"IDAT", zlib.compress(bytes(4)))
PNG = [
    (b"", SpecError, "not a PNG file"),
    (png()[1:], SpecError, "not a PNG file"),
    (b"\x89PNG\r\n\x1a\n", CorruptError, "cut before IEND"),
    (png()[:-1], CorruptError, "cut inside a chunk"),
    (png()[:-12], CorruptError, "cut before IEND"),
    (png()[:40], CorruptError, "cut inside a chunk"),
    (png()[:46], CorruptError, "chunk IDAT goes past the end"),
    (png()[:-1] + b"\0", CorruptError, "checksum of chunk IEND"),
    (b"\x89PNG\r\n\x1a\n" + IDAT, SpecError, "does not begin with IHDR"),
    (png(width=0), SpecError, "no pixels"),
    (png(depth=16), SpecError, "bit depth 16, colour type 2; expected 8, 0 or 2"),
    (png(colour=3), SpecError, "bit depth 8, colour type 3"),
    (png(colour=6), SpecError, "bit depth 8, colour type 6"),
    (png(interlace=1), SpecError, "interlaced"),
    (png(packing=1), SpecError, "interlaced, or of an unknown compression or filter"),
    (png(middle=b""), SpecError, "IEND before IDAT"),
    (png(middle=IDAT + chunk(b"sRGB", b"\0") + IDAT), SpecError, "chunk sRGB; expected IHDR"),
    (png(middle=chunk(b"sRGB", b"\0") * 2 + IDAT), SpecError, "chunk sRGB; expected IHDR"),
    (png(middle=chunk(b"sRGB", b"\0\0") + IDAT), SpecError, "chunk sRGB"),
    (png(middle=chunk(b"zTXt", b"a\0\0") + IDAT), SpecError, "chunk zTXt; expected IHDR, sRGB"),
    (png(middle=chunk(b"acTL", bytes(8)) + IDAT), SpecError, "chunk acTL"),
    (png(middle=chunk(b"\x1b[2J", b"") + IDAT), SpecError, r"chunk \x1b[2J"),
    (png() + b"\0" * 12, SpecError, "bytes after IEND"),
]


@pytest.mark.parametrize(("data", "kind", "text"), PNG, ids=range(len(PNG)))
def test_png_profile(data, kind, text):
    with pytest.raises(kind) as caught:
        parse_image(data, "png", member="images/0000/000000.png")
    assert caught.value.code == {SpecError: "E_CODEC", CorruptError: "E_IMAGE"}[kind]
    assert caught.value.member == "images/0000/000000.png"
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [zlib.compress(bytes(3)), b"", b"not zlib", zlib.compress(b"\x09\0\0\0")],
)
def test_rows_that_a_reader_misses(rows):
    data = png(middle=chunk(b"IDAT", rows))
    assert parse_image(data, "png").height == 1
    with pytest.raises(CorruptError, match="E_IMAGE member=m: cannot be decoded"):
        decode_image(data, "png", Limits(), member="m")


def test_a_png_is_inflated_once(monkeypatch):
    """Rows that are there are enough to train on; the rest is ``check_image_data``'s."""
    for rest in (bytes(1), bytes(1 << 20)):
        data = png(middle=chunk(b"IDAT", zlib.compress(bytes(4) + rest)))
        assert decode_image(data, "png", Limits()).tolist() == [[[0, 0, 0]]]
    monkeypatch.setattr(zlib, "decompressobj", None)
    assert decode_image(png(), "png", Limits()).shape == (1, 1, 3)


JPEG = saved("JPEG")
SOF = JPEG.index(b"\xff\xc0")
SOS = JPEG.index(b"\xff\xda")


def with_segment(marker, body, data=JPEG):
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def patched(data, at, *values):
    return data[:at] + bytes(values) + data[at + len(values) :]


JPEGS = [
    (b"", SpecError, "not a JPEG file"),
    (JPEG[:-1], CorruptError, "cut before the end marker"),
    (JPEG[:-2], CorruptError, "cut before the end marker"),
    (JPEG[: SOF + 3], CorruptError, "segment c0 goes past the end"),
    (JPEG + b"\0", SpecError, "bytes after the end marker"),
    (JPEG[:2] + b"\0" + JPEG[2:], CorruptError, "no marker at byte 2"),
    (JPEG[:2] + b"\xff\xd8" + JPEG[2:], SpecError, "marker d8 outside a scan"),
    (saved("JPEG", progressive=True), SpecError, "progressive; expected sequential Huffman"),
    (patched(JPEG, SOF + 1, 0xC9), SpecError, "marker c9; expected sequential Huffman"),
    (patched(JPEG, SOF + 1, 0xC3), SpecError, "marker c3"),
    (with_segment(0xCC, b"\0\0"), SpecError, "marker cc"),
    (with_segment(0xDC, b"\0\x05"), SpecError, "marker dc"),
    (
        saved("JPEG", Image.new("CMYK", (9, 9))),
        SpecError,
        "4 components of 8 bits; expected 1 or 3",
    ),
    (patched(JPEG, SOF + 4, 12), SpecError, "3 components of 12 bits"),
    (patched(JPEG, SOF + 5, 0, 0), SpecError, "no pixels"),
    (patched(JPEG, SOF + 11, 0x31), SpecError, "sampling factors 3x1, 1x1, 1x1; expected those"),
    (patched(JPEG, SOF + 17, 0x12), SpecError, "sampling factors 2x2, 1x1, 1x2"),
    (JPEG[:SOF] + JPEG[SOF : SOF + 19] + JPEG[SOF:], SpecError, "two frame headers"),
    (JPEG[:SOS] + b"\xff\xd9", SpecError, "a component is coded in no scan"),
    (JPEG[:-2] + JPEG[SOS:], SpecError, "a component is coded in more than one scan"),
    (JPEG[:2] + JPEG[SOS:], SpecError, "a component is coded in more than one scan"),
]


@pytest.mark.parametrize(("data", "kind", "text"), JPEGS, ids=range(len(JPEGS)))
def test_jpeg_profile(data, kind, text):
    with pytest.raises(kind) as caught:
        parse_image(data, "jpeg")
    assert caught.value.code == {SpecError: "E_CODEC", CorruptError: "E_IMAGE"}[kind]
    assert text in str(caught.value)


def test_jpeg_that_is_fine():
    restarts = saved("JPEG", np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8),
                     restart_marker_blocks=1)  # fmt: skip
    assert b"\xff\xd3" in restarts
    filled = JPEG[:2] + b"\xff\xff\xff" + JPEG[2:]
    for data, side in ((restarts, 80), (filled, 32)):
        assert parse_image(data, "jpeg").height == side
        assert decode_image(data, "jpeg", Limits()).shape[0] == side


def test_jpeg_metadata_changes_no_pixel():
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = saved("JPEG", exif=exif, comment=b"hello")
    assert b"Exif" in rotated
    plain = decode_image(JPEG, "jpeg", Limits())
    assert (decode_image(rotated, "jpeg", Limits()) == plain).all()
    broken = with_segment(0xE1, b"Exif\0\0" + b"\xff" * 40)
    assert (decode_image(broken, "jpeg", Limits()) == plain).all()
    # The second of two parts of a colour profile that has no first.
    profile = with_segment(0xE2, b"ICC_PROFILE\0\x02\x02" + b"\xff" * 40)
    check_image_data(profile, "jpeg", parse_image(profile, "jpeg"))
    assert (decode_image(profile, "jpeg", Limits()) == plain).all()


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_a_jpeg_has_the_pixels_of_pillow(subsampling):
    pixels = np.random.default_rng(0).integers(0, 256, (63, 65, 3), np.uint8)
    data = encode_jpeg(pixels, 90, colorsubsampling=subsampling)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(image).astype(int)
    # Bit-equal with today's libraries; versions of libjpeg-turbo may round otherwise.
    assert np.abs(decode_image(data, "jpeg", Limits()) - wanted).max() <= 2


def test_jpeg_that_does_not_decode():
    # The walk sees a valid structure; only the decoder knows that the tables are missing.
    tables = JPEG.index(b"\xff\xdb")
    data = JPEG[:tables] + JPEG[SOF:]
    assert parse_image(data, "jpeg").width == 40
    with pytest.raises(CorruptError, match="E_IMAGE: cannot be decoded"):
        decode_image(data, "jpeg", Limits())


LOSSY = saved("WEBP", quality=80)
LOSSLESS = saved("WEBP", lossless=True)
WEBP = [
    (b"", SpecError, "not a WebP file"),
    (b"RIFF\0\0\0\0WAVE" + bytes(20), SpecError, "not a WebP file"),
    (LOSSY[:-2], CorruptError, "cut; expected"),
    (LOSSY + b"\0\0", SpecError, "more than one chunk, or bytes after it"),
    (saved("WEBP", np.dstack([SMOOTH, SMOOTH[..., :1]])), SpecError, "chunk VP8X; expected one"),
    (saved("WEBP", exif=b"Exif\0\0MM\0*"), SpecError, "chunk VP8X"),
    (saved("WEBP", save_all=True, append_images=[Image.fromarray(SMOOTH[::-1].copy())]), SpecError,
     "chunk VP8X"),
    (patched(LOSSY, 20, LOSSY[20] | 1), CorruptError, "no key frame"),
    (patched(LOSSY, 27, LOSSY[27] | 0x40), SpecError, "scaled frame"),
    (patched(LOSSLESS, 20, 0), CorruptError, "no lossless signature"),
    (patched(LOSSLESS, 24, LOSSLESS[24] | 0x10), SpecError, "alpha, or an unknown version"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "kind", "text"), WEBP, ids=range(len(WEBP)))
def test_webp_profile(data, kind, text):
    with pytest.raises(kind) as caught:
        parse_image(data, "webp")
    assert caught.value.code == {SpecError: "E_CODEC", CorruptError: "E_IMAGE"}[kind]
    assert text in str(caught.value)


def test_webp_padding():
    body = LOSSLESS[20:]
    odd = b"RIFF" + struct.pack("<I", len(body) + 14) + b"WEBPVP8L"
    odd += struct.pack("<I", len(body) + 1) + body + b"\0"
    assert parse_image(odd + b"\0", "webp").height == 32
    with pytest.raises(SpecError, match="padding byte is not zero"):
        parse_image(odd + b"\1", "webp")


def test_a_codec_never_reads_another():
    for data, codec in ((JPEG, "png"), (LOSSY, "jpeg"), (png(), "webp")):
        with pytest.raises(SpecError, match="E_CODEC"):
            decode_image(data, codec, Limits())


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"image_pixels": 1279}, "E_LIMIT_IMAGE_PIXELS"),
        ({"image_bytes": 50}, "E_LIMIT_IMAGE_BYTES"),
    ],
)
def test_limits_come_before_decoding(limits, code):
    with pytest.raises(LimitError) as caught:
        decode_image(JPEG, "jpeg", Limits(**limits))
    assert caught.value.code == code
    with pytest.raises(LimitError, match="E_LIMIT_IMAGE_SIDE"):
        decode_image(png(width=65535, height=65535, middle=IDAT), "png", Limits())


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_only_our_errors_on_damage(codec):
    data = {"png": encode_image(SMOOTH, "png"), "jpeg": JPEG, "webp": LOSSY}[codec]
    random = np.random.default_rng(1)
    for _ in range(300):
        at = int(random.integers(len(data)))
        broken = patched(data, at, data[at] ^ 1 << int(random.integers(8)))
        try:
            decode_image(broken, codec, Limits())
        except (SpecError, CorruptError, LimitError):
            continue
