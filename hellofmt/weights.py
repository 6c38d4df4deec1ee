"""Find a network's tensors in a checkpoint, under whatever names its trainer gave them.

Compiled modules (``_orig_mod``), DistributedDataParallel (``module``) and FSDP insert a segment
into names, Lightning and wrapper classes put a prefix before them, and trainers keep averaged
weights beside the plain ones. A prefix is removed only if *every* name of the network follows it,
so a network that really has a child called ``model`` keeps it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from hellofmt.checkpoint import Checkpoint

# Segments that wrappers insert anywhere in a name.
_WRAPPERS: Final = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
# What wrapper classes and Lightning modules call the network in them.
_OUTER: Final = frozenset({"model", "net", "network"})
# Averages of the plain weights, which evaluate better; DINO's `teacher` averages its student.
_AVERAGED: Final = re.compile(r"(^|[._])(ema|swa|averaged|average|teacher)([._]|$)")
# No label depends on these: counters of averages and profilers, constants that are computed when
# the network is built, and heads for training alone (torchvision's Inceptions store them).
_IDLE: Final = re.compile(
    r"(^|\.)(n_averaged|total_ops|total_params|relative_position_index|attn_mask)$"
    r"|^(AuxLogits|aux[12])\."
)
_COUNTER: Final = "num_batches_tracked"
_SHOWN: Final = 3


@dataclass(frozen=True)
class Match:
    """The tensors that a checkpoint has for a network at one place.

    Attributes:
        where: keys and prefix that lead to the tensors, such as ``state_dict.model.``; may be
            empty.
        state: tensors by the network's names.
        missing: names of the network that the place lacks.
        unexpected: names at the place that the network lacks.
        shapes: (name, shape in the file, shape in the network) where these differ.
        left_out: names of the same dictionary that belong to something else.
        others: other places that fit as well.
    """

    where: str
    state: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    left_out: list[str]
    others: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the network can be loaded from here."""
        return not (self.missing or self.unexpected or self.shapes)

    def head_classes(self, classes: int) -> int | None:
        """Classes of the file's head where only a head of ``classes`` differs; else None."""
        counts = {
            got[0] if got[1:] == wanted[1:] and wanted[:1] == (classes,) else None
            for _, got, wanted in self.shapes
        }
        is_head = not (self.missing or self.unexpected) and len(counts) == 1
        return counts.pop() if is_head else None

    def difference(self) -> str:
        """Say what keeps the network from being loaded: names first, else a shape."""
        facts: list[str] = []
        if self.missing:
            facts.append(f"lacks {len(self.missing):,} of its names ({listed(self.missing)})")
        if self.unexpected:
            others = f"{len(self.unexpected):,} other names ({listed(self.unexpected)})"
            facts.append(f"has {others}")
        if facts:
            return " and ".join(facts)
        name, got, expected = sorted(self.shapes)[0]
        more = f", and {len(self.shapes) - 1:,} more differ" if len(self.shapes) > 1 else ""
        fact = f"size mismatch for `{printable(name)}`: {list(got)}; expected {list(expected)}"
        return fact + more


def listed(names: Sequence[str]) -> str:
    """Quote the first three names in order, and count the rest."""
    shown = ", ".join(f"`{printable(name, 80)}`" for name in sorted(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def _plain(names: Sequence[str]) -> dict[str, str]:
    """Names by what is left of them without wrappers; as they are where two would be one."""
    plain = {".".join(p for p in name.split(".") if p not in _WRAPPERS): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _matches(
    network: Mapping[str, Tensor], where: str, state: Mapping[str, Tensor], idle: tuple[str, ...]
) -> Iterator[Match]:
    """Yield the places of one dictionary with every name of the network; else the likeliest."""
    wanted, got = _plain(list(network)), _plain(list(state))
    found: dict[str, int] = {}
    for name in got:
        parts = name.split(".")
        for k in range(len(parts)):
            if ".".join(parts[k:]) in wanted:
                prefix = "".join(f"{part}." for part in parts[:k])
                found[prefix] = found.get(prefix, 0) + 1
    needed = [name for name in wanted if name.rpartition(".")[2] != _COUNTER]
    whole = [p for p in found if all(p + name in got for name in needed)]
    # Where no place holds all, one that holds less than half is another network's.
    nearest = max(found, key=lambda prefix: found[prefix], default="")
    likely = whole or [nearest if 2 * found.get(nearest, 0) > len(needed) else ""]
    for prefix in likely:
        others = tuple(p for p in likely if p != prefix and p.startswith(prefix))
        unexpected: list[str] = []
        left_out = [full for name, full in got.items() if not name.startswith(prefix)]
        for name, full in got.items():
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix) or rest in wanted:
                continue
            if _IDLE.search(rest) or rest.startswith(idle):
                left_out.append(full)
            elif not (others and name.startswith(others)):
                unexpected.append(full)
        pairs = {
            full: state[got[prefix + name]] for name, full in wanted.items() if prefix + name in got
        }
        shapes = [
            (name, tuple(tensor.shape), tuple(network[name].shape))
            for name, tensor in pairs.items()
            if tensor.shape != network[name].shape
        ]
        missing = [wanted[name] for name in needed if prefix + name not in got]
        at = ".".join(filter(None, (where, prefix)))
        yield Match(at, pairs, missing, unexpected, shapes, left_out)


def find_weights(
    network: nn.Module, checkpoint: Checkpoint, file: str, *, idle: tuple[str, ...] = ()
) -> Match:
    """Find the weights that a checkpoint has for a network: averaged before plain ones.

    Where none fit, the place that comes nearest is returned. Messages name ``file``. Modules of the
    file that are named in ``idle`` are left out, such as the classifier of a network without one.
    """
    own = network.state_dict()
    found = [
        match
        for where, state in checkpoint.states.items()
        for match in _matches(own, where, state, tuple(f"{name}." for name in idle))
    ]
    fitting = [match for match in found if match.fits]
    if not fitting:
        return min(found, key=lambda m: (len(m.missing), len(m.unexpected), len(m.shapes)))
    best = [match for match in fitting if _AVERAGED.search(match.where)] or fitting
    for other in best[1:]:
        if any(
            not torch.equal(best[0].state[n].double(), t.double()) for n, t in other.state.items()
        ):
            raise UserInputError.make(
                "E_TEACHER",
                f"`{printable(file)}` holds several sets of these weights,"
                f" {listed([match.where for match in best])}; save the one you mean alone",
            )
    _check_types(best[0], own, file)
    return replace(best[0], others=tuple(m.where for m in fitting if m is not best[0]))


def in_order(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Pair the network's names with the file's by their order, as libraries rename whole networks.

    None unless the last parts of all names (``weight``, ``running_mean``) and all shapes agree;
    counters of batches, which no label depends on, are left out on both sides.
    """

    def plain(tensors: Mapping[str, Tensor]) -> list[tuple[str, str, tuple[int, ...]]]:
        parts = [(name, name.rpartition(".")[2], tuple(t.shape)) for name, t in tensors.items()]
        return [each for each in parts if each[1] != _COUNTER]

    ours, theirs = plain(network.state_dict()), plain(state)
    if [each[1:] for each in ours] != [each[1:] for each in theirs]:
        return None
    return {mine[0]: other[0] for mine, other in zip(ours, theirs, strict=True)}


def without_network(checkpoint: Checkpoint, file: str) -> tuple[str, dict[str, Tensor]]:
    """Take the largest set of weights, averaged before plain ones, where no network is known.

    Returns what lay before every name, and the tensors by what follows it.
    """
    sizes = {at: sum(t.numel() for t in s.values()) for at, s in checkpoint.states.items()}
    largest = [where for where, size in sizes.items() if size == max(sizes.values())]
    best = [where for where in largest if _AVERAGED.search(where)] or largest
    if len(best) > 1:
        raise UserInputError.make(
            "E_TEACHER",
            f"`{printable(file)}` holds several sets of weights, {listed(best)}; save the one you"
            " mean alone",
        )
    chosen = checkpoint.states[best[0]]
    state = {name: chosen[full] for name, full in _plain(list(chosen)).items()}
    prefix = ""
    while len(firsts := {name.partition(".")[0] for name in state}) == 1 and firsts <= _OUTER:
        (first,) = firsts
        prefix += f"{first}."
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return ".".join(filter(None, (best[0], prefix))), state


def _check_types(match: Match, own: Mapping[str, Tensor], file: str) -> None:
    """Refuse integers, such as those of a quantised file, that would be copied as weights."""
    for name, tensor in match.state.items():
        # Casting a whole state dict casts its counters as well.
        if name.endswith(_COUNTER):
            continue
        if tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex():
            raise UserInputError.make(
                "E_TEACHER",
                f"`{printable(name)}` of `{printable(file)}` is {tensor.dtype}; expected"
                f" {own[name].dtype}, or another floating-point type, as weights are before they"
                " are quantised",
            )
