"""The plan: what a data set of any size costs with stored labels and with a label function.

Everything follows from a handful of sizes, so it is answered before anything is run and without
torch: bytes from ``hellofmt.ledger`` (the sections of an archive to the byte, headers included),
work from a table of image towers. The table's numbers are counted, not quoted: a test builds each
tower of open_clip on torch's meta device and counts parameters, buffers and floating-point
operations (``torch.utils.flop_counter``, two for a multiply-add) of one image.

Every default that is not arithmetic is an assumption, and ``Plan.assumptions`` lists each in one
sentence, because a ratio of bytes is only as good as what was counted. Rejected: a model of
accuracy (nobody can plan that), and an estimate of image bytes, which either way costs the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from hellofmt.archive.manifest import Adapter, Head, Target
from hellofmt.errors import UserInputError, printable
from hellofmt.ledger import (
    PRUNING_RATIOS,
    VIEW_RECORD_BYTES,
    adapter_bytes,
    break_even_data_sets,
    factor_values,
    head_bytes,
    model_bytes,
    probe_bytes,
    pruned_label_bytes,
    resnet18_parameters,
    stored_label_bytes,
    top_k_label_bytes,
    view_record_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from hellofmt.archive.manifest import Storage

__all__ = [
    "DATASETS",
    "PRECISIONS",
    "TOWERS",
    "DataSet",
    "LabelFunction",
    "Plan",
    "Rival",
    "Tower",
    "paper_head_rank",
    "plan",
    "tower_named",
]

PRECISIONS: Final[tuple[Storage, ...]] = ("float32", "float16", "int8", "int4")
"""Storages a plan compares; bfloat16 weighs what float16 does."""

RESNET18_GFLOP: Final = 3.628146688
"""GFLOP of one 224 px image through torchvision's ResNet-18, counted like ``TOWERS``."""

PROBES: Final = 2
"""Generated pictures whose logits an archive stores, as ``hello fit`` writes it."""

MAX_INNER: Final = 256
"""Largest inner dimension of a low-rank product that a reader accepts."""

_TOP_K: Final = (10, 100)
_GIGA: Final = 10**9
_LIMIT: Final = 10**15


@dataclass(frozen=True)
class Tower:
    """An image tower of open_clip, as far as a plan needs it.

    Attributes:
        name: of open_clip's model.
        size: side of its input, in pixels.
        dim: D, features of an embedding.
        layers: blocks of a transformer, or of each of the four stages of a ResNet.
        width: channels of a transformer, or of the first stage of a ResNet.
        parameters: of the image tower.
        buffers: statistics of batch normalisation, values.
        text_parameters: everything of the model but the image tower.
        flop: floating-point operations of one image, two for a multiply-add.
    """

    name: str
    size: int
    dim: int
    layers: int | tuple[int, int, int, int]
    width: int
    parameters: int
    buffers: int
    text_parameters: int
    flop: int

    @property
    def gflop(self) -> float:
        """GFLOP of one label: the head adds less than 0.1 %, and is left out."""
        return self.flop / _GIGA

    @property
    def largest_rank(self) -> int:
        """Largest rank a delta may have: the convolution form has an inner side of three ranks."""
        return MAX_INNER // 3 if isinstance(self.layers, tuple) else MAX_INNER

    def tower_bytes(self, storage: Storage) -> int:
        """Bytes of the image tower, parameters and batch statistics, without scales."""
        return model_bytes(self.parameters + self.buffers, storage)

    def adapter(self, rank: int, storage: Storage) -> Adapter:
        """The deltas of the preset that fits the tower.

        ``paper`` for a ResNet (every 3 x 3 convolution, in the convolution form), ``transformer``
        for a ViT (attention and MLP weights of every block).

        Args:
            rank: r >= 1.
            storage: of every factor.

        Returns:
            The adapter, sorted by parameter.
        """
        if isinstance(self.layers, tuple):
            targets = [_convolution(*shape, rank, storage) for shape in self._convolutions()]
        else:
            targets = [_matrix(*shape, rank, storage) for shape in self._matrices(self.layers)]
        return Adapter(targets=sorted(targets, key=lambda target: target.param))

    def _convolutions(self) -> list[tuple[str, int, int]]:
        """Name, channels in and out of the 3 x 3 convolutions: stem of three, one per block."""
        stem = self.width // 2
        found = [
            ("conv1.weight", 3, stem),
            ("conv2.weight", stem, stem),
            ("conv3.weight", stem, self.width),
        ]
        stages = self.layers if isinstance(self.layers, tuple) else ()
        for stage, blocks in enumerate(stages):
            width = self.width << stage
            names = (f"layer{stage + 1}.{block}.conv2.weight" for block in range(blocks))
            found += [(name, width, width) for name in names]
        return found

    def _matrices(self, layers: int) -> list[tuple[str, int, int]]:
        """Name, rows and columns of the attention and MLP weights."""
        width = self.width
        shapes = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.out_proj.weight": (width, width),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_proj.weight": (width, 4 * width),
        }
        return [
            (f"transformer.resblocks.{block}.{name}", *shape)
            for block in range(layers)
            for name, shape in shapes.items()
        ]


def _convolution(param: str, inputs: int, outputs: int, rank: int, storage: Storage) -> Target:
    inner = 3 * rank
    return Target(
        a=[inner, 3 * inputs],
        b=[3 * outputs, inner],
        param=param,
        scale="1.0",
        shape=[outputs, inputs, 3, 3],
        storage=storage,
    )


def _matrix(param: str, rows: int, columns: int, rank: int, storage: Storage) -> Target:
    return Target(
        a=[rank, columns],
        b=[rows, rank],
        param=param,
        scale="1.0",
        shape=[rows, columns],
        storage=storage,
    )


# name, size, dim, layers, width, parameters, buffers, text parameters, FLOP
_RN50 = Tower("RN50", 224, 1024, (3, 4, 6, 3), 64, 38_316_896, 53_248, 63_690_241, 12_222_939_136)
_TEXT_512: Final = 63_428_097
_TEXT_768: Final = 123_650_305
TOWERS: Final[Mapping[str, Tower]] = {
    tower.name: tower
    for tower in (
        _RN50,
        Tower("RN101", 224, 512, (3, 4, 23, 3), 64, 56_259_936, 105_472, _TEXT_512, 19_542_523_904),
        Tower(
            "RN50x4", 288, 640, (4, 6, 10, 6), 80, 87_137_080, 109_760, 91_163_521, 42_557_214_720
        ),
        Tower("ViT-B-32", 224, 512, 12, 768, 87_849_216, 0, _TEXT_512, 8_817_623_040),
        Tower("ViT-B-16", 224, 512, 12, 768, 86_192_640, 0, _TEXT_512, 35_126_906_880),
        Tower("ViT-L-14", 224, 768, 24, 1024, 303_966_208, 0, _TEXT_768, 162_025_537_536),
        Tower("ViT-L-14-336", 336, 768, 24, 1024, 304_293_888, 0, _TEXT_768, 381_919_789_056),
        Tower("ViT-H-14", 224, 1024, 32, 1280, 632_076_800, 0, 354_032_641, 334_590_279_680),
    )
}
"""Image towers a plan knows, by open_clip's name."""


def tower_named(name: str) -> Tower | None:
    """The tower of an open_clip model name; a ``-quickgelu`` twin has the same numbers.

    Args:
        name: such as ``RN50``, ``RN50-quickgelu``, ``ViT-B/32``.

    Returns:
        The tower, or None if the table does not have it.
    """
    return TOWERS.get(name.replace("/", "-").removesuffix("-quickgelu"))


@dataclass(frozen=True)
class DataSet:
    """A data set by name: what a plan takes from it unless told otherwise.

    Attributes:
        classes: C.
        ipc: images per class that are kept, or 0 where every image is.
        images: N where every image is kept, else 0.
        epochs: E.
        note: assumption in one sentence, or empty.
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
class LabelFunction:
    """Bytes of the label function in one precision.

    Attributes:
        precision: storage of its values.
        values_bytes: the values alone.
        adapter: bytes of the section ``adapter``, scales and header included.
        head: bytes of the section ``head``.
        probes: bytes of the section ``probes``.
        base: bytes of the image tower in the same precision.
    """

    precision: Storage
    values_bytes: int
    adapter: int
    head: int
    probes: int
    base: int

    @property
    def public(self) -> int:
        """Bytes where the base is public: the three sections."""
        return self.adapter + self.head + self.probes

    @property
    def charged(self) -> int:
        """Bytes where the base is charged to this one data set."""
        return self.public + self.base


@dataclass(frozen=True)
class Rival:
    """Another way to keep the same labels.

    Attributes:
        name: what is stored.
        size_bytes: for all epochs.
        epoch_bytes: read in each epoch; 0 for a teacher, which is read once.
        public: label function over this, dimensionless; base public.
        charged: the same, base charged.
        break_even_public: first number of epochs at which this weighs more; None for a teacher.
        break_even_charged: the same, base charged.
    """

    name: str
    size_bytes: int
    epoch_bytes: float
    public: float
    charged: float
    break_even_public: int | None
    break_even_charged: int | None


@dataclass(frozen=True)
class Plan:
    """What labels of one data set cost, either way.

    Attributes:
        classes: C.
        images: N.
        epochs: E.
        tower: the base.
        precision: of the label function that is compared with the rivals.
        rank: r of the deltas.
        head_rank: rank of the head, None for a full one.
        values: trained values, without scale and bias.
        targets: adapted weights.
        functions: the label function in each of ``PRECISIONS``.
        rivals: every other way, stored labels first, then teachers.
        teacher_parameters: of the teacher that could be shipped instead.
        data_sets: data sets that must share one base before label functions beat a teacher in each,
            everything in ``precision``; keys ``image tower``, ``and text rows`` (each data set also
            stores its C x D text embeddings), ``and text tower``. None: never.
        gflop_total: GFLOP of all labels.
        device_tflops: peak of the device, TFLOP/s.
        utilisation: share of the peak that is reached, in (0, 1].
        bandwidth: at which stored labels are read, GB/s.
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
        return self.stored / (self.bandwidth * _GIGA) / 3600

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
        precision: of the label function that is compared.
        rank: r of the deltas.
        head_rank: rank of the head, ``"full"``, or None for ``paper_head_rank``.
        teacher_parameters: of the rival that ships its teacher; None for a ResNet-18.
        device_tflops: peak of the device in TFLOP/s; the default is the data sheet's figure for
            dense bfloat16 on an NVIDIA H100 or H200.
        utilisation: share of the peak that is reached, in (0, 1].
        bandwidth: at which stored labels are read, GB/s; the default is one NVMe disk.

    Returns:
        The plan.

    Raises:
        UserInputError: E_OPTION, a number out of range or a base or precision that is not known.
    """
    tower = tower_named(base)
    if tower is None:
        raise UserInputError.make(
            "E_OPTION", f"base: expected one of {', '.join(TOWERS)}, got {printable(base, 40)}"
        )
    if precision not in PRECISIONS:
        raise UserInputError.make(
            "E_OPTION",
            f"precision: expected one of {', '.join(PRECISIONS)}, got {printable(precision, 40)}",
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
    made = Plan(
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
        rivals=_rivals(classes, images, epochs, teacher_parameters, chosen),
        teacher_parameters=teacher_parameters,
        data_sets=_data_sets(
            tower,
            model_bytes(teacher_parameters, precision),
            # A full head is in the payload already and needs no text.
            0 if rank_of_head is None else classes * tower.dim,
            chosen,
        ),
        gflop_total=images * epochs * tower.flop / _GIGA,
        device_tflops=device_tflops,
        utilisation=utilisation,
        bandwidth=bandwidth,
    )
    return replace(made, assumptions=_assumptions(made, is_resnet18=is_resnet18))


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
        return Head(bias=False, scale="1.0", start="stored", storage=storage, temperature="20.0")
    return Head(
        bias=False,
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


def _rivals(
    classes: int, images: int, epochs: int, teacher_parameters: int, ours: LabelFunction
) -> tuple[Rival, ...]:
    """Every other way: forms of stored labels, then the teacher itself in three precisions."""
    dense = stored_label_bytes(images, classes, 1)
    full = dense + view_record_bytes(images, 1)
    rivals = [
        _stored("float16 labels", dense, epochs, ours),
        _stored("float16 labels with view records", full, epochs, ours),
    ]
    sizes = {k: top_k_label_bytes(images, classes, 1, k) for k in _TOP_K if k < classes}
    # With few classes an index and a value are no less than the whole row.
    rivals += [
        _stored(f"top {k} labels", size, epochs, ours) for k, size in sizes.items() if size < dense
    ]
    for ratio in PRUNING_RATIOS:
        total = pruned_label_bytes(images, classes, epochs, ratio)
        name = f"pruned and quantised labels, {ratio}x"
        rivals.append(_stored(name, full, epochs, ours, ratio=ratio, total=total))
    for storage in ("float32", "float16", "int8"):
        size = model_bytes(teacher_parameters, storage)
        ratios = ours.public / size, ours.charged / size
        rivals.append(Rival(f"{storage} teacher", size, 0.0, *ratios, None, None))
    return tuple(rivals)


def _stored(
    name: str,
    per_epoch: int,
    epochs: int,
    ours: LabelFunction,
    *,
    ratio: int = 1,
    total: int | None = None,
) -> Rival:
    """Stored labels of ``per_epoch / ratio`` bytes an epoch beside the label function."""
    size = per_epoch * epochs if total is None else total
    return Rival(
        name=name,
        size_bytes=size,
        epoch_bytes=per_epoch / ratio,
        public=ours.public / size,
        charged=ours.charged / size,
        break_even_public=ours.public * ratio // per_epoch + 1,
        break_even_charged=ours.charged * ratio // per_epoch + 1,
    )


def _data_sets(
    tower: Tower, teacher: int, row_values: int, ours: LabelFunction
) -> dict[str, float | None]:
    rows = model_bytes(row_values, ours.precision)
    text = model_bytes(tower.text_parameters if row_values else 0, ours.precision)
    return {
        "image tower": break_even_data_sets(ours.base, teacher, ours.public),
        "and text rows": break_even_data_sets(ours.base, teacher, ours.public + rows),
        "and text tower": break_even_data_sets(ours.base + text, teacher, ours.public),
    }


def _assumptions(made: Plan, *, is_resnet18: bool) -> tuple[str, ...]:
    """Everything that is not arithmetic, one sentence each."""
    tower = made.tower
    preset = "3 x 3 convolutions" if isinstance(tower.layers, tuple) else "attention and MLP"
    start = (
        "full head, stored"
        if made.head_rank is None
        else f"head of rank {made.head_rank} from class names"
    )
    teacher = f"{made.teacher_parameters:,} parameters"
    if is_resnet18:
        teacher = f"torchvision's ResNet-18, {teacher}"
    step = 3 * RESNET18_GFLOP
    return (
        "every epoch has new views and so new labels: one row of C float16 values per image",
        "images, index and class names are needed either way and stand on neither side",
        f"a view record is {VIEW_RECORD_BYTES} bytes, as in published label files",
        "top-k labels store no view record: their views are replayed from a seed",
        "pruned and quantised labels have the sizes their authors name on ImageNet-1K",
        "what pruning, quantising or a label function costs in accuracy is not counted",
        f"label function: rank {made.rank} on {made.targets} weights ({preset}), {start}",
        f"its bytes are those of whole sections: scales, headers, logits of {PROBES} probes",
        "base public: the reader has the encoder, or fetches it once for every data set",
        f"base charged: the image tower of {tower.name} in the row's precision is added",
        "an archive can embed a base as float32 or 16 bits; int8 and int4 only compare equals",
        f"teacher: {teacher}; scales of a quantised one are not counted",
        f"one label is one {tower.size} x {tower.size} image through the tower; merging is free",
        "GFLOP: two per multiply-add, counted on the models of open_clip and torchvision",
        f"beside it, at 224 px: a ResNet-18's label {RESNET18_GFLOP:.2f}, training step {step:.1f}",
        f"device: {made.device_tflops:g} TFLOP/s of peak, {100 * made.utilisation:g} % of it used",
        f"stored labels are read at {made.bandwidth:g} GB/s, every byte once",
    )
