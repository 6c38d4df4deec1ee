"""The plan: what a data set of any size costs with stored labels and with a label function.

Everything follows from a handful of sizes, so it is answered before anything is run and without
torch. Every default that is not arithmetic is an assumption, and ``Plan.assumptions`` lists each in
one sentence, because a ratio of bytes is only as good as what was counted. Rejected: a model of
accuracy (nobody can plan that), and an estimate of image bytes, which either way costs the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.manifest import Head
from hellofmt.errors import UserInputError, did_you_mean, printable
from hellofmt.ledger.function_bytes import (
    adapter_bytes,
    factor_values,
    head_bytes,
    model_bytes,
    probe_bytes,
    resnet18_parameters,
)
from hellofmt.ledger.label_bytes import VIEW_RECORD_BYTES, stored_label_bytes
from hellofmt.ledger.rivals import LabelFunction, Rival, rivals_of, shared_data_sets
from hellofmt.ledger.towers import GIGA, MAX_INNER, RESNET18_GFLOP, TOWERS, Tower, tower_named

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from hellofmt.archive.format.manifest import Storage

__all__ = ["PRECISIONS", "Plan", "paper_head_rank", "plan"]

PRECISIONS: Final[tuple[Storage, ...]] = ("float32", "float16", "int8", "int4")
"""Storages a plan compares; bfloat16 weighs what float16 does."""

PROBES: Final = 2
"""Generated pictures whose logits an archive stores, as ``hello fit`` writes it."""

_LIMIT: Final = 10**15


@dataclass(frozen=True)
class Plan:
    """What labels of one data set cost, either way.

    Attributes:
        classes: C.
        images: N.
        epochs: E.
        tower: the base.
        precision: storage of the label function that is compared with the rivals.
        rank: r of the deltas.
        head_rank: rank of the head, None for a full one.
        values: trained values, without scale and bias.
        targets: adapted weights.
        functions: the label function in each of ``PRECISIONS``.
        rivals: every other way, stored labels first, then teachers.
        teacher_parameters: parameters of the teacher that could be shipped instead.
        data_sets: data sets that must share one base before label functions beat a teacher in each,
            everything in ``precision``; keys ``image tower``, ``and text rows`` (each data set also
            stores its C x D text embeddings), ``and text tower``. None: never.
        gflop_total: GFLOP of all labels.
        device_tflops: peak of the device, TFLOP/s.
        utilisation: share of the peak that is reached, in (0, 1].
        bandwidth: speed at which stored labels are read, GB/s.
        assumptions: one sentence each.
    """

    classes: int
    images: int
    epochs: int
    tower: Tower
    precision: Storage
    rank: int
    head_rank: int | None
    values: int
    targets: int
    functions: tuple[LabelFunction, ...]
    rivals: tuple[Rival, ...]
    teacher_parameters: int
    data_sets: Mapping[str, float | None]
    gflop_total: float
    device_tflops: float
    utilisation: float
    bandwidth: float
    assumptions: tuple[str, ...] = field(default=())

    @property
    def labels(self) -> int:
        """Rows of labels: images times epochs."""
        return self.images * self.epochs

    @property
    def function(self) -> LabelFunction:
        """The label function in ``precision``."""
        return next(f for f in self.functions if f.precision == self.precision)

    @property
    def stored(self) -> int:
        """Bytes of the full float16 labels, without view records."""
        return stored_label_bytes(self.images, self.classes, self.epochs)

    @property
    def device_hours(self) -> float:
        """Hours of one device that makes every label online."""
        return self.gflop_total / (self.device_tflops * 1000 * self.utilisation) / 3600

    @property
    def read_hours(self) -> float:
        """Hours to read the full float16 labels once through, at ``bandwidth``."""
        return self.stored / (self.bandwidth * GIGA) / 3600

    @property
    def smaller(self) -> tuple[str, ...]:
        """Rivals that are not larger than the label function even where the base is public."""
        return tuple(rival.name for rival in self.rivals if rival.public >= 1)


def paper_head_rank(classes: int, dim: int) -> int | None:
    """The paper's rank of the head: 128 from 1,000 classes on, else 64; None where full is smaller.

    A low-rank head pays only below ``C D / (C + D)`` (arXiv 2408.08201 states the two ranks).

    Args:
        classes: C.
        dim: D.

    Returns:
        The rank, or None for a full head.
    """
    rank = 128 if classes >= 1000 else 64
    return rank if rank * (classes + dim) < classes * dim else None


def plan(
    classes: int,
    images: int,
    epochs: int,
    base: str = "RN50",
    *,
    precision: Storage = "int8",
    rank: int = 8,
    head_rank: int | Literal["full"] | None = None,
    teacher_parameters: int | None = None,
    device_tflops: float = 989.0,
    utilisation: float = 0.4,
    bandwidth: float = 3.0,
) -> Plan:
    """What labels of a data set cost in bytes and in work, stored and made online.

    Args:
        classes: C >= 1.
        images: N >= 1.
        epochs: E >= 1.
        base: an open_clip model of ``TOWERS``.
        precision: storage of the label function that is compared.
        rank: r of the deltas.
        head_rank: rank of the head, ``"full"``, or None for ``paper_head_rank``.
        teacher_parameters: parameters of the rival that ships its teacher; None for a ResNet-18.
        device_tflops: peak of the device in TFLOP/s; the default is the data sheet's figure for
            dense bfloat16 on an NVIDIA H100 or H200.
        utilisation: share of the peak that is reached, in (0, 1].
        bandwidth: speed at which stored labels are read, GB/s; the default is one NVMe disk.

    Returns:
        The plan.

    Raises:
        UserInputError: E_OPTION, a number out of range or a base or precision that is not known.
    """
    tower = tower_named(base)
    if tower is None:
        raise UserInputError.make(
            "E_OPTION",
            f"base: expected one of {', '.join(TOWERS)}, got {printable(base, 40)}",
            advice=did_you_mean(base, TOWERS),
        )
    if precision not in PRECISIONS:
        raise UserInputError.make(
            "E_OPTION",
            f"precision: expected one of {', '.join(PRECISIONS)}, got {printable(precision, 40)}",
            advice=did_you_mean(precision, PRECISIONS),
        )
    is_resnet18 = teacher_parameters is None
    if teacher_parameters is None:
        teacher_parameters = resnet18_parameters(classes)
    _check_counts(
        {
            "classes": (classes, _LIMIT),
            "images": (images, _LIMIT),
            "epochs": (epochs, _LIMIT),
            "rank": (rank, tower.largest_rank),
            "teacher-parameters": (teacher_parameters, _LIMIT),
        }
    )
    _check_rates(device_tflops, utilisation, bandwidth)
    largest = min(classes, tower.dim, MAX_INNER)
    if head_rank is None:
        rank_of_head = paper_head_rank(classes, tower.dim)
    elif head_rank == "full":
        rank_of_head = None
    elif 1 <= head_rank <= largest:
        rank_of_head = head_rank
    else:
        raise UserInputError.make(
            "E_OPTION",
            f"head-rank: expected full, or from 1 to {largest:,} here, got {head_rank:,}",
        )
    functions = tuple(_function(tower, classes, rank, rank_of_head, s) for s in PRECISIONS)
    chosen = next(f for f in functions if f.precision == precision)
    adapter = tower.adapter(rank, precision)
    draft = Plan(
        classes=classes,
        images=images,
        epochs=epochs,
        tower=tower,
        precision=precision,
        rank=rank,
        head_rank=rank_of_head,
        values=factor_values(
            adapter, _head(tower.dim, classes, rank_of_head, precision), tower.dim, classes
        ),
        targets=len(adapter.targets),
        functions=functions,
        rivals=rivals_of(classes, images, epochs, teacher_parameters, chosen),
        teacher_parameters=teacher_parameters,
        data_sets=shared_data_sets(
            tower,
            model_bytes(teacher_parameters, precision),
            # A full head is in the payload already and needs no text.
            0 if rank_of_head is None else classes * tower.dim,
            chosen,
        ),
        gflop_total=images * epochs * tower.flop / GIGA,
        device_tflops=device_tflops,
        utilisation=utilisation,
        bandwidth=bandwidth,
    )
    return replace(draft, assumptions=_assumptions(draft, is_resnet18=is_resnet18))


def _check_counts(counts: Mapping[str, tuple[int, int]]) -> None:
    for name, (number, most) in counts.items():
        if not 1 <= number <= most:
            raise UserInputError.make(
                "E_OPTION", f"{name}: expected from 1 to {most:,}, got {number:,}"
            )


def _check_rates(device_tflops: float, utilisation: float, bandwidth: float) -> None:
    for name, rate in (("device-tflops", device_tflops), ("bandwidth", bandwidth)):
        if not (math.isfinite(rate) and rate > 0):
            raise UserInputError.make("E_OPTION", f"{name}: expected more than 0, got {rate:g}")
    if not 0 < utilisation <= 1:
        raise UserInputError.make(
            "E_OPTION", f"utilisation: expected more than 0 and at most 1, got {utilisation:g}"
        )


def _head(dim: int, classes: int, rank: int | None, storage: Storage) -> Head:
    """A text-started head with a low-rank change, or a stored one."""
    if rank is None:
        return Head(
            bias=False,
            link="softmax",
            start="stored",
            storage=storage,
            temperature="20.0",
        )
    return Head(
        bias=False,
        link="softmax",
        scale="1.0",
        start="text",
        storage=storage,
        temperature="20.0",
        a=[rank, dim],
        b=[classes, rank],
    )


def _function(
    tower: Tower, classes: int, rank: int, head_rank: int | None, storage: Storage
) -> LabelFunction:
    adapter = tower.adapter(rank, storage)
    head = _head(tower.dim, classes, head_rank, storage)
    return LabelFunction(
        precision=storage,
        values_bytes=model_bytes(factor_values(adapter, head, tower.dim, classes), storage),
        adapter=adapter_bytes(adapter),
        head=head_bytes(head, tower.dim, classes),
        probes=probe_bytes(PROBES, classes),
        base=tower.tower_bytes(storage),
    )


def _assumptions(plan: Plan, *, is_resnet18: bool) -> tuple[str, ...]:
    """Everything that is not arithmetic, one sentence each."""
    tower = plan.tower
    preset = "3 x 3 convolutions" if isinstance(tower.layers, tuple) else "attention and MLP"
    start = (
        "full head, stored"
        if plan.head_rank is None
        else f"head of rank {plan.head_rank} from class names"
    )
    teacher = f"{plan.teacher_parameters:,} parameters"
    if is_resnet18:
        teacher = f"torchvision's ResNet-18, {teacher}"
    step = 3 * RESNET18_GFLOP
    return (
        "every epoch has new views and so new labels: one row of C float16 values per image",
        "images, index and class names are needed either way and are counted on neither side",
        f"a view record is {VIEW_RECORD_BYTES} bytes, as in published label files",
        "top-k labels store no view record: their views are replayed from a seed",
        "pruned and quantised labels have the sizes their authors name on ImageNet-1K",
        "what pruning, quantising or a label function costs in accuracy is not counted",
        f"label function: rank {plan.rank} on {plan.targets} weights ({preset}), {start}",
        f"its bytes are those of whole sections: scales, headers, logits of {PROBES} probes",
        "base public: the reader has the encoder, or fetches it once for every data set",
        f"base charged: the image tower of {tower.name} in the row's precision is added",
        "an archive can embed a base as float32 or 16 bits; int8 and int4 only compare equals",
        f"teacher: {teacher}; scales of a quantised one are not counted",
        f"one label is one {tower.size} x {tower.size} image through the tower; merging is free",
        "GFLOP: two per multiply-add, counted on the models of open_clip and torchvision",
        f"beside it, at 224 px: a ResNet-18's label {RESNET18_GFLOP:.2f}, training step {step:.1f}",
        f"device: {plan.device_tflops:g} TFLOP/s of peak, {100 * plan.utilisation:g} % of it used",
        f"stored labels are read at {plan.bandwidth:g} GB/s, every byte once",
    )
