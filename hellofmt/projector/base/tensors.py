"""The floating tensors of a tower: in the order of the digests, and how they are filled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hellofmt.archive.format.digest import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["digest_of", "fill_", "float_state", "float_tensors", "frozen"]


def float_state(module: nn.Module) -> dict[str, Tensor]:
    """Floating tensors of the state dict, sorted by name; integer counters are left out."""
    state = module.state_dict()
    return {name: state[name] for name in sorted(state) if state[name].is_floating_point()}


def float_tensors(module: nn.Module) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The same tensors by name as float32 on the CPU, one at a time."""
    for name, tensor in float_state(module).items():
        yield name, tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def digest_of(module: nn.Module) -> str:
    """The tensors digest of spec/hello-1.md over the floating tensors, as float32."""
    return tensors_digest(
        (name, "F32", array.shape, array.astype("<f4", copy=False).tobytes())
        for name, array in float_tensors(module)
    )


def fill_(module: nn.Module, values: Callable[[str, tuple[int, ...]], NDArray[Any]]) -> None:
    """Overwrite every floating tensor of the state dict by ``values(name, shape)``."""
    with torch.no_grad():
        for name, tensor in float_state(module).items():
            tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))


def frozen(module: nn.Module) -> nn.Module:
    """``module`` itself in float32 on the CPU, in eval mode and without gradients."""
    return module.to("cpu", torch.float32).eval().requires_grad_(requires_grad=False)
