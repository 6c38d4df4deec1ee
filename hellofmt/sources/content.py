"""What an image file is, by its first bytes and not by its name."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hellofmt.archive.format.images import Codec

HEAD_BYTES: Final = 4096
"""How much of a file is read to know its type, and the orientation that a camera wrote."""

CODECS: Final[dict[str, Codec]] = {
    "png": "png",
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "jpe": "jpeg",
    "jfif": "jpeg",
    "webp": "webp",
}
"""Lower-case extensions of the three types, and the type that each promises."""

_OTHERS: Final = """
    bmp dib gif tif tiff apng avif heic heif jp2 j2k jxl ppm pgm pbm pnm tga ico svg psd dng cr2 nef
    arw raw exr hdr
"""

IMAGE_EXTENSIONS: Final = frozenset(CODECS) | frozenset(_OTHERS.split())
"""Lower-case extensions of images, also of types that are refused by their content."""

_ORIENTATION: Final = 0x0112


def codec_of(head: bytes) -> Codec | None:
    """The codec of an image file, or None for any other file."""
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return None


def extension_of(name: str) -> str:
    """``jpg`` of ``a/b.JPG``; empty for a name without one."""
    # A path object for each of a million files would be most of the time of a listing.
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if stem and dot else ""


def is_misnamed(name: str, codec: str) -> bool:
    """Whether a file is called an image of another type than it is."""
    extension = extension_of(name)
    return extension in IMAGE_EXTENSIONS and CODECS.get(extension) != codec


def fact_of(head: bytes) -> str:
    """What a file that is called an image is instead, by its first bytes; empty if unknown."""
    if not head:
        return " but empty"
    if head.startswith(b"version https://git-lfs"):
        return " but a git-LFS pointer (`git lfs pull`)"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return " but a web page"
    return ""


def has_orientation(head: bytes) -> bool:
    """Whether a JPEG file says in its first ``HEAD_BYTES`` bytes that the camera was turned.

    Only JPEG can be stored as it is and carry one: PNG and WebP files with EXIF data are outside
    their profiles, so they are decoded, which looks for itself.
    """
    at = 2
    try:
        while head[at] == 0xFF and 0xE0 <= head[at + 1] <= 0xEF:
            size = int.from_bytes(head[at + 2 : at + 4], "big")
            if head[at + 1] == 0xE1 and head[at + 4 : at + 10] == b"Exif\0\0":
                return _orientation(head[at + 10 : at + 2 + size]) not in (None, 1)
            at += 2 + size
    except (IndexError, struct.error):
        pass
    return False


def _orientation(tiff: bytes) -> int | None:
    """The orientation of the first directory of EXIF data."""
    order = "<" if tiff[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, value = struct.unpack_from(order + "H6xH", tiff, entry)
        if tag == _ORIENTATION:
            return value
    return None
