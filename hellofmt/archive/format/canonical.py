"""Canonical JSON: one spelling of every value, so that ``bytes == canonical(parse(bytes))``.

It has no floats, because two writers never print a float the same way. A decimal is a string in one
form, read as the nearest double.
"""

from __future__ import annotations

import json
import math
import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from hellofmt.archive.format.layout import MANIFEST_MEMBER
from hellofmt.errors import SpecError, UserInputError, printable

# Patterns end in "no character follows": in Python, "$" would let a line feed through.
END = r"(?![\s\S])"
DECIMAL_FORM: Final = r"^(?!-0\.0(?![0-9]))-?(0|[1-9][0-9]{0,8})\.([0-9]{0,16}[1-9]|0)" + END


def canonical(value: Any) -> bytes:
    r"""Serialise ``value`` to its one JSON form: sorted keys, no white space, ASCII and ``\uXXXX``.

    Values are dicts, lists, strings, integers and booleans; no line end follows.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def decimal_string(x: float) -> str:
    r"""Write a finite ``x``, \|x\| < 1e9, as the shortest decimal that reads back as ``x``.

    A double that needs more than 17 digits after the point is rounded to 17 (half to even); the
    decimal is then within 5e-18 of it. For instance ``"1.0"``, ``"-0.25"``, ``"0.0000001"``; never
    ``"-0.0"``.

    Raises:
        UserInputError: ``x`` is not finite or too large (E_OPTION).

    Example:
        >>> decimal_string(1e-7)
        '0.0000001'
    """
    x = float(x)
    if not math.isfinite(x) or abs(x) >= 1e9:
        raise UserInputError.make("E_OPTION", f"decimal; expected |x| < 1e9, got {x}")
    exact = Decimal(repr(x)).quantize(Decimal(1).scaleb(-17), rounding=ROUND_HALF_EVEN)
    whole, _, fraction = format(exact, "f").partition(".")
    text = f"{whole}.{fraction.rstrip('0') or '0'}"
    return "0.0" if text == "-0.0" else text


def decimal_value(s: str) -> float:
    """The double nearest to a decimal string of the manifest."""
    if re.match(DECIMAL_FORM, s) is None:
        raise SpecError.make("E_SCHEMA", f"not a canonical decimal: {printable(s)}")
    return float(s)


_TOO_DEEP: Final = "nested too deeply; expected at most 8 levels"


class _RefusedNumber(ValueError):
    """A number form that canonical JSON does not have."""


def _refuse_number(text: str) -> Any:
    raise _RefusedNumber(f"floats and constants are not allowed, got {printable(text, 40)}")


def _bounded_int(text: str) -> int:
    # Python converts decimal digits in quadratic time, and 2**53 has 16 of them.
    if len(text) > 17:
        raise _RefusedNumber(f"integer of {len(text)} characters; expected at most 16 digits")
    return int(text)


def parse_canonical(data: bytes, *, member: str = MANIFEST_MEMBER) -> dict[str, Any]:
    """Parse ``data``, which must be the canonical form of one JSON object within the bounds.

    The bounds of depth, strings, arrays and integers hold for keys that no schema knows, too.
    """

    def fault(text: str) -> SpecError:
        return SpecError.make("E_JSON", text, member=member)

    try:
        value = json.loads(
            data.decode("ascii"),
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            parse_int=_bounded_int,
        )
        if not isinstance(value, dict):
            raise fault("expected a JSON object")
        again = canonical(value)
    except UnicodeDecodeError as error:
        raise fault(f"not ASCII at byte {error.start}") from None
    except _RefusedNumber as error:
        raise fault(str(error)) from None
    except json.JSONDecodeError as error:
        raise fault(f"not JSON at byte {error.pos}: {error.msg}") from None
    except RecursionError:
        raise fault(_TOO_DEEP) from None
    if again != data:
        at = next(
            (i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b),
            min(len(again), len(data)),
        )
        raise fault(f"not the canonical form; differs at byte {at}")
    # A lone surrogate survives the round trip but is not text; only an escape can produce one.
    problem = _bound_exceeded(value, may_have_surrogates=b"\\ud" in data)
    if problem:
        raise fault(problem)
    return value


def _bound_exceeded(value: Any, *, may_have_surrogates: bool) -> str:
    """The first bound that parsed JSON exceeds, or an empty string; without recursion."""
    stack: list[tuple[Any, int, str]] = [(value, 1, "")]
    while stack:
        item, depth, name = stack.pop()
        if isinstance(item, (dict, list)) and depth > 8:
            return _TOO_DEEP
        if isinstance(item, dict):
            stack.extend((key, depth + 1, "") for key in item)
            stack.extend(
                (part, depth + 1, f"{name}.{key}" if name else key) for key, part in item.items()
            )
        elif isinstance(item, list):
            if len(item) > 65536:
                return f"array of {len(item)} items; expected at most 65536"
            stack.extend((part, depth + 1, name) for part in item)
        elif isinstance(item, str):
            if len(item) > 4096:
                where = f"`{printable(name, 80)}`: " if name else ""
                return f"{where}string of {len(item)} characters; expected at most 4096"
            if may_have_surrogates and any(0xD800 <= ord(c) < 0xE000 for c in item):
                return "a string holds a lone surrogate"
        elif isinstance(item, int) and not -(2**53) < item < 2**53:
            return "integer of 2**53 or more"
    return ""
