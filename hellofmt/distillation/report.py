"""What a distillation measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hellofmt.distillation.fidelity import Fidelity
    from hellofmt.distillation.settings import DistillSettings
    from hellofmt.runs.cost import StageCost


@dataclass(frozen=True)
class DistillReport:
    """What ``distill`` measured.

    Attributes:
        id: id of the archive, ``sha256:...``; empty but on rank 0.
        teacher_accuracy: top-1 of the teacher on held-out (else source) images, percent.
        projector_accuracy: top-1 of the label function on the same images, percent.
        fidelity: how closely labels follow the teacher's on views that were not trained on.
        trained: number of values that the fit moved.
        stored: how closely labels of the images as a lossy codec stores them follow those of the
            images before; None where there are none, or their codec keeps every pixel.
        settings: what was carried out, with what a budget has chosen.
        costs: what each stage cost, in order.
    """

    id: str
    teacher_accuracy: float
    projector_accuracy: float
    fidelity: Fidelity
    trained: int
    stored: Fidelity | None = None
    settings: DistillSettings | None = None
    costs: tuple[StageCost, ...] = ()
