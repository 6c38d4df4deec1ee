"""What a caller passes, checked before anything is made of it.

NumPy's and torch's integers are integers as well, but must not travel on as what they are: they
overflow where Python's do not, and no JSON takes them.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch

from hellofmt.errors import UserInputError, foreign_text, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

LabelKind = Literal["soft", "logits", "hard", "none"]


def _refused(argument: str, expected: str, value: object) -> UserInputError:
    text = f"expected {expected}, got {printable(repr(value))}"
    return UserInputError.make("E_OPTION", text, argument=argument)


def whole(value: object, argument: str, least: int, bits: int | None = None) -> int:
    """A plain int from ``least`` on, below ``2**bits`` if that is given; no bool is one.

    Raises:
        UserInputError: E_OPTION, it is something else or out of range.
    """
    is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
    try:
        number = operator.index(cast("Any", value)) if is_whole else least - 1
    except TypeError:
        number = least - 1
    if number < least or (bits is not None and number >= 1 << bits):
        expected = f"at least {least}" if bits is None else f"{least} <= {argument} < 2**{bits}"
        raise _refused(argument, expected, value)
    return number


def positive(value: object, argument: str) -> float:
    """A finite number above 0, as a plain float."""
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(cast("Any", value))
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise _refused(argument, "a finite number > 0", value)
    return number


def bytes_of(value: int | Literal["auto"], argument: str, auto: int) -> int:
    """A number of bytes to keep, ``auto`` for ``"auto"``; UserInputError (E_OPTION) for others."""
    if value == "auto":
        return auto
    if not isinstance(cast("object", value), int) or value < 0:
        raise _refused(argument, "'auto' or bytes >= 0", value)
    return value


def check_functions(**functions: object) -> None:
    """Refuse what cannot be called; None is not looked at."""
    for argument, function in functions.items():
        if function is not None and not callable(function):
            raise _refused(argument, "a function", function)


def device_of(device: str | torch.device | None, *, is_used: bool = True) -> torch.device:
    """A device of torch, which has to be here if it is used; None is the CPU."""
    try:
        made = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        text = f"expected `cpu`, `cuda`, `cuda:1` or the like, got {printable(repr(device))}"
        text += f" ({foreign_text(error, 80)})"
        raise UserInputError.make("E_OPTION", text, argument="device") from None
    if is_used and made.type == "cuda" and (made.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        text = f"expected one that is here, got {made}: torch sees {count} CUDA devices"
        raise UserInputError.make("E_OPTION", text, argument="device")
    return made


def check_options(
    *,
    labels: LabelKind,
    views: Literal["manifest"] | None,
    has_target_transform: bool,
    as_dict: tuple[str, str] | None,
    is_stored: bool,
    has_label_function: bool,
) -> None:
    """Refuse options of ``HelloDataset`` that are out of range or exclude each other (E_OPTION)."""
    if labels not in get_args(LabelKind):
        raise _refused("labels", "'soft', 'logits', 'hard' or 'none'", labels)
    if views not in ("manifest", None):
        raise _refused("views", "'manifest' or None", views)
    text = None
    if labels == "none" and has_target_transform:
        text = "`target_transform` with labels='none'; expected labels to transform"
    elif is_stored and has_label_function:
        text = "`label_function` and `stored`; expected one of them"
    elif is_stored and labels != "soft":
        text = f"`stored` labels; expected labels='soft', got {labels!r}"
    elif has_label_function and labels not in ("soft", "logits"):
        text = f"`label_function`; expected labels='soft' or 'logits', got {labels!r}"
    elif as_dict is not None and (labels == "none" or not _is_pair(as_dict)):
        text = "`as_dict`; expected two keys, such as ('pixel_values', 'labels'), and labels"
        text += f" for the second, got {printable(repr(as_dict))} with labels={labels!r}"
    if text is not None:
        raise UserInputError.make("E_OPTION", text)


def _is_pair(keys: object) -> bool:
    names = cast("Sequence[object]", keys) if isinstance(keys, (tuple, list)) else ()
    return all(isinstance(name, str) for name in names) and len(names) == len(set(names)) == 2
