"""Low-rank deltas of base parameters: ``W = W0 + s * reshape(B A, W0.shape)``.

A delta belongs to a *parameter*, by its state-dict name, never to a module class. One rule
therefore covers linear layers, convolutions, the packed ``in_proj_weight`` of attention, attention
pools that call the functional attention with raw weights, and bare parameters such as ``proj``;
wrapping modules misses some of these and applies others twice (huggingface/peft#3774).

While fitting, the sum is formed once per step and handed to the tower with
``torch.func.functional_call``: the base is never modified, so several projectors share one, and
each weight is computed once however often the forward reads it. Rejected:
``torch.nn.utils.parametrize``, which swaps the classes of the base's modules and computes at every
access unless cached. For serving, deltas are merged once, in float32 (a small delta added in
bfloat16 loses an eighth of its entries), and are gone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hellofmt.archive.format.canonical import decimal_value
from hellofmt.errors import SpecError, printable
from hellofmt.projector import quantise
from hellofmt.projector.targets import DeltaShape, check_shapes
from hellofmt.rng import Stream, uniform, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.label_function import Adapter


# The initial factors have an epoch of their own, whose words nothing else in a fit uses.
_EPOCH = 2**32 - 1


class Delta(nn.Module):
    """One delta: W -> W + s * reshape(B A, W.shape).

    Attributes:
        param: state-dict name of the base parameter.
        scale: s.
        a: (r, rest) float32, trained.
        b: (rows, r) float32, trained.
    """

    def __init__(self, param: str, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
        """Take the factors as they are; `check_shapes` comes first."""
        super().__init__()
        self.param = param
        self.scale = scale
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)

    @classmethod
    def start(cls, shape: DeltaShape, *, seed: int, index: int) -> Delta:
        """Start a delta that changes nothing yet: B zero, A Kaiming-uniform with a = sqrt(5).

        That is uniform in +-1/sqrt(columns of A), as in LoRA (arXiv 2106.09685), but from counter
        words, so that it depends on the seed and on its number in the projector alone.
        """
        a = initial_matrix(shape.a, seed=seed, index=index)
        return cls(shape.param, a, torch.zeros(shape.b), shape.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Compute W + s * reshape(B A, W.shape), in W's shape; differentiable in A and B."""
        base = weight.reshape(self.b.shape[0], self.a.shape[1])
        return torch.addmm(base, self.b, self.a, alpha=self.scale).reshape(weight.shape)


def initial_matrix(shape: tuple[int, int], *, seed: int, index: int) -> Tensor:
    """Draw (rows, columns) float32, uniform in +-1/sqrt(columns), from the words of ``index``."""
    u = uniform(words(seed, _EPOCH, Stream.FIT, index, math.prod(shape)))
    values = (2.0 * u - 1.0) / math.sqrt(shape[1])
    return torch.from_numpy(values.reshape(shape)).to(torch.float32)


def merge_(module: nn.Module, deltas: Sequence[Delta]) -> None:
    """Add every delta to the parameter of ``module`` that it names, in float32, in place."""
    with torch.no_grad():
        for delta in deltas:
            parameter = module.get_parameter(delta.param)
            merged = delta(parameter.to(delta.a.device))
            if not bool(torch.isfinite(merged).all()):
                raise SpecError.make(
                    "E_TENSOR",
                    f"the delta of `{printable(delta.param)}` makes the weight infinite",
                    member="__hello__/adapter",
                )
            # copy_ crosses devices: a base need not be where its deltas are.
            parameter.copy_(merged)


def read_deltas(
    adapter: Adapter,
    tensors: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, tuple[int, ...]],
) -> list[Delta]:
    """Dequantise the deltas of section ``adapter`` to float32, in the manifest's order."""
    member = "__hello__/adapter"
    deltas: list[Delta] = []
    for target in adapter.targets:
        shape = parameters.get(target.param)
        if shape is None or list(shape) != target.shape:
            raise SpecError.make(
                "E_TENSOR",
                f"delta of `{printable(target.param)}`: the base has no such parameter; expected "
                f"shape {tuple(target.shape)}, got {shape}",
                member=member,
            )
        a_shape, b_shape = tuple(target.a), tuple(target.b)
        check_shapes(target.param, shape, a_shape, b_shape, member=member)
        a, b = (
            quantise.read_matrix(tensors, f"{target.param}::{side}", columns, target.storage)
            for side, (_, columns) in (("A", a_shape), ("B", b_shape))
        )
        deltas.append(Delta(target.param, a, b, decimal_value(target.scale)))
    return deltas
