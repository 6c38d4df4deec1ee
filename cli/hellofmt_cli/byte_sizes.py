"""Sizes as people type them: ``500kB``, ``2MB``, ``1.5MiB``, or bytes alone."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", re.IGNORECASE)
_UNITS: Final[Mapping[str, int]] = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}


class ByteSize(click.ParamType):
    """A number of bytes, at least 1, in decimal or binary units."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, rounded down."""
        found = _SIZE.fullmatch(str(value).strip())
        unit = _UNITS.get(found[2].lower()) if found else None
        size = int(Decimal(found[1]) * unit) if found and unit else 0
        if size < 1:
            self.fail(f"{value!r}; expected bytes such as 500kB, 2MB or 1.5MiB", param, ctx)
        return size
