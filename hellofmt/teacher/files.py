"""Teachers as files of our own: the tensors, and the input rule in the safetensors header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors.torch import save

from hellofmt.checkpoint import Checkpoint, read_checkpoint
from hellofmt.errors import UserInputError, printable
from hellofmt.runs.results import write_file
from hellofmt.student.networks import build_student
from hellofmt.teacher.match import Match, find_weights, listed
from hellofmt.teacher.network import Teacher
from hellofmt.teacher.rule import InputRule

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import nn

__all__ = ["load_teacher", "own_rule", "refuse_match", "save_teacher"]

_RULE: Final = "hellofmt.teacher"
_NETWORK: Final = "network."


def save_teacher(teacher: Teacher, path: str | os.PathLike[str]) -> None:
    """Write a teacher's tensors and input rule as safetensors, whole or not at all.

    Raises:
        ValueError: only some of its outputs are used, which the file could not say.
        OSError: the file cannot be written.
    """
    if teacher.columns is not None:
        raise ValueError("teacher: expected one of whose outputs all are used")
    state = {
        _NETWORK + name: tensor.cpu().contiguous()
        for name, tensor in teacher.network.state_dict().items()
    }
    write_file(Path(path), save(state, {_RULE: json.dumps(teacher.rule.to_json())}))


def own_rule(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> InputRule | None:
    """The input rule that ``save_teacher`` put into a file; None for anybody else's file.

    Raises:
        UserInputError: E_TEACHER: the rule is damaged.
    """
    text = checkpoint.metadata.get(_RULE)
    if text is None:
        return None
    try:
        return InputRule.from_json(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserInputError.make(
            "E_TEACHER", f"`{printable(path)}` has a damaged input rule in its header"
        ) from error


def load_teacher(
    path: str | os.PathLike[str],
    network: str,
    classes: int,
    build: Callable[..., nn.Module] = build_student,
) -> Teacher:
    """Read what ``save_teacher`` wrote.

    Args:
        path: safetensors file.
        network: the name it was built by.
        classes: number of logits.
        build: makes the network from (name, classes, size).

    Returns:
        The teacher, frozen.

    Raises:
        OSError: the file cannot be read.
        UserInputError: E_TEACHER: not such a file, or not of this network; E_OPTION: unknown
            network.
    """
    checkpoint = read_checkpoint(path, pickles=False)
    rule = own_rule(checkpoint, path)
    if rule is None or rule.size is None:
        raise UserInputError.make(
            "E_TEACHER", f"`{printable(path)}` was not written by `save_teacher`"
        )
    module = build(network, classes, rule.size)
    match = find_weights(module, checkpoint, str(path))
    if not match.fits:
        refuse_match(match, str(path), network, classes)
    module.load_state_dict(match.state, strict=False)
    return Teacher(module, rule)


def refuse_match(match: Match, path: str, network: str, classes: int, advice: str = "") -> None:
    """Raise what a checkpoint that does not fit has to say.

    Args:
        match: one that does not fit.
        path: of the file.
        network: as the user named it.
        classes: that the network was built for.
        advice: what would help, where it is known.

    Raises:
        UserInputError: E_TEACHER, always.
    """
    count = match.head_classes(classes)
    if count is not None:
        fact = f"has a head of {count:,} classes; expected {classes:,}"
    elif match.missing or match.unexpected:
        parts = [
            f"lacks {len(match.missing):,} of its names ({listed(match.missing)})"
            if match.missing
            else "",
            f"has {len(match.unexpected):,} other names ({listed(match.unexpected)})"
            if match.unexpected
            else "",
        ]
        fact = " and ".join(filter(None, parts))
    else:
        name, got, wanted = sorted(match.shapes)[0]
        more = f", and {len(match.shapes) - 1:,} more differ" if len(match.shapes) > 1 else ""
        fact = f"size mismatch for `{printable(name)}`: {list(got)}; expected {list(wanted)}{more}"
    raise UserInputError.make(
        "E_TEACHER",
        f"`{printable(path)}` does not hold a `{printable(network)}` for {classes:,} classes:"
        f" {fact}",
        advice=advice,
    )
