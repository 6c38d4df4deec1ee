"""The state of a training run between two steps, as a file: killed anywhere, continued exactly.

What moves is written: trained tensors, buffers, the optimiser's moments, the number of steps done.
Everything else is a function of the step (views, order, learning rate) and needs no file, which is
why a continued run has the same bits as one that was never interrupted. The state names what run it
belongs to; another run's is refused rather than continued.
"""

from __future__ import annotations

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

__all__ = ["Checkpoint", "Keeper", "read_state", "write_state"]


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
        path: of the file; written after every ``every`` steps and after the last.
        run: digest of everything the run depends on.
        every: steps, >= 1.
        keeper: written and put back with the state.
    """

    path: Path
    run: str
    every: int = 100
    keeper: Keeper | None = None


def _copied(tensor: Tensor, array: NDArray[Any]) -> Tensor:
    """``array`` with dtype, device and memory layout of ``tensor``.

    The layout counts: vectorised and strided loops may round differently in the last bit.
    """
    return torch.empty_like(tensor).copy_(torch.from_numpy(array))


def write_state(
    path: Path,
    run: str,
    step: int,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    keeper: Keeper | None = None,
) -> None:
    """Write the state after ``step`` steps, whole or not at all.

    Args:
        path: of the file.
        run: digest of everything the run depends on.
        step: steps done.
        tensors: everything that moves, by name.
        optimiser: its moments are written, its learning rate is not.
        keeper: its facts are written too.

    Raises:
        OSError: it cannot be written; the former state stays.
    """
    arrays = {f"tensor.{name}": t.detach().cpu().numpy() for name, t in tensors.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        for name, value in moments.items():
            arrays[f"optimiser.{number}.{name}"] = torch.as_tensor(value).cpu().numpy()
    facts: dict[str, Any] = {"run": run, "step": step}
    if keeper is not None:
        facts["kept"] = dict(keeper.facts())
    write_result(path, Result(arrays, facts))


def read_state(
    path: Path,
    run: str,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    keeper: Keeper | None = None,
) -> int:
    """Put everything back to where ``write_state`` was called; 0 steps without a file.

    Args:
        path: of the file.
        run: digest of everything the run depends on.
        tensors: what moves, by name; overwritten in place.
        optimiser: over the same parameters.
        keeper: put back too.

    Returns:
        Steps done.

    Raises:
        StateError: of another run (E_STATE_DIGEST) or other tensors (E_STATE_SHAPE).
        UserInputError: damaged (E_DATA).
    """
    if not path.exists():
        return 0
    result = read_result(path)
    if result.facts.get("run") != run:
        raise StateError.make(
            "E_STATE_DIGEST",
            f"`{printable(path)}` is the state of another run; delete it to start over",
        )
    shapes = {f"tensor.{name}": tuple(t.shape) for name, t in tensors.items()}
    found = {n: a.shape for n, a in result.tensors.items() if n.startswith("tensor.")}
    if found != shapes:
        raise StateError.make(
            "E_STATE_SHAPE",
            f"`{printable(path)}` holds {len(found)} tensors; expected the run's {len(shapes)}",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(result.tensors[f"tensor.{name}"]))
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
    optimiser.load_state_dict(state)
    if keeper is not None:
        keeper.restore(result.facts.get("kept", {}))
    return int(result.facts["step"])
