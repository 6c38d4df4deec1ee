"""Position of a run in its epochs, as a checkpoint keeps it: a small dict of strings and ints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, cast

from hellofmt.errors import StateError, printable

_VERSION: Final = 1
_ENDS: Final = {
    "rows": 1 << 53,
    "seed": 1 << 64,
    "epoch": 1 << 32,
    "next_batch": 1 << 53,
    "global_batch": 1 << 53,
}


@dataclass(frozen=True)
class Position:
    """Start of a global batch, over all ranks, in an epoch of the archive ``id``."""

    id: str
    rows: int
    seed: int
    epoch: int
    next_batch: int
    global_batch: int
    order: str

    def to_state(self) -> dict[str, Any]:
        """Return the position as a dict that JSON can hold."""
        return {"v": _VERSION, **asdict(self)}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Position:
        """Read what ``to_state`` returned, perhaps from an untrusted checkpoint."""
        keys = ["v", *(field.name for field in fields(Position))]
        is_mapping = isinstance(cast("object", state), Mapping)
        if not is_mapping or set(state) != set(keys):
            text = f"unknown form of state; expected the keys {json.dumps(keys)}"
            shown = sorted(map(str, state)) if is_mapping else type(state).__name__
            raise StateError.make("E_STATE_SHAPE", f"{text}, got {printable(shown)}")
        if state["v"] != _VERSION:
            text = f"`v` differs; expected {_VERSION}, got {printable(state['v'])}"
            raise StateError.make("E_STATE_SHAPE", text)
        for key, end in _ENDS.items():
            value = state[key]
            if type(value) is not int or not 0 <= value < end:
                text = f"`{key}` is out of range; expected an integer from 0 to {end - 1}"
                raise StateError.make("E_STATE_SHAPE", f"{text}, got {printable(value)}")
        return Position(**{key: state[key] for key in keys[1:]})

    def check_same_order(self, run: Position) -> None:
        """Check that this position means the same rows in the run that goes on from it."""
        if self.id != run.id:
            text = f"state of another file; expected {run.id}, got {printable(self.id)}"
            raise StateError.make("E_STATE_DIGEST", text)
        for key in ("rows", "seed", "order"):
            mine, expected = getattr(self, key), getattr(run, key)
            if mine != expected:
                text = f"`{key}` differs; expected {expected}, got {printable(mine)}"
                raise StateError.make("E_STATE_SHAPE", text)
