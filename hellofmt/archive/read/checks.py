"""Checks that several readers share: pins, padding, digests and dimensions."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from hellofmt.errors import CorruptError, SpecError, UserInputError, printable

if TYPE_CHECKING:
    from hellofmt.archive.format.images import ImageShape


def check_expect(expect: str | None) -> None:
    """Refuse a pin that is not ``sha256:`` and 64 hex digits (UserInputError, E_OPTION)."""
    if expect is not None and re.fullmatch(r"sha256:[0-9a-f]{64}", expect) is None:
        text = f"expected sha256: and 64 hex digits, got {printable(expect, 80)}"
        raise UserInputError.make("E_OPTION", text, argument="expect")


def check_padding(padding: bytes | memoryview, member: str, offset: int) -> None:
    """Refuse padding bytes that are not zero (CorruptError, E_PADDING)."""
    if bytes(padding).strip(b"\0"):
        text = "bytes after the payload; expected zeros"
        raise CorruptError.make("E_PADDING", text, member=member, offset=offset)


def check_section_digest(actual: str, expected: str, member: str) -> None:
    """Refuse a section with another digest (CorruptError, E_DIGEST_INDEX)."""
    if actual != expected:
        text = f"digest differs; expected {expected}, got {actual}"
        raise CorruptError.make("E_DIGEST_INDEX", text, member=member)


def check_image_digest(data: bytes | memoryview, expected: bytes, name: str, offset: int) -> None:
    """Refuse an image with another digest (CorruptError, E_DIGEST_MEMBER)."""
    actual = hashlib.sha256(data).digest()
    if actual != expected:
        text = f"digest differs; expected {expected.hex()}, got {actual.hex()}"
        raise CorruptError.make("E_DIGEST_MEMBER", text, member=name, offset=offset)


def check_dimensions(shape: ImageShape, height: int, width: int, name: str) -> None:
    """Refuse an image whose dimensions differ from those in the index (SpecError, E_INDEX)."""
    if shape[:2] != (height, width):
        text = (
            f"the image is {shape.height} x {shape.width} pixels; the index states "
            f"{height} x {width}"
        )
        raise SpecError.make("E_INDEX", text, member=name)
