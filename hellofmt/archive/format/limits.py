"""Size limits of a reader: defaults that a caller may raise, and hard caps that nobody can.

A file never raises its own limit. No allocation while reading exceeds the smaller of a cap and the
bytes that exist, so a small hostile file costs little memory and a large one no more than its own
length. All caps are defined here; errors name the value, the cap and the option that raises it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

from hellofmt.errors import LimitError, UserInputError

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
# A member's size field holds 11 octal digits.
_MEMBER: Final = 8 * _GIB - 1

MANIFEST_BYTES: Final = _MIB
"""Most bytes of a manifest; fixed."""
SAFETENSORS_HEADER_BYTES: Final = _MIB
"""Most bytes of the JSON header of section ``base``, the only one that is read; fixed."""
TEXT_BYTES: Final = {"record": 64 << 10, "card": _MIB, "license": _MIB}
"""Most raw bytes of each text section but the class list; fixed."""
IMAGE_SIDE: Final = 4096
"""Most pixels along one side of an image; fixed."""


def _limit(default: int, hard: int) -> int:
    """A field with the value that no option goes past."""
    return field(default=default, metadata={"hard": hard})


@dataclass(frozen=True)
class Limits:
    """Limits of one reader or writer; every field may be raised up to its hard cap.

    They hold for one file: a set of shards may have more of everything.

    Attributes:
        images: rows of the index.
        index_bytes: raw bytes of the index.
        image_bytes: stored bytes of one image.
        image_pixels: height x width of one image; a side has at most 4,096 pixels.
        section_bytes: raw bytes of one section.
        sections_bytes: raw bytes of all sections together.
        zstd_bytes: raw bytes of one zstd section.
        zstd_ratio: raw over stored bytes of one zstd section.
        probes: stored probes.
        rank: inner dimension of a low-rank factor pair.
        file_bytes: bytes of the whole file.
        classes: classes.
        class_bytes: raw bytes of the class list.
        parameters: numbers that the file makes a reader hold, beyond two per stored byte: those of
            a generated base, of all factors, and classes x features of the heads.
        gflop: work of checking a label function whose base the file describes, in 10**9 operations;
            an embedded base may cost 1 more for every 10**6 bytes it has.
        base_side: side of the base's input, pixels.
        text_characters: characters of all sentences of a head that starts from text, and 32 for
            each; through a generated text tower a sixteenth of it.
        view_side: side of a view, pixels.
        batch_pixels: views of a batch x side x side.

    Raises:
        UserInputError: a field is below 1 or above its hard cap (E_OPTION).

    Example:
        >>> import hellofmt
        >>> hellofmt.open("photos.hello", limits=Limits(images=10))
        Traceback (most recent call last):
        hellofmt.errors.LimitError: ...
    """

    images: int = _limit(2_000_000, 10_000_000)
    index_bytes: int = _limit(128 * _MIB, 512 * _MIB)
    image_bytes: int = _limit(64 * _MIB, _MEMBER)
    image_pixels: int = _limit(16_777_216, 16_777_216)
    section_bytes: int = _limit(_GIB, _MEMBER)
    sections_bytes: int = _limit(2 * _GIB, _MEMBER)
    zstd_bytes: int = _limit(64 * _MIB, _GIB)
    zstd_ratio: int = _limit(200, 1000)
    probes: int = _limit(16, 64)
    rank: int = _limit(256, 1024)
    file_bytes: int = _limit(64 * _GIB, 1 << 40)
    classes: int = _limit(131_072, 4_194_304)
    class_bytes: int = _limit(4 * _MIB, 64 * _MIB)
    parameters: int = _limit(24_000_000, 1 << 31)
    gflop: int = _limit(128, 1_000_000)
    base_side: int = _limit(512, IMAGE_SIDE)
    text_characters: int = _limit(8 * _MIB, _GIB)
    view_side: int = _limit(1024, IMAGE_SIDE)
    batch_pixels: int = _limit(1 << 27, 1 << 34)

    def __post_init__(self) -> None:
        for name, hard in _HARD.items():
            value: int = getattr(self, name)
            if not 1 <= value <= hard:
                text = f"limit `{name}`; expected 1 to {hard}, got {value}"
                raise UserInputError.make("E_OPTION", text)


_HARD: Final[dict[str, int]] = {one.name: one.metadata["hard"] for one in fields(Limits)}
DEFAULT_LIMITS: Final = Limits()
"""Limits for callers that name none."""


def check_limit(limits: Limits, name: str, value: int, *, member: str = "") -> None:
    """Refuse ``value`` if it exceeds the limit ``name``, a field of ``Limits``."""
    cap: int = getattr(limits, name)
    if value > cap:
        hard = _HARD[name]
        fact, advice = f"`{name}` is {value}, cap {cap}", ""
        if value > hard:
            fact += f"; no option goes past {hard}"
        else:
            advice = f"{{limits:{name}={value}}} raises it"
        raise LimitError.make(f"E_LIMIT_{name.upper()}", fact, member=member, advice=advice)


def check_fixed(name: str, value: int, cap: int, *, member: str = "") -> None:
    """Refuse ``value`` if it exceeds a cap of the format that no option raises."""
    if value > cap:
        text = f"`{name}` is {value}, cap {cap}; no option raises it"
        raise LimitError.make(f"E_LIMIT_{name.upper()}", text, member=member)
