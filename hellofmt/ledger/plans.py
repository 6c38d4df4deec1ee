"""The plan: what a data set of any size costs with stored labels and with a label function.

Everything follows from a handful of sizes, so it is answered before anything is run and without
torch. Every default that is not arithmetic is an assumption, and ``Plan.assumptions`` lists each in
one sentence, because a ratio of bytes is only as good as what was counted. Rejected: a model of
accuracy (nobody can plan that), and an estimate of image bytes, which either way costs the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.label_function import Head
from hellofmt.archive.format.limits import DEFAULT_LIMITS
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError, did_you_mean, printable
from hellofmt.ledger.rivals import LabelFunction, Rival, rivals_of, shared_data_sets
from hellofmt.ledger.sizes import (
    VIEW_RECORD_BYTES,
    adapter_bytes,
    factor_values,
    head_bytes,
    model_bytes,
    probe_bytes,
    resnet18_parameters,
    stored_label_bytes,
)
from hellofmt.ledger.towers import GIGA, RESNET18_GFLOP, TOWERS, Tower, tower_named

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Literal

    from hellofmt.archive.format.fields import Storage

PRECISIONS: Final[tuple[Storage, ...]] = ("float32", "float16", "int8", "int4")
"""Storages a plan compares; bfloat16 weighs what float16 does."""

PROBES: Final = 2
"""Generated pictures whose logits an archive stores, as ``hello fit`` writes it."""

_LIMIT: Final = 10**15


@dataclass(frozen=True)
class DataSet:
    """A data set by name: what a plan takes from it unless told otherwise.

    ``ipc`` images of each class are kept, or all ``images``; the other of the two is 0. ``note``
    is an assumption in one sentence, or empty.
    """

    classes: int
    ipc: int = 0
    images: int = 0
    epochs: int = 300
    note: str = ""


DATASETS: Final[Mapping[str, DataSet]] = {
    "cifar-10": DataSet(10, ipc=10),
    "cifar-100": DataSet(100, ipc=10),
    "tiny-imagenet": DataSet(200, ipc=10),
    "imagenet-1k": DataSet(1000, ipc=10),
    "imagenet-22k": DataSet(
        21_841,
        images=14_197_122,
        epochs=90,
        note="imagenet-22k: all 14,197,122 images of 21,841 classes, 90 epochs as TinyViT trained",
    ),
    "laion-400m": DataSet(
        21_841,
        images=400_000_000,
        epochs=32,
        note=(
            "laion-400m: 400 million images without classes of their own, labelled in the 21,841 "
            "of ImageNet-22k, 32 epochs as open_clip trained"
        ),
    ),
}
"""Presets: distilled sets of 10 images per class, or whole sets that are only labelled."""


@dataclass(frozen=True)
class Plan:
    """What labels of one data set cost, either way, as ``plan`` says.

    Attributes:
        classes: C.
        images: N.
        epochs: E.
        tower: the base.
        precision: storage of the label function that is compared with the rivals.
        rank, head_rank: of the deltas and of the head, None for a full one.
        values, targets: trained values, without scale and bias; adapted weights.
        functions: the label function in each of ``PRECISIONS``.
        rivals: every other way, stored labels first, then teachers.
        teacher_parameters: parameters of the teacher that could be shipped instead.
        data_sets: data sets that must share one base before label functions beat a teacher in each,
            everything in ``precision``; keys ``image tower``, ``and text rows`` (each data set also
            stores its C x D text embeddings), ``and text tower``. None: never.
        gflop_total: GFLOP of all labels.
        device_tflops, utilisation: peak of the device, and the share of it that is reached.
        bandwidth: speed at which stored labels are read, GB/s.
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

    @property
    def labels(self) -> int:
        """Rows of labels, images times epochs."""
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

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Everything that is not arithmetic, one sentence each."""
        tower = self.tower
        preset = {
            "paper": "3 x 3 convolutions",
            "transformer": "attention and MLP",
            "all": "every convolution",
        }[tower.kind]
        from_what = "from class names" if tower.text_parameters else "as two factors"
        start = (
            "full head, stored"
            if self.head_rank is None
            else f"head of rank {self.head_rank} {from_what}"
        )
        teacher = f"{self.teacher_parameters:,} parameters"
        if self.teacher_parameters == resnet18_parameters(self.classes):
            teacher = f"torchvision's ResNet-18, {teacher}"
        label, size, used = RESNET18_GFLOP, tower.size, 100 * self.utilisation
        return (
            "every epoch has new views and so new labels: one row of C float16 values per image",
            "images, index and class names are needed either way and are counted on neither side",
            f"a view record is {VIEW_RECORD_BYTES} bytes, as in published label files",
            "top-k labels store no view record: their views are replayed from a seed",
            "pruned and quantised labels have the sizes their authors name on ImageNet-1K",
            "what pruning, quantising or a label function costs in accuracy is not counted",
            f"label function: rank {self.rank} on {self.targets} weights ({preset}), {start}",
            f"its bytes are those of whole sections: scales, headers, logits of {PROBES} probes",
            "base public: the reader has the encoder, or fetches it once for every data set",
            f"base charged: the image tower of {tower.name} in the row's precision is added",
            "an archive can embed a base as float32 or 16 bits; int8 and int4 only compare equals",
            f"teacher: {teacher}; scales of a quantised one are not counted",
            f"one label is one {size} x {size} image through the tower; merging is free",
            "GFLOP: two per multiply-add, counted on the models of open_clip, timm and torchvision",
            f"beside it, at 224 px: a ResNet-18's label {label:.2f}, training step {3 * label:.1f}",
            f"device: {self.device_tflops:g} TFLOP/s of peak, {used:g} % of it used",
            f"stored labels are read at {self.bandwidth:g} GB/s, every byte once",
        )


def paper_head_rank(classes: int, dim: int) -> int | None:
    """The paper's rank of the head: 128 from 1,000 classes on, else 64; None where full is smaller.

    A low-rank head pays only below ``C D / (C + D)`` (arXiv 2408.08201 states the two ranks).
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
        base: a name in ``TOWERS``.
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

    Example:
        >>> imagenet = plan(classes=1000, images=10_000, epochs=300, base="RN50")
        >>> imagenet.rivals[0].name, imagenet.rivals[0].size_bytes
        ('float16 labels', 6000000000)
    """
    tower = tower_named(base)
    if tower is None:
        raise _unknown("base", base, TOWERS)
    if precision not in PRECISIONS:
        raise _unknown("precision", precision, PRECISIONS)
    if teacher_parameters is None:
        teacher_parameters = resnet18_parameters(classes)
    for name, number, most in (
        ("classes", classes, _LIMIT),
        ("images", images, _LIMIT),
        ("epochs", epochs, _LIMIT),
        ("rank", rank, tower.largest_rank),
        ("teacher-parameters", teacher_parameters, _LIMIT),
    ):
        if not 1 <= number <= most:
            raise _wrong(name, f"from 1 to {most:,}", f"{number:,}")
    for name, rate in (("device-tflops", device_tflops), ("bandwidth", bandwidth)):
        if not (math.isfinite(rate) and rate > 0):
            raise _wrong(name, "more than 0", f"{rate:g}")
    if not 0 < utilisation <= 1:
        raise _wrong("utilisation", "more than 0 and at most 1", f"{utilisation:g}")
    largest = min(classes, tower.dim, DEFAULT_LIMITS.rank)
    rank_of_head = None
    if head_rank is None and tower.text_parameters:
        rank_of_head = paper_head_rank(classes, tower.dim)
    if isinstance(head_rank, int):
        rank_of_head = head_rank
    if isinstance(head_rank, int) and not 1 <= head_rank <= largest:
        raise _wrong("head-rank", f"full, or from 1 to {largest:,} here", f"{head_rank:,}")
    functions = tuple(_function(tower, classes, rank, rank_of_head, s) for s in PRECISIONS)
    chosen = next(f for f in functions if f.precision == precision)
    return Plan(
        classes=classes,
        images=images,
        epochs=epochs,
        tower=tower,
        precision=precision,
        rank=rank,
        head_rank=rank_of_head,
        values=chosen.values,
        targets=len(tower.adapter(rank, precision).targets),
        functions=functions,
        rivals=rivals_of(classes, images, epochs, teacher_parameters, chosen),
        teacher_parameters=teacher_parameters,
        data_sets=shared_data_sets(
            tower,
            model_bytes(teacher_parameters, precision),
            # A head in the payload needs no text.
            0 if rank_of_head is None or not tower.text_parameters else classes * tower.dim,
            chosen,
        ),
        gflop_total=images * epochs * tower.flop / GIGA,
        device_tflops=device_tflops,
        utilisation=utilisation,
        bandwidth=bandwidth,
    )


def _wrong(name: str, expected: str, got: str) -> UserInputError:
    return UserInputError.make("E_OPTION", f"{name}: expected {expected}, got {got}")


def _unknown(name: str, got: str, known: Collection[str]) -> UserInputError:
    error = _wrong(name, f"one of {', '.join(known)}", printable(got, 40))
    error.advice = did_you_mean(got, known)
    return error


def _head(tower: Tower, classes: int, rank: int | None, storage: Storage) -> Head:
    """A text-started head with a low-rank change, or a stored one, whole or in two factors."""
    return Head(
        bias=False,
        link="softmax",
        start="stored" if rank is None or not tower.text_parameters else "text",
        storage=storage,
        temperature="20.0",
        a=UNSET if rank is None else [rank, tower.dim],
        b=UNSET if rank is None else [classes, rank],
        scale=UNSET if rank is None else "1.0",
    )


def _function(
    tower: Tower, classes: int, rank: int, head_rank: int | None, storage: Storage
) -> LabelFunction:
    adapter = tower.adapter(rank, storage)
    head = _head(tower, classes, head_rank, storage)
    return LabelFunction(
        precision=storage,
        values=factor_values(adapter, head, tower.dim, classes),
        adapter=adapter_bytes(adapter),
        head=head_bytes(head, tower.dim, classes),
        probes=probe_bytes(PROBES, classes),
        base=tower.tower_bytes(storage),
    )
