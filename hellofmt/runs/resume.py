"""Save a training run between two steps, so that it can be killed anywhere and resumed exactly.

The file holds everything that training changes: trained tensors, buffers, the optimiser's moments
and the number of steps done. Everything else (views, order, learning rate) is a function of the
step, so a resumed run has the same bits as an uninterrupted one. The file names its run; the state
of another run is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hellofmt.errors import StateError, printable
from hellofmt.runs import ranks
from hellofmt.runs.handed import handed_result
from hellofmt.runs.results import Result, read_result, write_result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


class Keeper(Protocol):
    """Facts of a caller that must survive a kill, such as a curve."""

    def facts(self) -> Mapping[str, Any]:
        """Return JSON values to save with the state."""
        ...

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Restore the situation in which ``facts`` were taken."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often to save the state of a run.

    Attributes:
        path: path of the file.
        run: digest of everything the run depends on.
        every: steps between two states, >= 1.
        seconds: seconds after which a state is written even before ``every`` steps.
        keeper: its facts are saved and restored with the state.
    """

    path: Path
    run: str
    every: int = 100
    seconds: float = 60.0
    keeper: Keeper | None = None


class State:
    """The changing tensors of one run, and the file that saves them; ``done`` steps are in it."""

    def __init__(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Save ``tensors``, everything that training changes, by name, as ``checkpoint`` says."""
        self._checkpoint = checkpoint
        self._tensors = tensors
        self._written = time.monotonic()
        self.done = 0

    def is_due(self, done: int) -> bool:
        """Tell whether to write the state after ``done`` steps."""
        kept = self._checkpoint
        is_late = time.monotonic() - self._written > kept.seconds
        return done % kept.every == 0 or is_late

    def write(self, done: int, optimiser: torch.optim.Optimizer) -> None:
        """Write the state after ``done`` steps, but no learning rate, whole or not at all."""
        kept = self._checkpoint
        arrays = {f"tensor.{name}": t.detach().cpu().numpy() for name, t in self._tensors.items()}
        for number, moments in optimiser.state_dict()["state"].items():
            for name, value in moments.items():
                arrays[f"optimiser.{number}.{name}"] = torch.as_tensor(value).cpu().numpy()
        facts: dict[str, Any] = {"run": kept.run, "step": done}
        if kept.keeper is not None:
            facts["kept"] = dict(kept.keeper.facts())
        kept.path.parent.mkdir(parents=True, exist_ok=True)
        write_result(kept.path, Result(arrays, facts))
        self.done, self._written = done, time.monotonic()

    def read(self, optimiser: torch.optim.Optimizer) -> int:
        """Restore the state of the last ``write``; return its steps, 0 if no process has a file.

        Every process must call this.
        """
        kept = self._checkpoint
        where = printable(kept.path)

        def read() -> Result:
            result = read_result(kept.path)
            if result.facts.get("run") != kept.run:
                raise StateError.make(
                    "E_STATE_DIGEST",
                    f"`{where}` is the state of another run; delete it to start over",
                )
            return result

        holder = ranks.holder(kept.path.exists())
        if holder is None:
            return 0
        result = handed_result(read, holder)
        expected = {f"tensor.{name}": tuple(t.shape) for name, t in self._tensors.items()}
        shapes = {n: a.shape for n, a in result.tensors.items() if n.startswith("tensor.")}
        if shapes != expected:
            raise StateError.make(
                "E_STATE_SHAPE",
                f"`{where}` holds {len(shapes)} tensors; expected the run's {len(expected)}",
            )
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(torch.from_numpy(result.tensors[f"tensor.{name}"]))
        optimiser.load_state_dict(_with_moments(optimiser, result))
        if kept.keeper is not None:
            kept.keeper.restore(result.facts.get("kept", {}))
        self.done = int(result.facts["step"])
        return self.done


def _with_moments(optimiser: torch.optim.Optimizer, result: Result) -> dict[str, Any]:
    """Return the optimiser's state dict with the saved moments."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state = optimiser.state_dict()
    for number, parameter in enumerate(parameters):
        prefix = f"optimiser.{number}."
        moments: dict[str, Tensor] = {}
        for key, array in result.tensors.items():
            if key.startswith(prefix):
                moment = torch.from_numpy(array)
                if array.shape == tuple(parameter.shape) and array.ndim > 0:
                    # The layout, too: vectorised and strided loops may round the last bit apart.
                    moment = torch.empty_like(parameter.detach()).copy_(moment)
                moments[key.removeprefix(prefix)] = moment
        if moments:
            state["state"][number] = moments
    return state
