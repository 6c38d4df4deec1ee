"""Numbers, functions and devices that a caller passes, checked before anything is made of them.

NumPy's and torch's integers are integers as well, but must not travel on as what they are: they
overflow where Python's do not, and no JSON takes them.
"""

from __future__ import annotations

import math
import operator
from typing import Any, cast

import torch

from hellofmt.errors import UserInputError, foreign_text, printable


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
    """A finite number above 0, as a plain float.

    Raises:
        UserInputError: E_OPTION, it is something else or out of range.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(cast("Any", value))
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise _refused(argument, "a finite number > 0", value)
    return number


def check_functions(**functions: object) -> None:
    """Refuse what cannot be called; None is not looked at.

    Raises:
        UserInputError: E_OPTION, with the argument's name.
    """
    for argument, function in functions.items():
        if function is not None and not callable(function):
            raise _refused(argument, "a function", function)


def device_of(device: str | torch.device | None, *, is_used: bool = True) -> torch.device:
    """A device of torch, which has to be here if it is used; None is the CPU.

    Raises:
        UserInputError: E_OPTION, torch knows no such device, or sees none here.
    """
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
