"""The state of a training run between two steps, as a file: killed anywhere, continued exactly.

What moves is written: trained tensors, buffers, the optimiser's moments, the number of steps done.
Everything else is a function of the step (views, order, learning rate) and needs no file, which is
why a continued run has the same bits as one that was never interrupted. The state names the run it
belongs to; that of another run is refused rather than continued.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hellofmt.errors import StateError, printable
from hellofmt.runs.results import Result, read_result, write_result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Checkpoint", "Keeper", "State"]


class Keeper(Protocol):
    """What a caller of training knows and wants back after a kill, such as a curve."""

    def facts(self) -> Mapping[str, Any]:
        """JSON values to be written with the state."""
        ...

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go back to where ``facts`` were taken."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """Where, as what and how often the state of a run is kept.

    Attributes:
        path: the file.
        run: digest of everything the run depends on.
        every: steps between two states, >= 1.
        seconds: or so many seconds, where steps are slow.
        keeper: written and put back with the state.
    """

    path: Path
    run: str
    every: int = 100
    seconds: float = 60.0
    keeper: Keeper | None = None


def _copied(tensor: Tensor, array: NDArray[Any]) -> Tensor:
    """``array`` with dtype, device and memory layout of ``tensor``.

    The layout counts: vectorised and strided loops may round differently in the last bit.
    """
    return torch.empty_like(tensor).copy_(torch.from_numpy(array))


class State:
    """The moving tensors of one run, and the file that keeps them.

    Attributes:
        done: steps that the file has; 0 without one.
    """

    def __init__(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Keep ``tensors``, everything that moves by name, as ``checkpoint`` says."""
        self._checkpoint = checkpoint
        self._tensors = tensors
        self._written = time.monotonic()
        self.done = 0

    def is_due(self, done: int) -> bool:
        """Whether the state after ``done`` steps is to be written."""
        kept = self._checkpoint
        is_late = time.monotonic() - self._written > kept.seconds
        return done % kept.every == 0 or is_late

    def write(self, done: int, optimiser: torch.optim.Optimizer) -> None:
        """Write the state after ``done`` steps, whole or not at all.

        Args:
            done: steps.
            optimiser: its moments are written, its learning rate is not.

        Raises:
            OSError: it cannot be written; the former state stays.
        """
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
        """Put everything back to where ``write`` was called.

        Args:
            optimiser: over the same parameters.

        Returns:
            Steps done; 0 without a file.

        Raises:
            StateError: of another run (E_STATE_DIGEST) or other tensors (E_STATE_SHAPE).
            UserInputError: damaged (E_DATA).
        """
        kept = self._checkpoint
        if not kept.path.exists():
            return 0
        result = read_result(kept.path)
        where = printable(kept.path)
        if result.facts.get("run") != kept.run:
            raise StateError.make(
                "E_STATE_DIGEST", f"`{where}` is the state of another run; delete it to start over"
            )
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
    """The optimiser's state dict with the stored moments."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state = optimiser.state_dict()
    for number, parameter in enumerate(parameters):
        prefix = f"optimiser.{number}."
        moments: dict[str, Tensor] = {}
        for key, array in result.tensors.items():
            if key.startswith(prefix):
                is_moment = array.shape == tuple(parameter.shape) and array.ndim > 0
                moments[key.removeprefix(prefix)] = (
                    _copied(parameter.detach(), array) if is_moment else torch.from_numpy(array)
                )
        if moments:
            state["state"][number] = moments
    return state
