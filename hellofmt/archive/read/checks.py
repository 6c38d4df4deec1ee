"""Checks that several readers share: pins, padding, digests, dimensions and text."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from hellofmt.errors import CorruptError, SpecError, UserInputError, printable


def check_expect(expect: str | None) -> None:
    """Raise unless ``expect`` is ``sha256:`` plus 64 hex digits.

    Raises:
        UserInputError: it is not (E_OPTION).
    """
    if expect is not None and re.fullmatch(r"sha256:[0-9a-f]{64}", expect) is None:
        raise UserInputError.make(
            "E_OPTION",
            f"expected sha256: and 64 hex digits, got {printable(expect, 80)}",
            argument="expect",
        )


def check_padding(padding: bytes | memoryview, member: str, offset: int) -> None:
    """Raise unless all padding bytes are zero.

    Raises:
        CorruptError: a byte is not zero (E_PADDING).
    """
    if bytes(padding).strip(b"\0"):
        raise CorruptError.make(
            "E_PADDING", "bytes after the payload; expected zeros", member=member, offset=offset
        )


def check_section_digest(actual: str, expected: str, member: str) -> None:
    """Raise if the digest of a section does not match.

    Raises:
        CorruptError: its bytes changed (E_DIGEST_INDEX).
    """
    if actual != expected:
        raise CorruptError.make(
            "E_DIGEST_INDEX", f"digest differs; expected {expected}, got {actual}", member=member
        )


def check_image_digest(data: bytes | memoryview, expected: bytes, name: str, offset: int) -> None:
    """Raise if the digest of an image does not match.

    Raises:
        CorruptError: its bytes changed (E_DIGEST_MEMBER).
    """
    actual = hashlib.sha256(data).digest()
    if actual != expected:
        raise CorruptError.make(
            "E_DIGEST_MEMBER",
            f"digest differs; expected {expected.hex()}, got {actual.hex()}",
            member=name,
            offset=offset,
        )


def check_dimensions(shape: Any, height: int, width: int, name: str) -> None:
    """Raise if the dimensions of an image differ from the index.

    Raises:
        SpecError: they differ (E_INDEX).
    """
    if (shape.height, shape.width) != (height, width):
        raise SpecError.make(
            "E_INDEX",
            f"the image is {shape.height} x {shape.width} pixels; the index states "
            f"{height} x {width}",
            member=name,
        )


def check_text(raw: bytes, member: str) -> None:
    """Raise if a text section is not UTF-8.

    Raises:
        SpecError: it is not (E_SCHEMA).
    """
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError.make(
            "E_SCHEMA", f"not UTF-8 at byte {error.start}", member=member
        ) from None
