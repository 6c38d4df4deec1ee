"""The version of the package, which archives state as their producer."""

from __future__ import annotations

from typing import Final

__all__ = ["VERSION"]

# Not from the installer's records, which a program may be shipped without.
VERSION: Final = "0.1.0"
