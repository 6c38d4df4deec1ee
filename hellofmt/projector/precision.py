"""A projector in every storage of the format, as its readers would rebuild it.

The choice of a storage is made by labels, not by weights: a delta may be a percent off and change
no label, or the reverse. Bytes are those of the sections as an archive stores them, compressed
where that gains: where the deltas are tiny, scales and their names make int8 larger than float16,
which the values alone would hide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from hellofmt.archive.format.compress import compress
from hellofmt.archive.format.manifest import Storage
from hellofmt.archive.format.tensors import serialize_tensors
from hellofmt.errors import UserInputError
from hellofmt.projector.labeler import Labeler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from hellofmt.archive.format.tensors import StoredTensor
    from hellofmt.projector.projector import Projector

__all__ = ["STORAGES", "stored_labelers"]

#: Every storage of the format, largest first.
STORAGES: tuple[Storage, ...] = get_args(Storage)


def stored_labelers(
    projector: Projector,
    storages: Sequence[Storage] = STORAGES,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Storage, int, Labeler]]:
    """What a reader would rebuild from each storage, without writing a file.

    Args:
        projector: trained projector; not changed.
        storages: storages to rebuild it from.
        device: where the labelers run.

    Yields:
        Storage, bytes of sections ``adapter`` and ``head`` as an archive stores them, labeler.

    Raises:
        UserInputError: E_OPTION, no or unknown storages, or a value that a storage cannot hold.
    """
    unknown = [storage for storage in storages if storage not in STORAGES]
    if unknown or not storages:
        raise UserInputError.make(
            "E_OPTION",
            f"storages: expected some of {', '.join(STORAGES)}, got {unknown or 'none'}",
        )
    for storage in storages:
        part = projector.part(storage, probes=1)
        size = _stored_bytes(part.adapter_tensors)
        size += _stored_bytes(part.head_tensors)
        labeler = Labeler.assembled(
            projector.base,
            part.adapter,
            {name: tensor.numpy() for name, tensor in part.adapter_tensors.items()},
            part.head,
            {name: tensor.numpy() for name, tensor in part.head_tensors.items()},
            projector.names,
            device=device,
        )
        yield storage, size, labeler


def _stored_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    raw = serialize_tensors(tensors)
    packed = compress(raw)
    return len(raw if packed is None else packed)
