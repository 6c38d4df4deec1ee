"""What full verification adds to an image's profile: its compressed data, walked to the end.

``parse_image`` sees the structure of a file. An image can pass it and still hold half a picture,
because decoders fill what is missing with grey, or ignore what follows. Here every code is read:

========  ==========================================================================================
PNG       The zlib stream is inflated: exactly the rows of the picture, their filter types 0 to 4,
          the Adler-32 right, nothing after it.
JPEG      libjpeg-turbo decodes every Huffman code and computes one pixel of 64. Whatever it warns
          of is damage: data that ends early, goes on for more than seven bytes or has a code of no
          table, and restart markers that are missing or out of order.
WebP      Of lossy images the frame header and the sizes of the partitions, which fill the chunk; of
          lossless ones nothing. Whether partitions are complete only decoding tells.
========  ==========================================================================================

Reading an image for training does not do this, but for JPEG, whose decoder is the same: its digest
says that it is the image that was verified.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, cast

from hellofmt.archive.format.images import ImageShape, without_metadata
from hellofmt.errors import CorruptError, foreign_text

if TYPE_CHECKING:
    from collections.abc import Iterator

# Bytes inflated at a time.
_PART: Final = 1 << 16
_FILTERS: Final = 4
_CHUNK: Final = struct.Struct(">I4s")


def check_image_data(data: bytes | memoryview, codec: str, shape: ImageShape) -> None:
    """Walk over the compressed data of an image to its end; the table above says how far.

    ``parse_image`` has accepted the file, and its dimensions are within the limits: decoding a JPEG
    takes memory by them.
    """
    fault = _CHECKS[codec](data, shape)
    if fault:
        raise CorruptError.make("E_IMAGE", f"damaged {codec}: {fault}")


def _check_png(data: bytes | memoryview, shape: ImageShape) -> str:
    """Inflate the IDAT chunks; return what is wrong."""
    # Twice the speed of zlib; loaded only where something is verified.
    from isal.igzip_lib import DECOMP_ZLIB, IgzipDecompressor, IsalError

    stride = 1 + shape.width * shape.channels
    size, done = shape.height * stride, 0
    stream = IgzipDecompressor(DECOMP_ZLIB)
    wrong = f"compressed data does not hold exactly {size} bytes"
    for chunk in _idat(data):
        if stream.eof:
            # An empty chunk is nothing.
            if len(chunk):
                return wrong
            continue
        source = chunk
        while True:
            try:
                part = stream.decompress(source, _PART)
            except cast("type[Exception]", IsalError) as error:
                return f"compressed data: {foreign_text(error)}"
            # The first byte of every row.
            filters = part[-done % stride :: stride]
            done += len(part)
            if done > size:
                return wrong
            if filters and max(filters) > _FILTERS:
                return f"a row with filter type {max(filters)}; expected 0 to {_FILTERS}"
            if stream.eof or not part or stream.needs_input:
                break
            source = b""
        if stream.unused_data:
            return wrong
    return "" if stream.eof and done == size else wrong


def _idat(data: bytes | memoryview) -> Iterator[memoryview]:
    view, at = memoryview(data), 8
    while at < len(view):
        size, name = _CHUNK.unpack_from(view, at)
        if name == b"IDAT":
            yield view[at + 8 : at + 8 + size]
        at += 12 + size


def _check_jpeg(data: bytes | memoryview, shape: ImageShape) -> str:
    """Decode every Huffman code; return what is wrong."""
    from simplejpeg import decode_jpeg

    # Of a small grey image all codes are read, and the least is computed. CMYK, which is in no
    # archive but may be on its way into one, has no grey.
    space = "CMYK" if shape.channels == 4 else "GRAY"
    try:
        decode_jpeg(without_metadata(data), space, fastdct=True, min_height=1, min_width=1)
    except ValueError as error:
        return foreign_text(error)
    return ""


def _check_webp(data: bytes | memoryview, _shape: ImageShape) -> str:
    """Hold the partitions of a lossy frame (RFC 6386, section 9) to its chunk."""
    if bytes(data[12:16]) != b"VP8 ":
        return ""
    body = bytes(data[20 : 20 + int.from_bytes(data[16:20], "little")])
    tag = int.from_bytes(body[:3], "little")
    if tag >> 1 & 7 > 3 or not tag >> 4 & 1:
        return "frame of an unknown version, or not to be shown"
    # Ten bytes of tag, start code and dimensions come first.
    end = 10 + (tag >> 5)
    if end > len(body):
        return "the first partition goes past the end"
    count = _count_partitions(body[10:end])
    start = end + 3 * (count - 1)
    sizes = [int.from_bytes(body[at : at + 3], "little") for at in range(end, start, 3)]
    # The last partition has no size; it is what is left, and never empty.
    if start + sum(sizes) >= len(body):
        return f"{count} partitions go past the end"
    return ""


def _count_partitions(data: bytes) -> int:
    """Read the frame header of VP8 up to the number of partitions.

    Bits come from the arithmetic decoder of RFC 6386, section 7, each with probability one half.
    """
    # One number holds all bytes that the header can take, and zeros after a short partition.
    value = int.from_bytes(data[:64].ljust(64, b"\0"), "big")
    spread, left = 255, 8 * 64 - 8

    def literal(bits: int) -> int:
        nonlocal value, spread, left
        number = 0
        for _ in range(bits):
            split = 1 + ((spread - 1) >> 1)
            bit = value >> left >= split
            if bit:
                value -= split << left
                spread -= split
            else:
                spread = split
            shift = 8 - spread.bit_length()
            spread <<= shift
            left -= shift
            number = number << 1 | bit
        return number

    def skip(count: int, bits: int) -> None:
        for _ in range(count):
            if literal(1):
                literal(bits)

    # Colour space and clamping; then segments, if any: their map and their values.
    literal(2)
    if literal(1):
        has_map, has_values = literal(1), literal(1)
        if has_values:
            literal(1)
            skip(4, 7 + 1)
            skip(4, 6 + 1)
        if has_map:
            skip(3, 8)
    # The loop filter: kind, level, sharpness, and changes by reference and mode.
    literal(1 + 6 + 3)
    if literal(1) and literal(1):
        skip(8, 6 + 1)
    return 1 << literal(2)


_CHECKS: Final = {"png": _check_png, "jpeg": _check_jpeg, "webp": _check_webp}
