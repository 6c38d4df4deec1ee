"""Which parameters get a low-rank delta, of which rank and shape.

A rule names parameters by a preset or by a pattern over state-dict names; spec/hello-1.md gives the
shapes of a delta of a matrix or of a convolution.
"""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hellofmt.errors import SpecError, UserInputError, did_you_mean, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


#: Largest inner dimension of a product B A that is written; readers refuse more by default.
MAX_INNER = 256

#: Largest inner dimension of any reader, whatever its caller allows (spec/hello-1.md, "Limits").
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


@dataclass(frozen=True)
class DeltaShape:
    """The shapes of one delta.

    Attributes:
        param: state-dict name in the image tower.
        shape: shape of the parameter.
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
        """Number of trained values."""
        return math.prod(self.a) + math.prod(self.b)


def flat_shape(param: str, shape: tuple[int, ...], rank: int) -> DeltaShape:
    """Make B (O, r) and A (r, rest); a rank that no product could reach is cut to the full one.

    Of a depthwise filter (O, 1, k, k) that is r (O + k^2) values where the convolution form has
    r k^2 (O + 1), which at r = 1 is the whole filter already.
    """
    rows, rest = shape[0], math.prod(shape[1:])
    r = min(rank, rows, rest)
    return DeltaShape(param, shape, (r, rest), (rows, r))


def _convolution_shape(param: str, shape: tuple[int, ...], rank: int) -> DeltaShape:
    """Make B (O k, r k), A (r k, I k): LoRA's convolution form (arXiv 2106.09685, its code)."""
    outputs, inputs, k, _ = shape
    return DeltaShape(param, shape, (rank * k, inputs * k), (outputs * k, rank * k))


@dataclass(frozen=True)
class TargetRule:
    """A rule for which parameters get a delta, of which rank and scale; see ``parse_target``.

    Attributes:
        pattern: a preset of `PRESETS`, or a shell pattern over state-dict names.
        rank: r, or None for the projector's.
        scale: s of W0 + s B A.
    """

    pattern: str
    rank: int | None = None
    scale: float = 1.0


def parse_target(text: str) -> TargetRule:
    """Parse ``PATTERN[:RANK[:SCALE]]``; the rank may be left empty (``*.mlp.*::0.5``).

    State-dict names contain no colon.

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
            advice=did_you_mean(rule.pattern, PRESETS),
        )
    return [rule]


def is_paper(targets: str | Sequence[str | TargetRule]) -> bool:
    """Whether ``targets`` are preset ``paper`` alone, which fixes the scale and has no bias."""
    rules = _rules(targets)
    return bool(rules) and all(rule.pattern == "paper" for rule in rules)


def _is_depthwise(shape: tuple[int, ...]) -> bool:
    """Whether each filter sees one channel: (O, 1, k, k), k > 1."""
    return len(shape) == 4 and shape[1] == 1 and shape[2] > 1


def _matches(rule: TargetRule, maps: Mapping[str, tuple[int, ...]]) -> set[str]:
    if rule.pattern == "paper":
        return {n for n, shape in maps.items() if shape[2:] == (3, 3) or _is_depthwise(shape)}
    if rule.pattern == "transformer":
        names = {n for n, shape in maps.items() if len(shape) == 2 and _BLOCK.fullmatch(n)}
        # MLPs alone are no transformer: ConvNeXt has such blocks too.
        return names if any(".attn." in f".{name}" for name in names) else set()
    if rule.pattern == "all":
        return set(maps)
    return {name for name in maps if fnmatch.fnmatchcase(name, rule.pattern)}


def delta_shapes(
    parameters: Mapping[str, tuple[int, ...]],
    targets: str | Sequence[str | TargetRule],
    rank: int,
) -> list[DeltaShape]:
    """Choose the parameters that get a delta, with shapes and scales, sorted by name.

    Targets are a preset, or rules, ``PATTERN[:RANK[:SCALE]]`` each, whose pattern is a preset or a
    shell pattern over the names; of several rules for one parameter the last holds, and no rule at
    all means no delta (a linear probe). Presets: ``"paper"``: every 3 x 3 convolution but depthwise
    ones, in the convolution form; ``"transformer"``: attention and MLP weights of the blocks,
    flattened; ``"all"``: every weight of two or more dimensions except positions, tokens and
    vectors in disguise (such as (C, 1, 1)), flattened. Patterns choose among these and flatten too.
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
            missing.append(rule.pattern)
        for name in names:
            is_flat = rule.pattern != "paper" or _is_depthwise(maps[name])
            form = flat_shape if is_flat else _convolution_shape
            shape = form(name, maps[name], rule.rank or rank)
            chosen[name] = replace(shape, scale=rule.scale)
    if missing:
        shown = [f"`{printable(pattern)}`" for pattern in missing]
        raise UserInputError.make(
            "E_OPTION",
            f"targets: the image tower has no weight for {', '.join(shown)}; expected names of "
            f"its {len(maps)} weights, such as {', '.join(sorted(maps)[:3])}",
            advice=did_you_mean(missing[0], (*PRESETS, *maps)),
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
