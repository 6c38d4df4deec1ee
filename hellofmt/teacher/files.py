"""Teachers as files of our own: the tensors, and the input rule in the safetensors header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from safetensors.torch import save

from hellofmt.archive.storage.local_files import write_small_file
from hellofmt.checkpoint import RULE_KEY, Checkpoint, read_checkpoint
from hellofmt.errors import UserInputError, printable
from hellofmt.student.networks import build_student
from hellofmt.teacher.network import Teacher
from hellofmt.teacher.rule import InputRule
from hellofmt.weights import Match, find_weights

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import nn

_NETWORK: Final = "network."


def save_teacher(teacher: Teacher, path: str | os.PathLike[str]) -> None:
    """Write a ``Teacher``'s tensors and input rule as safetensors, whole or not at all.

    Raises:
        ValueError: only some of its outputs are used, which the file could not say.
        OSError: the file cannot be written.
    """
    if teacher.columns is not None:
        raise ValueError("teacher: expected one of whose outputs all are used")
    save_network(teacher.network, teacher.rule, Path(path))


def save_network(
    network: nn.Module, rule: InputRule, path: Path, *, prefix: str = _NETWORK
) -> None:
    """Write a network as ``save_teacher`` does; it may go on training.

    ``prefix`` comes before every name; empty keeps the names that its library loads.
    """
    state = {prefix + n: t.cpu().contiguous() for n, t in network.state_dict().items()}
    write_small_file(path, save(state, {RULE_KEY: json.dumps(rule.to_json())}), force=True)


def own_rule(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> InputRule | None:
    """Return the input rule that ``save_teacher`` put into a file, None for anybody else's file."""
    text = checkpoint.metadata.get(RULE_KEY)
    if text is None:
        return None
    try:
        return InputRule.from_json(json.loads(text))
    except ValueError as error:
        raise UserInputError.make(
            "E_TEACHER", f"`{printable(path)}` has a damaged input rule in its header"
        ) from error


def load_teacher(
    path: str | os.PathLike[str],
    network: str,
    classes: int,
    build: Callable[..., nn.Module] = build_student,
) -> Teacher:
    """Read what ``save_teacher`` wrote; see ``Teacher``.

    Args:
        path: safetensors file.
        network: the name it was built by.
        classes: number of logits.
        build: makes the network from (name, classes, size).

    Returns:
        The teacher, frozen.

    Raises:
        OSError: the file cannot be read.
        UserInputError: not such a file, or of another network (E_TEACHER); an unknown network
            (E_OPTION).
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


def refuse_match(match: Match, path: str, network: str, classes: int, advice: str = "") -> NoReturn:
    """Say how the checkpoint at ``path`` differs from the network of so many classes."""
    count = match.head_classes(classes)
    fact = match.difference()
    if count is not None:
        fact = f"has a head of {count:,} classes; expected {classes:,}"
    raise UserInputError.make(
        "E_TEACHER",
        f"`{printable(path)}` does not hold a `{printable(network)}` for {classes:,} classes:"
        f" {fact}",
        advice=advice,
    )
