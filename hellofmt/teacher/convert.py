"""Weights as people have them, written again as safetensors under names that a network loads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors.torch import save

from hellofmt.archive.storage.local_files import write_small_file
from hellofmt.checkpoint import RULE_KEY, read_checkpoint
from hellofmt.errors import UserInputError, printable, target_exists
from hellofmt.teacher.files import own_rule, refuse_match
from hellofmt.teacher.libraries import factory_rule, library_network
from hellofmt.teacher.networks import from_factory, is_factory
from hellofmt.teacher.rule import RuleChange
from hellofmt.weights import find_weights, in_order, listed, without_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from hellofmt.checkpoint import Checkpoint
    from hellofmt.teacher.rule import InputRule

_UNCHANGED: Final = RuleChange()
# Networks of no library are built for views of this side, unless the user names another.
_SIDE: Final = 224
_CLASSES: Final = 1000


@dataclass(frozen=True)
class Converted:
    """What was written: how many tensors, numbers and outputs, and the input rule in the header."""

    tensors: int
    numbers: int
    rule: InputRule | None


def convert_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    network: str | None = None,
    change: RuleChange = _UNCHANGED,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Write the weights in a checkpoint as safetensors.

    What wrappers, compilers and trainers put before names is removed, and averaged weights are
    preferred to plain ones. With a network the names are its own, nothing is missing, and the
    header states the input rule of its library with the changes; where names differ, tensors are
    taken in order if each has the shape, and the last part of the name, of the network's.

    Args:
        source: file of ``torch.save`` or safetensors, of any trainer.
        target: file to write.
        network: name of the network, as for ``load_named_teacher``; None checks nothing.
        change: what the user says of the input; needs ``network``.
        force: replace an existing file.
        say: called with a line about whatever is chosen, renamed or left out.

    Raises:
        UserInputError: the file is no weights, or not those of the network (E_TEACHER); an unknown
            network, or a change without one (E_OPTION).
        HelloIOError: the target exists (E_TARGET).
        OSError: a file cannot be read or written.

    Example:
        >>> import torch
        >>> from hellofmt.teacher import build_network, convert_weights
        >>> state = {f"module.{n}": t for n, t in build_network("cnn", 3, 16).state_dict().items()}
        >>> torch.save({"state_dict": state}, "last.ckpt")
        >>> convert_weights("last.ckpt", "best.safetensors", network="cnn").tensors
        23
    """
    path = Path(target)
    if not force and os.path.lexists(path):
        raise target_exists(path)
    if network is None and change:
        raise UserInputError.make(
            "E_OPTION", "mean, std and size of the input belong to a network; name it"
        )
    checkpoint, file = read_checkpoint(source), str(source)
    rule = own_rule(checkpoint, file)
    if network is None:
        where, state = without_network(checkpoint, file)
    else:
        where, state, library = _of_network(network, checkpoint, file, change, say)
        rule = library if rule is None else change.of(rule)
    if where:
        say(f"{printable(file)}: `{printable(where, 80)}` removed before the names")
    header = {} if rule is None else {RULE_KEY: json.dumps(rule.to_json())}
    # Tied weights are one tensor twice, which the format does not know.
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    write_small_file(path, save(tensors, header), force=True)
    return Converted(len(tensors), sum(t.numel() for t in tensors.values()), rule)


def _of_network(
    name: str, checkpoint: Checkpoint, file: str, change: RuleChange, say: Callable[[str], None]
) -> tuple[str, dict[str, Tensor], InputRule]:
    """Where the weights of a network lie, these by its names, and its input rule."""

    def build(classes: int) -> tuple[nn.Module, InputRule]:
        if is_factory(name):
            made = from_factory(name, classes)
            return made, change.of(factory_rule(made))
        return library_network(name, classes, _SIDE, change, checkpoint.arguments)

    module, rule = build(_CLASSES)
    match = find_weights(module, checkpoint, file)
    count = match.head_classes(_CLASSES)
    if count is not None:
        module, rule = build(count)
        match = find_weights(module, checkpoint, file)
    if match.fits:
        if match.left_out:
            say(f"{printable(file)}: {listed(match.left_out)} left out")
        return match.where, module.state_dict() | match.state, rule
    for state in checkpoint.states.values():
        # The last tensor is the classifier's, whose outputs come first.
        last = list(state.values())[-1]
        module, rule = build(max(2, *last.shape[:1]))
        found = in_order(module, state)
        if found is not None:
            break
    else:
        refuse_match(match, file, name, _CLASSES)
    ours, theirs = next((n, o) for n, o in found.items() if n != o)
    say(
        f"{printable(file)}: names taken from {printable(name)} in order, `{printable(theirs, 80)}`"
        f" as `{ours}`: kind and shape of all {len(found):,} tensors agree"
    )
    # Counters of batches come from the network, whose library wants every name.
    return "", module.state_dict() | {n: state[old] for n, old in found.items()}, rule
