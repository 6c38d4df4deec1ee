"""Describe a teacher in the record of an archive: its networks, their origin and their input.

A teacher that was named, read or trained here knows its ``Origin``; of any other module the record
has the digest of its weights, and of a plain function only what was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.digest import tensors_digest
from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.record import InputRecord, Network, TeacherRecord, as_line, percent
from hellofmt.teacher.network import Teacher, TeacherPool

if TYPE_CHECKING:
    from hellofmt.archive.format.fields import Interpolation
    from hellofmt.archive.format.record import Measured
    from hellofmt.teacher.rule import InputRule

_MOST: Final = 16


def weights_digest(network: nn.Module) -> str:
    """Compute the tensors digest of a network, as the specification defines it for towers."""
    lines: list[tuple[str, str, tuple[int, ...], bytes]] = []
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            lines.append((name, "F32", tuple(values.shape), values.numpy().tobytes()))
    return tensors_digest(lines)


def teacher_record(teacher: object, measured: Measured) -> TeacherRecord:
    """Describe what was imitated: a ``Teacher``, a ``TeacherPool``, a module, or any function."""
    networks = [_network(member) for member in _members(teacher)[:_MOST]]
    return TeacherRecord(measured=measured, networks=networks or UNSET)


def _members(teacher: object) -> list[nn.Module]:
    """The networks whose mean a teacher is; none of a function that is no module."""
    if isinstance(teacher, TeacherPool):
        return [member for one in teacher.teachers for member in _members(one)]
    return [teacher] if isinstance(teacher, nn.Module) else []


def _network(module: nn.Module) -> Network:
    if not isinstance(module, Teacher):
        return Network(digest=weights_digest(module), origin="a module of the caller")
    origin, chosen = module.origin, module.columns
    return Network(
        digest=weights_digest(module.network),
        origin=as_line(origin.text),
        accuracy=UNSET if origin.accuracy is None else percent(origin.accuracy),
        chosen=UNSET if chosen is None else len(chosen),
        input=_input(module.rule),
        network=as_line(origin.network) if origin.network else UNSET,
        step=UNSET if origin.step is None else origin.step,
        trained=UNSET if origin.trained is None else origin.trained,
        trained_on=UNSET if origin.trained_on is None else origin.trained_on,
    )


def _input(rule: InputRule) -> InputRecord:
    return InputRecord(
        interpolation=cast("Interpolation", rule.interpolation),
        mean=[decimal_string(value) for value in rule.mean],
        stated_by=as_line(rule.source),
        std=[decimal_string(value) for value in rule.std],
        size=UNSET if rule.size is None else rule.size,
    )
