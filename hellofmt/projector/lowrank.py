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
import re
from dataclasses import dataclass, replace
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

__all__ = [
    "MAX_INNER",
    "PRESETS",
    "Delta",
    "DeltaShape",
    "TargetRule",
    "delta_shapes",
    "is_paper",
    "merge_",
    "parse_target",
    "read_deltas",
]

#: Largest inner dimension of a product B A that is made; readers refuse more unless told otherwise.
MAX_INNER = 256

#: Largest that is ever read, whatever limit the caller set (spec/hello-1.md, "Limits").
HARD_INNER = 1024

#: Names that `delta_shapes` takes instead of patterns.
PRESETS = ("paper", "transformer", "all")

# Attention and MLP weights of a block, whatever a library calls them: `attn.in_proj_weight` and
# `mlp.c_fc.weight` in open_clip, `attn.qkv.weight` and `mlp.fc1.weight` in timm. Not the pool.
_BLOCK = re.compile(r"(?!.*(?:attn_pool|rel_pos))(?:.*\.)?(attn|mlp)\..*")

# Positions, learned tokens and queries are inputs, not maps: a product of low rank has no meaning
# there.
_NOT_MAPS = (
    "positional_embedding",
    "class_embedding",
    "pos_embed",
    "cls_token",
    "reg_token",
    "query",
    "latent",
    "relative_position_bias_table",
)

#: Largest scale of a delta, in size (spec/hello-1.md, "Limits").
MAX_SCALE = 1000.0

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
        scale: s.
    """

    param: str
    shape: tuple[int, ...]
    a: tuple[int, int]
    b: tuple[int, int]
    scale: float = 1.0

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


@dataclass(frozen=True)
class TargetRule:
    """Which parameters get a delta, of which rank and scale.

    Attributes:
        pattern: a preset of `PRESETS`, or a shell pattern over state-dict names.
        rank: r, or none for the projector's.
        scale: s of W0 + s B A.
    """

    pattern: str
    rank: int | None = None
    scale: float = 1.0


def parse_target(text: str) -> TargetRule:
    """``PATTERN[:RANK[:SCALE]]`` as a rule; the rank may be left empty (``*.mlp.*::0.5``).

    Args:
        text: as a user types it; state-dict names hold no colon.

    Returns:
        The rule.

    Raises:
        UserInputError: E_OPTION, not of this form, or a number out of range.

    Example:
        >>> parse_target("*.attn.*:16:0.5")
        TargetRule(pattern='*.attn.*', rank=16, scale=0.5)
    """
    pattern, *numbers = text.split(":")
    rank_text, scale_text = [*numbers, "", ""][:2]
    # Digits only: int() and float() would also take "1_0", " 8" and "nan".
    is_number = re.fullmatch(r"[0-9]{0,6}", rank_text, re.ASCII) and re.fullmatch(
        r"(-?[0-9]{1,9}(\.[0-9]{1,16})?)?", scale_text, re.ASCII
    )
    if not pattern or len(numbers) > 2 or not is_number:
        raise UserInputError.make(
            "E_OPTION",
            f"target `{printable(text)}`: expected `PATTERN[:RANK[:SCALE]]`, such as `*.attn.*:8` "
            f"or one of {', '.join(PRESETS)}",
        )
    rule = TargetRule(
        pattern,
        int(rank_text) if rank_text else None,
        float(scale_text) if scale_text else 1.0,
    )
    _check_rule(rule)
    return rule


def _check_rule(rule: TargetRule) -> None:
    if rule.rank is not None and rule.rank < 1:
        raise UserInputError.make("E_OPTION", f"rank: expected at least 1, got {rule.rank}")
    if not 0 < abs(rule.scale) <= MAX_SCALE:
        raise UserInputError.make(
            "E_OPTION",
            f"target `{printable(rule.pattern)}`: scale is {rule.scale:g}; expected not 0, and at "
            f"most {MAX_SCALE:g} in size",
        )


def _rules(targets: str | Sequence[str | TargetRule]) -> list[TargetRule]:
    if not isinstance(targets, str):
        return [parse_target(t) if isinstance(t, str) else t for t in targets]
    rule = parse_target(targets)
    if rule.pattern not in PRESETS:
        raise UserInputError.make(
            "E_OPTION",
            f"targets: unknown preset `{printable(rule.pattern)}`; expected one of "
            f"{', '.join(PRESETS)}, or patterns",
        )
    return [rule]


def is_paper(targets: str | Sequence[str | TargetRule]) -> bool:
    """Whether ``targets`` are preset ``paper`` alone, which also fixes the scale and has no bias.

    Args:
        targets: as `delta_shapes` takes them.

    Returns:
        True for the preset, with or without a rank of its own.

    Raises:
        UserInputError: E_OPTION, a target that cannot be parsed.
    """
    rules = _rules(targets)
    return bool(rules) and all(rule.pattern == "paper" for rule in rules)


def _matches(rule: TargetRule, maps: Mapping[str, tuple[int, ...]]) -> set[str]:
    if rule.pattern == "paper":
        # A depthwise filter has one input channel, and so no rank to lower.
        return {
            name
            for name, shape in maps.items()
            if len(shape) == 4 and shape[2:] == (3, 3) and shape[1] > 1
        }
    if rule.pattern == "transformer":
        found = {n for n, shape in maps.items() if len(shape) == 2 and _BLOCK.fullmatch(n)}
        # MLPs alone are no transformer: ConvNeXt has such blocks too.
        return found if any(".attn." in f".{name}" for name in found) else set()
    if rule.pattern == "all":
        return set(maps)
    return {name for name in maps if fnmatch.fnmatchcase(name, rule.pattern)}


def delta_shapes(
    parameters: Mapping[str, tuple[int, ...]],
    targets: str | Sequence[str | TargetRule],
    rank: int,
) -> list[DeltaShape]:
    """Which parameters get a delta, and of which shapes and scales.

    Args:
        parameters: state-dict names and shapes of the image tower's parameters.
        targets: a preset, or rules, ``PATTERN[:RANK[:SCALE]]`` each, whose pattern is a preset or a
            shell pattern over the names; of several rules for one parameter the last holds, and no
            rule at all means no delta (a linear probe). Presets: ``"paper"``: every 3 x 3
            convolution but depthwise ones, in the convolution form; ``"transformer"``: attention
            and MLP weights of the blocks, flattened; ``"all"``: every weight of two or more
            dimensions except positions, tokens and vectors in disguise (such as (C, 1, 1)),
            flattened. Patterns choose among these and flatten too.
        rank: r >= 1 of rules that state none.

    Returns:
        Sorted by name.

    Raises:
        UserInputError: E_OPTION, an unknown preset, a rule that matches nothing, or a rank or scale
            out of range.
    """
    maps = {
        name: shape
        for name, shape in parameters.items()
        if len(shape) >= 2
        and min(shape[0], math.prod(shape[1:])) > 1
        and name.rsplit(".", 1)[-1] not in _NOT_MAPS
    }
    chosen: dict[str, DeltaShape] = {}
    missing: list[str] = []
    _check_rule(TargetRule("", rank))
    for rule in _rules(targets):
        _check_rule(rule)
        names = _matches(rule, maps)
        if not names:
            missing.append(f"`{printable(rule.pattern)}`")
        form = _convolution_shape if rule.pattern == "paper" else flat_shape
        for name in names:
            shape = form(name, maps[name], rule.rank or rank)
            chosen[name] = replace(shape, scale=rule.scale)
    if missing:
        raise UserInputError.make(
            "E_OPTION",
            f"targets: the image tower has no weight for {', '.join(missing)}; expected names of "
            f"its {len(maps)} weights, such as {', '.join(sorted(maps)[:3])}",
        )
    for target in chosen.values():
        if target.a[0] > MAX_INNER:
            raise UserInputError.make(
                "E_OPTION",
                f"rank: inner dimension of `{target.param}` is {target.a[0]}; "
                f"expected at most {MAX_INNER}",
            )
    return sorted(chosen.values(), key=lambda target: target.param)


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
        return cls(shape.param, a, torch.zeros(shape.b), shape.scale)

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
