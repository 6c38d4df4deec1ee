"""How closely a label function follows its teacher, and what each storage costs of that.

Fidelity is measured on views that were not trained on: agreement (same top class) and KL. Accuracy
of a student is noisy, KL is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from hellofmt.making import ViewBatches
from hellofmt.projector import stored_labelers
from hellofmt.runs import ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from hellofmt.archive.format.fields import Storage
    from hellofmt.archive.format.views import Views
    from hellofmt.making import ViewBatch
    from hellofmt.projector import Projector
    from hellofmt.sources import Source


@dataclass(frozen=True)
class Fidelity:
    """How closely labels follow a teacher on the same views, as ``fidelity`` measures it.

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
    source: Source,
    views: Views,
    *,
    original: Source | None = None,
    count: int = 1024,
    batch_size: int = 256,
    seed: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Fidelity:
    """Agreement and KL between two functions from views to logits.

    Under ``torchrun`` every process must call this, and each compares its share of the views.

    Args:
        labels: views (N, 3, S, S) in [0, 1] to logits (N, C): a projector, or a labeler's
            ``logits``.
        teacher: the same of the teacher.
        source: images that the views are made of, held out from the fit if there are any.
        views: how a view is made.
        original: images of the same sizes, of whose views the teacher is asked instead.
        count: number of views to compare, rounded up to whole batches.
        batch_size: views in a batch.
        seed: seed of the views; another one than the fit's.
        workers: number of processes that decode images ahead.
        device: where both functions take views.

    Returns:
        The fidelity.

    Example:
        >>> from hellofmt.archive import default_views
        >>> from hellofmt.sources import open_source
        >>> def teacher(views):
        ...     return views.mean(dim=(2, 3))
        >>> fidelity(teacher, teacher, open_source("photos"), default_views(16), count=32).agreement
        100.0
    """
    rounds = -(-count // batch_size)
    sums = torch.zeros(2, dtype=torch.float64)

    def stream(images: Source) -> Iterator[ViewBatch]:
        batches = ViewBatches(images, views, batch_size, seed)
        return batches.stream(
            rows=ranks.share(batch_size), end=rounds, workers=workers, device=device
        )

    pairs = ((batch, batch) for batch in stream(source))
    if original is not None:
        pairs = zip(stream(original), stream(source), strict=True)
    with torch.inference_mode():
        for asked, labelled in pairs:
            target, logits = teacher(asked.views).float(), labels(labelled.views).float()
            divergence = functional.kl_div(
                functional.log_softmax(logits, dim=1),
                functional.log_softmax(target, dim=1),
                reduction="sum",
                log_target=True,
            )
            same = (target.argmax(1) == logits.argmax(1)).sum()
            sums += torch.stack([same.double(), divergence.double()]).cpu()
    same, divergence = ranks.sum_rows_(sums.numpy()).tolist()
    n = rounds * batch_size
    return Fidelity(agreement=100.0 * same / n, kl=divergence / n, views=n)


@dataclass(frozen=True)
class Precision:
    """Bytes that a storage takes of the label function, and what readers' labels keep."""

    storage: Storage
    size_bytes: int
    fidelity: Fidelity


def fidelity_table(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    source: Source,
    views: Views,
    *,
    count: int = 512,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> list[Precision]:
    """Bytes against fidelity for each storage, on the same views; every process must call this.

    Every row is measured on what a reader will rebuild from the stored bytes.
    """
    rows: list[Precision] = []
    for storage, size_bytes, labeler in stored_labelers(projector, device=device):
        measured = fidelity(
            labeler.logits, teacher, source, views, count=count, workers=workers, device=device
        )
        rows.append(Precision(storage, size_bytes, measured))
    return rows
