"""How closely a label function follows its teacher, and what each storage costs of that.

Fidelity is measured on views that were not trained on: agreement (same top class) and KL. Accuracy
of a student is noisy, KL is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from hellofmt.projector import STORAGES, stored_labelers
from hellofmt.student.batches import ArrayBatches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from hellofmt.archive.format.manifest import Storage, Views
    from hellofmt.projector import Projector
    from hellofmt.sources import ArrayImages

__all__ = ["Fidelity", "Precision", "fidelity", "fidelity_table"]


@dataclass(frozen=True)
class Fidelity:
    """How closely labels follow a teacher on the same views.

    Attributes:
        agreement: percent of views with the same top class.
        kl: mean KL(teacher ‖ labels) at T = 1, in nats.
        views: number of views compared.
    """

    agreement: float
    kl: float
    views: int


def fidelity(
    labels: Callable[[Tensor], Tensor],
    teacher: Callable[[Tensor], Tensor],
    source: ArrayImages,
    views: Views,
    *,
    count: int = 1024,
    batch_size: int = 256,
    seed: int = 1,
) -> Fidelity:
    """Agreement and KL between two functions from views to logits.

    Args:
        labels: views (N, 3, S, S) in [0, 1] to logits (N, C): a projector, or a labeler's
            ``logits``.
        teacher: the same of the teacher.
        source: images that the views are made of, held out from the fit if there are any.
        views: how a view is made.
        count: number of views to compare, rounded up to whole batches.
        batch_size: views in a batch.
        seed: seed of the views; another one than the fit's.

    Returns:
        The fidelity.
    """
    batches = ArrayBatches(
        source.pixels, source.labels, len(source.classes), views, batch_size, seed
    )
    same, divergence, rounds = 0, 0.0, -(-count // batch_size)
    with torch.inference_mode():
        for k in range(rounds):
            batch = batches.batch(k).views
            target, logits = teacher(batch), labels(batch)
            same += int((target.argmax(1) == logits.argmax(1)).sum())
            divergence += float(
                functional.kl_div(
                    functional.log_softmax(logits, dim=1),
                    functional.log_softmax(target, dim=1),
                    reduction="sum",
                    log_target=True,
                )
            )
    n = rounds * batch_size
    return Fidelity(agreement=100.0 * same / n, kl=divergence / n, views=n)


@dataclass(frozen=True)
class Precision:
    """What a storage costs and what it keeps.

    Attributes:
        storage: number format of the deltas and the head.
        size_bytes: size of the label function's sections.
        fidelity: fidelity of the labels that a reader of the file gets.
    """

    storage: Storage
    size_bytes: int
    fidelity: Fidelity


def fidelity_table(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    source: ArrayImages,
    views: Views,
    *,
    storages: Sequence[Storage] = STORAGES,
    count: int = 512,
    seed: int = 1,
) -> list[Precision]:
    """Bytes against fidelity for each storage, on the same views.

    Every row is measured on what a reader will rebuild from the stored bytes.

    Args:
        projector: fitted.
        teacher: the teacher it was fitted to.
        source: images that the views are made of, held out from the fit if there are any.
        views: how a view is made.
        storages: storages to measure; all five by default.
        count: number of views to compare.
        seed: seed of the views.

    Returns:
        One row per storage.

    Raises:
        UserInputError: a value that a storage cannot hold (E_OPTION).
    """
    rows: list[Precision] = []
    for storage, size_bytes, labeler in stored_labelers(projector, storages):
        measured = fidelity(labeler.logits, teacher, source, views, count=count, seed=seed)
        rows.append(Precision(storage, size_bytes, measured))
    return rows
