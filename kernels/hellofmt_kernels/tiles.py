"""Tiles, warps and stages of the Triton kernels by shape and device: ``tiles.json``, read once.

Fixed rather than autotuned: tuning costs minutes, times a GPU that others may be using and is
illegal while a CUDA graph is captured. The numbers come from ahead-of-time compilation (registers,
spills, shared memory: ``tools/aot.py``), not from run times. What stands behind some of them:

- Half precision: the 128 x 256 tile spills at 255 registers on sm_80, so only sm_90 and newer use
  it, above ten waves of programs, where it reads a quarter less of both operands. Fewer than 64
  rows would give up Hopper's warp-group products.
- float32: three tf32 products of every operand stay in registers, so wide tiles spill.
- Views: four warps leave eight neighbouring pixels to a thread, which shares the arithmetic of
  their rows and columns; eight compile to half as many instructions again per value.

Rules are tried in order; the first that applies, and whose operands fit in the device's shared
memory, is taken. ``capability`` is the least one, ``bytes`` those of an operand's element. A tile
of labels is [rows, classes, features, warps, stages], with ``"row"`` for all classes at once; one
of views is [rows, columns, warps].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["LabelTile", "Tiles", "ViewTile", "parse_tiles", "shared_bytes", "table"]

_SCHEMA = "hellofmt_kernels.tiles/1"
_TABLE = ("row_max_classes", "normalise_classes", "shared_bytes", "labels", "views")
_LABELS = {"bytes", "capability", "tile", "min_rows", "max_rows", "min_classes", "max_classes"}
_VIEWS = {"tile", "min_size", "max_size"}


@dataclass(frozen=True)
class LabelTile:
    """One program of the label GEMM: rows, classes, features a step; steps in memory."""

    block_n: int
    block_c: int
    block_d: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ViewTile:
    """One program of `views`: rows and columns of output pixels."""

    block_y: int
    block_x: int
    num_warps: int


@dataclass(frozen=True)
class Tiles:
    """The table.

    Attributes:
        row_max_classes: up to this many classes one program holds whole rows of logits.
        normalise_classes: classes that one program of the normalising pass rescales.
    """

    row_max_classes: int
    normalise_classes: int
    _shared: dict[str, int]
    _labels: list[dict[str, Any]]
    _views: list[dict[str, Any]]

    def labels(self, n: int, c: int, itemsize: int, capability: tuple[int, int]) -> LabelTile:
        """Return the tile for n rows and c classes of operands of ``itemsize`` bytes."""
        limit = self._shared.get(".".join(map(str, capability)), self._shared["others"])
        row = max(16, 1 << max(0, c - 1).bit_length())
        for rule in self._labels:
            if (
                rule["bytes"] == itemsize
                and _capability(rule) <= capability
                and _is_within(rule, rows=n, classes=c)
            ):
                tile = LabelTile(*(row if part == "row" else part for part in rule["tile"]))
                if shared_bytes(tile, itemsize) <= limit:
                    return tile
        msg = f"tiles.json: no tile for {n} x {c} x {itemsize} bytes on {capability}"
        raise ValueError(msg)

    def views(self, size: int) -> ViewTile:
        """Return the tile for views of ``size`` pixels."""
        return ViewTile(*next(r["tile"] for r in self._views if _is_within(r, size=size)))


def _capability(rule: dict[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, rule.get("capability", "0.0").split(".")))


def _is_within(rule: dict[str, Any], **numbers: int) -> bool:
    return all(
        rule.get(f"min_{what}", number) <= number <= rule.get(f"max_{what}", number)
        for what, number in numbers.items()
    )


def shared_bytes(tile: LabelTile, itemsize: int) -> int:
    """Shared memory of the operands of a tile; the compiler adds little for its own conversions."""
    return tile.num_stages * (tile.block_n + tile.block_c) * tile.block_d * itemsize


def parse_tiles(text: str) -> Tiles:
    """Read a table of JSON, see the module."""
    document = json.loads(text)
    found = Tiles(*(document[key] for key in _TABLE))
    if document.keys() != {"schema", *_TABLE} or document["schema"] != _SCHEMA:
        msg = f"tiles.json: {sorted(document)}; expected {_SCHEMA} with {', '.join(_TABLE)}"
        raise ValueError(msg)
    for name, numbers, allowed in (("labels", 5, _LABELS), ("views", 3, _VIEWS)):
        for rule in document[name]:
            blocks = [16 if part == "row" else part for part in rule["tile"]]
            # Triton's blocks and warps are powers of two; the stages of labels, the last, are not.
            is_legal = len(blocks) == numbers and all(
                type(block) is int and block.bit_count() == 1 for block in blocks[:4]
            )
            if not is_legal or rule.keys() - allowed:
                msg = f"tiles.json: {name}: {rule}; expected {numbers} numbers, powers of two"
                raise ValueError(f"{msg}, and keys of {', '.join(sorted(allowed))}")
    ends = [rule for rule in document["labels"] if rule.keys() == {"bytes", "tile"}]
    if {rule["bytes"] for rule in ends} != {2, 4} or document["views"][-1].keys() != {"tile"}:
        raise ValueError("tiles.json: expected a rule without conditions after all others")
    return found


@cache
def table() -> Tiles:
    """Return the table that this package ships."""
    return parse_tiles((resources.files("hellofmt_kernels") / "tiles.json").read_text("utf-8"))
