"""Options of a ``HelloDataset``, checked before anything is opened."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, cast

from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AUTO_CACHE_BYTES", "LabelKind", "check_function", "check_keys", "check_options"]

#: Bytes of decoded images that ``cache="auto"`` keeps.
AUTO_CACHE_BYTES = 512 << 20

LabelKind = Literal["soft", "logits", "hard", "none"]
_KINDS = ("soft", "logits", "hard", "none")


def check_options(
    labels: str,
    temperature: float | None,
    views: str | None,
    seed: int,
    cache: int | str,
) -> None:
    """Raise E_OPTION for the first option that is out of range."""
    is_byte_count = isinstance(cache, int) and cache >= 0
    problems = [
        (labels in _KINDS, "labels", "'soft', 'logits', 'hard' or 'none'", labels),
        (
            temperature is None or (math.isfinite(temperature) and temperature > 0),
            "temperature",
            "a finite number > 0",
            temperature,
        ),
        (views in ("manifest", None), "views", "'manifest' or None", views),
        (0 <= seed < 1 << 64, "seed", "0 <= seed < 2**64", seed),
        (cache == "auto" or is_byte_count, "cache", "'auto' or bytes >= 0", cache),
    ]
    for is_good, name, expected, value in problems:
        if not is_good:
            text = f"expected {expected}, got {printable(value)}"
            raise UserInputError.make("E_OPTION", text, argument=name)


def check_keys(keys: object, labels: str) -> None:
    """Raise E_OPTION unless ``as_dict`` is two keys, and items have a label for the second."""
    names = cast("Sequence[object]", keys) if isinstance(keys, (tuple, list)) else ()
    if len(names) != 2 or not all(isinstance(name, str) for name in names) or labels == "none":
        text = "`as_dict`; expected two keys, such as ('pixel_values', 'labels'), and labels for"
        text += f" the second, got {printable(repr(keys))} with labels={labels!r}"
        raise UserInputError.make("E_OPTION", text)


def check_function(labels: str, *, is_stored: bool, temperature: float | None) -> None:
    """Raise E_OPTION unless a label function fits the other options."""
    if labels not in ("soft", "logits"):
        text = f"`label_function`; expected labels='soft' or 'logits', got {labels!r}"
    elif is_stored:
        text = "`label_function` and `stored`; expected one of them"
    elif temperature is None and labels == "soft":
        text = "the archive has no projector and so no temperature; expected a number > 0"
        raise UserInputError.make("E_OPTION", text, argument="temperature")
    else:
        return
    raise UserInputError.make("E_OPTION", text)
