"""Low-rank deltas of base parameters: ``W = W0 + s * reshape(B A, W0.shape)``.

A delta belongs to a *parameter*, by its state-dict name, never to a module class. One rule so
covers linear layers, convolutions, the packed ``in_proj_weight`` of attention, attention pools that
call the functional attention with raw weights, and bare parameters such as ``proj``; wrapping
modules misses some of these and applies others twice (huggingface/peft#3774).

While fitting, the sum is formed once per step and handed to the tower with
``torch.func.functional_call``: the base is never modified, so several projectors share one, and
each weight is computed once however often the forward reads it.
``torch.nn.utils.parametrize`` was rejected: it swaps the classes of the base's modules, and
computes at every access unless cached. When serving, deltas are merged once, in float32 (adding a
small delta in bfloat16 loses an eighth of its entries), and are gone.
"""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hellofmt.archive.manifest import decimal_value
from hellofmt.errors import SpecError, UserInputError, printable
from hellofmt.projector import quantise
from hellofmt.rng import Stream, uniform, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.manifest import Adapter

__all__ = ["MAX_INNER", "PRESETS", "Delta", "DeltaShape", "delta_shapes", "merge_", "read_deltas"]

#: Largest inner dimension of a product B A that is made; readers refuse more unless told otherwise.
MAX_INNER = 256

#: Largest that is ever read, whatever limit the caller set (spec/hello-1.md, "Limits").
HARD_INNER = 1024

#: Names that `delta_shapes` takes instead of patterns.
PRESETS = ("paper", "transformer", "all")

_TRANSFORMER = (
    "*.attn.in_proj_weight",
    "*.attn.out_proj.weight",
    "*.mlp.c_fc.weight",
    "*.mlp.c_proj.weight",
)

# Positions and learned tokens are inputs, not maps: a product of low rank has no meaning there.
_NOT_MAPS = ("positional_embedding", "class_embedding", "pos_embed", "cls_token", "reg_token")

# The initial factors have a key of their own, so that they cannot meet other words of the fit.
_EPOCH = 2**32 - 1


@dataclass(frozen=True)
class DeltaShape:
    """The shapes of one delta.

    Attributes:
        param: state-dict name in the image tower.
        shape: of the parameter.
        a: shape of A, (r, rest) or (r k, C_in k).
        b: shape of B, (O, r) or (O k, r k).
    """

    param: str
    shape: tuple[int, ...]
    a: tuple[int, int]
    b: tuple[int, int]

    @property
    def count(self) -> int:
        """Trained values."""
        return math.prod(self.a) + math.prod(self.b)


def flat_shape(param: str, shape: tuple[int, ...], rank: int) -> DeltaShape:
    """B (O, r), A (r, rest); a rank that no product could reach is cut to the full one."""
    rows, rest = shape[0], math.prod(shape[1:])
    r = min(rank, rows, rest)
    return DeltaShape(param, shape, (r, rest), (rows, r))


def _convolution_shape(param: str, shape: tuple[int, ...], rank: int) -> DeltaShape:
    """B (O k, r k), A (r k, I k): the convolution form of LoRA (arXiv 2106.09685, its code)."""
    outputs, inputs, k, _ = shape
    return DeltaShape(param, shape, (rank * k, inputs * k), (outputs * k, rank * k))


def delta_shapes(
    parameters: Mapping[str, tuple[int, ...]], targets: str | Sequence[str], rank: int
) -> list[DeltaShape]:
    """Which parameters get a delta, and of which shapes.

    Args:
        parameters: state-dict names and shapes of the image tower's parameters.
        targets: ``"paper"``: every 3 x 3 convolution, in the convolution form; ``"transformer"``:
            attention and MLP weights of a ViT; ``"all"``: every weight of two or more dimensions
            except positions and tokens, flattened; or shell patterns over the names, flattened,
            where no pattern at all means no delta (a linear probe).
        rank: r >= 1.

    Returns:
        Sorted by name.

    Raises:
        UserInputError: E_OPTION, an unknown preset, a pattern or preset that matches nothing, or a
            rank out of range.
    """
    if rank < 1:
        raise UserInputError.make("E_OPTION", f"rank: expected at least 1, got {rank}")
    maps = {
        name: shape
        for name, shape in parameters.items()
        if len(shape) >= 2 and name.rsplit(".", 1)[-1] not in _NOT_MAPS
    }
    if targets == "paper":
        chosen = [
            _convolution_shape(name, shape, rank)
            for name, shape in maps.items()
            if len(shape) == 4 and shape[2:] == (3, 3)
        ]
        found = {"3 x 3 convolutions": bool(chosen)}
    elif targets == "all":
        chosen = [flat_shape(name, shape, rank) for name, shape in maps.items()]
        found = {"weights": bool(chosen)}
    else:
        if isinstance(targets, str) and targets != "transformer":
            raise UserInputError.make(
                "E_OPTION",
                f"targets: unknown preset `{printable(targets)}`; expected one of "
                f"{', '.join(PRESETS)}, or patterns",
            )
        patterns = _TRANSFORMER if targets == "transformer" else tuple(targets)
        matches = {p: {n for n in maps if fnmatch.fnmatchcase(n, p)} for p in patterns}
        found = {f"`{printable(p)}`": bool(names) for p, names in matches.items()}
        names = set[str]().union(*matches.values())
        chosen = [flat_shape(name, maps[name], rank) for name in names]
    missing = [what for what, is_found in found.items() if not is_found]
    if missing:
        raise UserInputError.make(
            "E_OPTION",
            f"targets: the image tower has no weight for {', '.join(missing)}; expected names of "
            f"its {len(maps)} weights, such as {', '.join(sorted(maps)[:3])}",
        )
    for target in chosen:
        if target.a[0] > MAX_INNER:
            raise UserInputError.make(
                "E_OPTION",
                f"rank {rank}: inner dimension of `{target.param}` is {target.a[0]}; "
                f"expected at most {MAX_INNER}",
            )
    return sorted(chosen, key=lambda target: target.param)


def check_shapes(
    param: str,
    shape: tuple[int, ...],
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    member: str,
) -> None:
    """Refuse factors whose product is not a delta of ``shape``, before any product.

    Two small factors can have a product of terabytes.

    Args:
        param: name of the parameter, for the message.
        shape: of the real parameter.
        a: shape of A.
        b: shape of B.
        member: archive member of the factors.

    Raises:
        SpecError: E_TENSOR, the product has another shape; E_RANK, the inner dimension is 0, too
            large, or differs between A and B.
    """
    forms = [(shape[0], math.prod(shape[1:]))] if len(shape) >= 2 else []
    if len(shape) == 4 and shape[2] == shape[3]:
        forms.append((shape[0] * shape[2], shape[1] * shape[2]))
    if len(a) != 2 or len(b) != 2 or (b[0], a[1]) not in forms:
        raise SpecError.make(
            "E_TENSOR",
            f"delta of `{printable(param)}`: shapes A {a} and B {b} do not multiply to that of the "
            f"base parameter; expected {shape}",
            member=member,
        )
    if a[0] != b[1] or not 1 <= a[0] <= HARD_INNER:
        raise SpecError.make(
            "E_RANK",
            f"delta of `{printable(param)}`: inner dimension of A is {a[0]} and of B {b[1]}; "
            f"expected equal, from 1 to {HARD_INNER}",
            member=member,
        )


class Delta(nn.Module):
    """One delta: W -> W + s * reshape(B A, W.shape).

    Attributes:
        param: state-dict name of the base parameter.
        scale: s.
        a: (r, rest) float32, trained.
        b: (rows, r) float32, trained.
    """

    def __init__(self, param: str, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
        """Take the factors as they are; `check_shapes` comes before."""
        super().__init__()
        self.param = param
        self.scale = scale
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)

    @classmethod
    def start(cls, shape: DeltaShape, *, seed: int, index: int) -> Delta:
        """The delta that training starts from: B zero, A Kaiming-uniform with a = sqrt(5).

        That is uniform in +-1/sqrt(columns of A), as in LoRA (arXiv 2106.09685), but from counter
        words, so that it depends on nothing but its coordinates.

        Args:
            shape: of the factors.
            seed: 0 <= seed < 2**64.
            index: which delta of the projector.

        Returns:
            A delta that changes nothing yet.
        """
        a = initial_matrix(shape.a, seed=seed, index=index)
        return cls(shape.param, a, torch.zeros(shape.b))

    def forward(self, weight: Tensor) -> Tensor:
        """W + s * reshape(B A, W.shape), in W's shape; differentiable in A and B.

        Args:
            weight: the base parameter, any shape of the right number of entries.

        Returns:
            The adapted weight.
        """
        base = weight.reshape(self.b.shape[0], self.a.shape[1])
        return torch.addmm(base, self.b, self.a, alpha=self.scale).reshape(weight.shape)


def initial_matrix(shape: tuple[int, int], *, seed: int, index: int) -> Tensor:
    """(rows, columns) float32, uniform in +-1/sqrt(columns), from counter words.

    Args:
        shape: rows, columns.
        seed: 0 <= seed < 2**64.
        index: which matrix.

    Returns:
        The matrix.
    """
    u = uniform(words(seed, _EPOCH, Stream.FIT, index, math.prod(shape)))
    values = (2.0 * u - 1.0) / math.sqrt(shape[1])
    return torch.from_numpy(values.reshape(shape)).to(torch.float32)


def merge_(module: nn.Module, deltas: Sequence[Delta]) -> None:
    """Add every delta to the parameter it names, in float32, in place.

    Args:
        module: image tower with float32 parameters.
        deltas: at most one per parameter; their shapes fit.
    """
    with torch.no_grad():
        for delta in deltas:
            parameter = module.get_parameter(delta.param)
            # copy_ crosses devices: a base may be elsewhere than its deltas.
            parameter.copy_(delta(parameter.to(delta.a.device)))


def read_deltas(
    adapter: Adapter,
    tensors: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, tuple[int, ...]],
) -> list[Delta]:
    """The deltas of section ``adapter``, dequantised to float32.

    Args:
        adapter: manifest entry.
        tensors: ``<param>::A``, ``<param>::B`` and scales.
        parameters: names and shapes of the real base.

    Returns:
        One delta per target, in the manifest's order.

    Raises:
        SpecError: E_TENSOR or E_RANK, a delta fits no parameter of the base.
    """
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
            quantise.read_matrix(tensors, f"{target.param}::{side}", matrix, target.storage, member)
            for side, matrix in (("A", a_shape), ("B", b_shape))
        )
        deltas.append(Delta(target.param, a, b, decimal_value(target.scale)))
    return deltas
