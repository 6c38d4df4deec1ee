"""What each storage costs in bytes and in labels: the choice that a user of ``hello fit`` makes.

Compared are labels, not weights: a delta may be a percent off and move no label, or the reverse.
The reference is the projector as it was trained, in float32; the rows are what readers of each
storage compute. KL is that of the labels a student would get, at the projector's temperature. Bytes
are those of the sections as an archive stores them, compressed where that gains: where the deltas
are tiny, scales and their names make int8 larger than float16, which values alone would hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from hellofmt.archive.compress import compress
from hellofmt.archive.manifest import Storage
from hellofmt.archive.tensors import serialize_tensors
from hellofmt.errors import UserInputError
from hellofmt.projector.labeler import Labeler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from hellofmt.archive.tensors import StoredTensor
    from hellofmt.projector.projector import Projector

__all__ = ["STORAGES", "PrecisionRow", "precision_table", "stored_labelers"]

#: Every storage of the format, largest first.
STORAGES: tuple[Storage, ...] = get_args(Storage)

# Views at once: the tower's memory is what bounds this, not the labels'.
_BATCH = 128


@dataclass(frozen=True)
class PrecisionRow:
    """The labels of one storage beside those of the trained projector.

    Attributes:
        storage: of every factor, and of a stored head.
        section_bytes: sections ``adapter`` and ``head`` as an archive stores them.
        max_difference: largest change of a probability, 0 to 1.
        agreement: percent of views with the same top class.
        kl: mean KL(trained || stored) in nats, >= 0 up to rounding.
    """

    storage: Storage
    section_bytes: int
    max_difference: float
    agreement: float
    kl: float


def stored_labelers(
    projector: Projector,
    storages: Sequence[Storage] = STORAGES,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Storage, int, Labeler]]:
    """What a reader would rebuild from each storage, without writing a file.

    Args:
        projector: trained; not changed.
        storages: which.
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
        size = _stored_bytes("adapter", part.adapter_tensors)
        size += _stored_bytes("head", part.head_tensors)
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


def _stored_bytes(name: str, tensors: Mapping[str, StoredTensor]) -> int:
    raw = serialize_tensors(name, tensors)
    packed = compress(raw)
    return len(raw if packed is None else packed)


def precision_table(
    projector: Projector, views: Tensor, storages: Sequence[Storage] = STORAGES
) -> list[PrecisionRow]:
    """How far labels move with the storage of the deltas.

    Args:
        projector: trained; not changed.
        views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation; best ones
            that were not trained on.
        storages: which to compare.

    Returns:
        One row per storage, in their order.

    Raises:
        UserInputError: E_DATA, not such a batch; E_OPTION, no or unknown storages, or a value that
            a storage cannot hold.
    """
    trained = _log_labels(projector.labeler(views.device), projector.temperature, views)
    rows: list[PrecisionRow] = []
    for storage, section_bytes, reader in stored_labelers(projector, storages, views.device):
        labels = _log_labels(reader, projector.temperature, views)
        rows.append(
            PrecisionRow(
                storage,
                section_bytes,
                float((labels.exp() - trained.exp()).abs().max()),
                100.0 * float((labels.argmax(1) == trained.argmax(1)).double().mean()),
                float((trained.exp() * (trained - labels)).sum(1).mean()),
            )
        )
    return rows


def _log_labels(labeler: Labeler, temperature: float, views: Tensor) -> Tensor:
    """(N, C) float64 logarithms of the labels."""
    parts = [labeler.logits(batch).double() / temperature for batch in views.split(_BATCH)]
    return torch.cat(parts).log_softmax(1)
