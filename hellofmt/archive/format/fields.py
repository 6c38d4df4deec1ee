"""What the fields of the documents are: closed objects, numbers, texts, and their faults.

Manifest, record and signature are made of these. Rules that types cannot express stand beside the
types of views and of a label function; all others of the manifest are in ``validate.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct

from hellofmt.archive.format.canonical import DECIMAL_FORM, END

if TYPE_CHECKING:
    from collections.abc import Iterator

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}" + END)]
DecimalString = Annotated[str, Meta(pattern=DECIMAL_FORM)]
Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Positive = Annotated[int, Meta(ge=1, lt=2**53)]
Shape = Annotated[list[Positive], Meta(min_length=2, max_length=5)]
# A parameter's name in a state dict; it names tensors too.
Parameter = Annotated[str, Meta(pattern=r"^[!-~]{1,500}" + END)]
MatrixShape = Annotated[list[Positive], Meta(min_length=2, max_length=2)]
DecimalTriple = Annotated[list[DecimalString], Meta(min_length=3, max_length=3)]
DecimalPair = Annotated[list[DecimalString], Meta(min_length=2, max_length=2)]
Storage = Literal["float32", "float16", "bfloat16", "int8", "int4"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


class Closed(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object that refuses unknown keys and omits absent groups."""


@dataclass(frozen=True)
class Problem:
    """One fault of a document.

    Attributes:
        loc: path of the value, as in ``images.count`` or ``sections.2.name``.
        kind: kind of fault.
        message: ``expected X, got Y``, printable.
    """

    loc: str
    kind: Literal["type", "value", "group", "order", "duplicate", "rank", "digest"]
    message: str

    def __str__(self) -> str:
        return f"`{self.loc}`: {self.message}"


def exactly(loc: str, value: Any, wanted: bool, when: str) -> Iterator[Problem]:
    """A field that is present exactly where it has an effect."""
    if (value is not UNSET) != wanted:
        yield Problem(loc, "group", f"expected exactly {when}")


def in_range(
    loc: str, text: str, low: float, high: float, *, open_low: bool = False
) -> Iterator[Problem]:
    """A decimal from ``low`` to ``high``."""
    value = float(text)
    if not low <= value <= high or (open_low and value == low):
        bound = "above" if open_low else "from"
        yield Problem(loc, "value", f"expected {bound} {low} to {high}, got {text}")
