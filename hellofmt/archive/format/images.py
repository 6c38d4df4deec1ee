"""Images: three codecs, each held to a strict profile before native code sees a byte.

A short walk over the file structure comes first. It refuses what image libraries are attacked with
(palettes, interlacing, text and profile chunks, progressive scans, animation, trailing bytes) and
reads the dimensions without decoding. Only then, after digest and limits, does the one plugin of
the codec decode the image. Metadata segments of a JPEG never reach the decoder. Images are stored
byte for byte; they are encoded only for callers who ask for it.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from hellofmt.archive.format.limits import IMAGE_SIDE, Limits, check_fixed, check_limit
from hellofmt.errors import (
    CorruptError,
    HelloError,
    SpecError,
    UserInputError,
    foreign_text,
    printable,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

Codec = Literal["png", "jpeg", "webp"]

# The signature, then size and name of the first chunk.
_PNG_BEGIN: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_CHUNK: Final = struct.Struct(">I4s")
_CRC: Final = struct.Struct(">I")
_IHDR: Final = struct.Struct(">IIBBBBB")
_IHDR_END: Final = 33
_PILLOW: Final = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
# A marker inside entropy-coded data: 0xFF followed by neither a stuffed zero nor a restart number.
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# Sampling factors of three components, across and down: of brightness, of both colours.
_SAMPLINGS: Final = {
    *(
        ((across, down), (1, 1))
        for across, down in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4))
    ),
    *((factors, factors) for factors in ((1, 2), (2, 1), (1, 3), (3, 1))),
    *(((2, 2), (1, 2)), ((2, 2), (2, 1))),
}
_BAND: Final = 512
# What Pillow's plugins raise on damaged input; anything else is a bug of ours and stays visible.
DECODE_ERRORS: Final = (
    *(OSError, SyntaxError, MemoryError, EOFError, TypeError, OverflowError),
    *(ValueError, KeyError, IndexError, struct.error, zlib.error),
)


class ImageShape(NamedTuple):
    """Pixels that an image file states; 1 channel (grey) or 3 (RGB)."""

    height: int
    width: int
    channels: int


def parse_image(data: bytes | memoryview, codec: str, *, member: str = "") -> ImageShape:
    """Hold a whole image file to the profile of its codec; read its dimensions, undecoded."""
    try:
        shape = _WALKS[codec](data)
    except _OutsideProfileError as error:
        text = f"{codec} outside the profile: {error}"
        raise SpecError.make("E_CODEC", text, member=member) from None
    except _DamagedError as error:
        raise CorruptError.make("E_IMAGE", f"damaged {codec}: {error}", member=member) from None
    if shape.height < 1 or shape.width < 1:
        raise SpecError.make("E_CODEC", f"{codec} outside the profile: no pixels", member=member)
    return shape


class _OutsideProfileError(ValueError):
    """A file that may be valid elsewhere but that the profile does not allow."""


class _DamagedError(ValueError):
    """A file that no decoder could read in full."""


def _walk_png(data: bytes | memoryview) -> ImageShape:
    """8-bit grey or RGB, not interlaced; IHDR, sRGB if any, IDAT one after another, IEND."""
    shape = _png_start(data)
    at, end, last = _IHDR_END, len(data), b"IHDR"
    if zlib.crc32(data[12:29]) != _CRC.unpack_from(data, 29)[0]:
        raise _DamagedError("checksum of chunk IHDR")
    while at < end:
        if end - at < 12:
            raise _DamagedError("cut inside a chunk")
        size, name = _CHUNK.unpack_from(data, at)
        after = at + 8 + size
        if after > end - 4:
            raise _DamagedError(f"chunk {printable(name)} goes past the end")
        if zlib.crc32(data[at + 4 : after]) != _CRC.unpack_from(data, after)[0]:
            raise _DamagedError(f"checksum of chunk {printable(name)}")
        if name == b"IEND":
            if size or last != b"IDAT":
                raise _OutsideProfileError("IEND before IDAT, or with data")
            if after + 4 != end:
                raise _OutsideProfileError("bytes after IEND")
            return shape
        is_intent = name == b"sRGB" and size == 1 and last == b"IHDR" and data[at + 8] <= 3
        if name != b"IDAT" and not is_intent:
            raise _OutsideProfileError(
                f"chunk {printable(name)}; expected IHDR, sRGB, IDAT and IEND only"
            )
        last, at = name, after + 4
    raise _DamagedError("cut before IEND")


def _png_start(data: bytes | memoryview) -> ImageShape:
    """Parse signature and IHDR, without its checksum."""
    begin = bytes(data[:16])
    if begin != _PNG_BEGIN:
        if begin[:8] != _PNG_BEGIN[:8]:
            raise _OutsideProfileError("not a PNG file")
        if begin != _PNG_BEGIN[: len(begin)]:
            raise _OutsideProfileError("does not begin with IHDR")
    if len(data) < _IHDR_END:
        raise _DamagedError("cut before IEND")
    width, height, depth, colour, packing, filters, interlace = _IHDR.unpack_from(data, 16)
    if depth != 8 or colour not in (0, 2):
        raise _OutsideProfileError(f"bit depth {depth}, colour type {colour}; expected 8, 0 or 2")
    if packing or filters or interlace:
        raise _OutsideProfileError("interlaced, or of an unknown compression or filter")
    return ImageShape(height, width, 3 if colour == 2 else 1)


def parse_png_header(head: bytes) -> ImageShape:
    """Read the dimensions of a PNG image from its first 33 bytes alone."""
    try:
        return _png_start(head)
    except (_OutsideProfileError, _DamagedError) as error:
        raise SpecError.make("E_CODEC", f"png outside the profile: {error}") from None


def _segments(data: bytes | memoryview) -> list[tuple[int, int, int, int]]:
    """List marker, start, start of the body and end of every JPEG segment.

    A segment begins with its fill bytes; a scan ends after its entropy-coded data.
    """
    if bytes(data[:2]) != b"\xff\xd8":
        raise _OutsideProfileError("not a JPEG file")
    segments: list[tuple[int, int, int, int]] = []
    at, end = 2, len(data)
    while at < end:
        begin = at
        if data[at] != 0xFF:
            raise _DamagedError(f"no marker at byte {at}")
        # Any number of 0xFF may precede a marker.
        while at < end and data[at] == 0xFF:
            at += 1
        if at == end:
            break
        marker = data[at]
        at += 1
        if marker == 0xD9:
            if at != end:
                raise _OutsideProfileError("bytes after the end marker")
            return segments
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            raise _OutsideProfileError(f"marker {marker:02x} outside a scan")
        body = at + 2
        size = data[at] << 8 | data[at + 1] if body <= end else 0
        if size < 2 or at + size > end:
            raise _DamagedError(f"segment {marker:02x} goes past the end")
        at += size
        if marker == 0xDA:
            after = _MARKER.search(data, at)
            if after is None:
                break
            at = after.start()
        segments.append((marker, begin, body, at))
    raise _DamagedError("cut before the end marker")


def _walk_jpeg(data: bytes | memoryview) -> ImageShape:
    """Sequential Huffman, 8 bits, 1 or 3 components, each coded in exactly one scan."""
    shape: ImageShape | None = None
    coded = components = 0
    for marker, _, body, end in _segments(data):
        if marker in (0xC0, 0xC1):
            if shape is not None or end - body < 6:
                raise _OutsideProfileError("two frame headers, or a short one")
            depth, height, width, components = struct.unpack_from(">BHHB", data, body)
            if depth != 8 or components not in (1, 3) or end - body != 6 + 3 * components:
                raise _OutsideProfileError(
                    f"{components} components of {depth} bits; expected 1 or 3 of 8"
                )
            shape = ImageShape(height, width, components)
            _check_sampling(bytes(data[body + 6 : end]))
        elif marker == 0xDA:
            if shape is None or body == end or not 1 <= data[body] <= components - coded:
                raise _OutsideProfileError("a component is coded in more than one scan")
            coded += data[body]
        elif 0xE0 <= marker <= 0xEF or marker in (0xC4, 0xDB, 0xDD, 0xFE):
            continue
        else:
            kind = "progressive" if marker in (0xC2, 0xC6, 0xCA, 0xCE) else f"marker {marker:02x}"
            raise _OutsideProfileError(f"{kind}; expected sequential Huffman coding")
    if shape is None or coded != components:
        raise _OutsideProfileError("a component is coded in no scan")
    return shape


def _check_sampling(components: bytes) -> None:
    """Refuse all but 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1 and 4:4:1, which every decoder knows."""
    factors = [divmod(each, 16) for each in components[1::3]]
    # Grey has nothing to be sampled against.
    if len(factors) == 3 and (factors[1] != factors[2] or tuple(factors[:2]) not in _SAMPLINGS):
        shown = ", ".join(f"{across}x{down}" for across, down in factors)
        raise _OutsideProfileError(f"sampling factors {shown}; expected those of 4:4:4 to 4:1:1")


def _walk_webp(data: bytes | memoryview) -> ImageShape:
    """One still image in the simple file form: no alpha, no metadata."""
    if bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"WEBP" or len(data) < 20:
        raise _OutsideProfileError("not a WebP file")
    size = int.from_bytes(data[4:8], "little")
    if size + 8 > len(data):
        raise _DamagedError(f"cut; expected {size + 8} bytes, got {len(data)}")
    name, body_size = bytes(data[12:16]), int.from_bytes(data[16:20], "little")
    if name not in (b"VP8 ", b"VP8L"):
        raise _OutsideProfileError(
            f"chunk {printable(name)}; expected one VP8 or VP8L image without metadata"
        )
    if size + 8 != len(data) or 20 + body_size + body_size % 2 != len(data):
        raise _OutsideProfileError("more than one chunk, or bytes after it")
    if body_size % 2 and data[-1] != 0:
        raise _OutsideProfileError("padding byte is not zero")
    body = bytes(data[20:30])
    if name == b"VP8 ":
        if body_size < 10 or body[0] & 1 or body[3:6] != b"\x9d\x01\x2a":
            raise _DamagedError("no key frame")
        width, height = struct.unpack("<HH", body[6:10])
        if width >> 14 or height >> 14:
            raise _OutsideProfileError("scaled frame")
        return ImageShape(height, width, 3)
    if body_size < 5 or body[0] != 0x2F:
        raise _DamagedError("no lossless signature")
    bits = int.from_bytes(body[1:5], "little")
    if bits >> 28:
        raise _OutsideProfileError("alpha, or an unknown version")
    return ImageShape((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 3)


_WALKS: Final = {"png": _walk_png, "jpeg": _walk_jpeg, "webp": _walk_webp}


def check_image_limits(shape: ImageShape, size: int, limits: Limits, *, member: str = "") -> None:
    """Refuse an image of ``size`` stored bytes above the limits."""
    check_limit(limits, "image_bytes", size, member=member)
    check_fixed("image_side", max(shape.height, shape.width), IMAGE_SIDE, member=member)
    check_limit(limits, "image_pixels", shape.height * shape.width, member=member)


def without_metadata(data: bytes | memoryview) -> bytes:
    """Strip a JPEG to what training decodes: no orientation, no profile, no comment.

    Of application segments JFIF's and Adobe's colour flag stay.
    """
    parts = [data[:2]]
    for marker, begin, _, end in _segments(data):
        if marker == 0xFE or (0xE0 <= marker <= 0xEF and marker not in (0xE0, 0xEE)):
            continue
        parts.append(data[begin:end])
    return b"".join([*parts, b"\xff\xd9"])


def decode_image(data: bytes, codec: str, limits: Limits, *, member: str = "") -> NDArray[np.uint8]:
    """Decode an image file: uint8 (H, W, 3) RGB, or (H, W, 1) for grey.

    Exact for PNG and lossless WebP; JPEG decoders differ by small amounts between versions. EXIF
    orientation and colour profiles are ignored.

    Raises:
        SpecError: the file is outside the profile (E_CODEC).
        CorruptError: it cannot be decoded in full, or decodes to other dimensions (E_IMAGE).
        LimitError: it is above the limits, which are checked before decoding.

    Example:
        >>> from pathlib import Path
        >>> from hellofmt.archive import Limits
        >>> data = Path("photos/rows/0.png").read_bytes()
        >>> decode_image(data, "png", Limits()).shape
        (16, 16, 3)
    """
    shape = parse_image(data, codec, member=member)
    check_image_limits(shape, len(data), limits, member=member)
    return decode_parsed(data, codec, shape, member=member)


def decode_parsed(
    data: bytes, codec: str, shape: ImageShape, *, member: str = ""
) -> NDArray[np.uint8]:
    """Decode an image that ``parse_image`` has accepted and that is within the limits.

    The rows must all be there. What a decoder ignores beyond them, only ``check_image_data``
    refuses: a reader of verified bytes need not inflate a PNG twice.
    """
    from PIL import Image
    from simplejpeg import decode_jpeg

    try:
        if codec == "jpeg":
            # The same library as Pillow's and the same bits, in half the time or less.
            # Of a damaged colour profile it would refuse the image.
            data = without_metadata(data)
            pixels = decode_jpeg(data, "GRAY" if shape.channels == 1 else "RGB")
        else:
            with Image.open(io.BytesIO(data), formats=(_PILLOW[codec],)) as image:
                mode = "L" if shape.channels == 1 else "RGB"
                if image.mode != mode:
                    raise _DamagedError(f"decodes to mode {image.mode}; expected {mode}")
                pixels = _pixels(image)
        height, width = pixels.shape[:2]
        if (height, width) != (shape.height, shape.width):
            raise _DamagedError(f"decodes to {width} x {height} pixels")
    except DECODE_ERRORS as error:
        text = f"cannot be decoded: {foreign_text(error)}"
        raise CorruptError.make("E_IMAGE", text, member=member) from None
    return pixels.reshape(shape.height, shape.width, shape.channels)


def _pixels(image: Image) -> NDArray[np.uint8]:
    """Copy pixels in bands: of a large image Pillow would hold another copy of all of them."""
    import numpy as np

    if image.height <= _BAND:
        return np.asarray(image, np.uint8)
    out = np.empty((image.height, image.width, len(image.getbands())), np.uint8)
    for top in range(0, image.height, _BAND):
        band = out[top : top + _BAND]
        rows = image.crop((0, top, image.width, top + len(band)))
        band[:] = np.asarray(rows).reshape(band.shape)
    return out


def encode_image(
    pixels: NDArray[np.uint8],
    codec: Codec,
    *,
    quality: int = 95,
    subsampling: Literal["4:2:0", "4:4:4"] = "4:2:0",
) -> bytes:
    """Encode pixels within the profile of the format.

    Args:
        pixels: uint8 (H, W, 3) RGB, or (H, W) or (H, W, 1) grey; sides from 1 to 4,096.
        codec: ``png``, ``jpeg`` or ``webp``.
        quality: 1 to 100; for WebP 100 is lossless; PNG always is and ignores it.
        subsampling: colour of a JPEG: a quarter of the pixels', or every pixel's.

    Returns:
        The file.

    Raises:
        UserInputError: wrong dtype or shape (E_DATA), or quality out of range (E_OPTION).

    Example:
        >>> import numpy as np
        >>> encode_image(np.zeros((2, 2, 3), np.uint8), "png")[1:4]
        b'PNG'
    """
    import numpy as np
    from PIL import Image

    if not 1 <= quality <= 100:
        raise UserInputError.make("E_OPTION", f"`quality`; expected 1 to 100, got {quality}")
    sides, channels = pixels.shape[:2], pixels.shape[2:]
    is_image = pixels.dtype == np.uint8 and len(sides) == 2 and channels in ((), (1,), (3,))
    if not is_image or min(sides) < 1 or max(sides) > IMAGE_SIDE:
        raise UserInputError.make(
            "E_DATA",
            f"image; expected uint8 H x W x 3 or H x W up to {IMAGE_SIDE} pixels, "
            f"got {pixels.dtype} {pixels.shape}",
        )
    is_grey = channels != (3,)
    image = Image.fromarray(np.ascontiguousarray(pixels.reshape(sides) if is_grey else pixels))
    if is_grey and codec == "webp":
        # WebP has no grey form.
        image = image.convert("RGB")
    options: dict[str, dict[str, Any]] = {
        "png": {"compress_level": 9},
        "jpeg": {"quality": quality, "subsampling": subsampling, "optimize": True},
        "webp": {"quality": quality, "lossless": quality == 100, "exact": True, "method": 4},
    }
    out = io.BytesIO()
    image.save(out, _PILLOW[codec], **options[codec])
    data = out.getvalue()
    try:
        parse_image(data, codec)
    except HelloError as error:
        text = f"the {codec} encoder left the profile: {error}"
        raise UserInputError.make("E_DATA", text) from None
    return data
