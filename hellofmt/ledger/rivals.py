"""The label function in one precision, and every other way to keep the same labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hellofmt.ledger.sizes import (
    PRUNING_RATIOS,
    break_even_data_sets,
    model_bytes,
    pruned_label_bytes,
    stored_label_bytes,
    top_k_label_bytes,
    view_record_bytes,
)

if TYPE_CHECKING:
    from hellofmt.archive.format.fields import Storage
    from hellofmt.ledger.towers import Tower

_TOP_K: Final = (10, 100)


@dataclass(frozen=True)
class LabelFunction:
    """Bytes of the label function in one precision; part of a ``Plan``.

    Attributes:
        precision: storage of its values.
        values: how many are trained, without scale and bias.
        adapter, head, probes: bytes of these sections, scales and headers included.
        base: bytes of the image tower in the same precision.
    """

    precision: Storage
    values: int
    adapter: int
    head: int
    probes: int
    base: int

    @property
    def values_bytes(self) -> int:
        """Bytes of the values alone."""
        return model_bytes(self.values, self.precision)

    @property
    def public(self) -> int:
        """Bytes where the base is public, those of the three sections."""
        return self.adapter + self.head + self.probes

    @property
    def charged(self) -> int:
        """Bytes where the base is charged to this one data set."""
        return self.public + self.base


@dataclass(frozen=True)
class Rival:
    """Another way to keep the same labels; part of a ``Plan``.

    Attributes:
        name: name of the stored form.
        size_bytes: bytes for all epochs.
        epoch_bytes: bytes read in each epoch; 0 for a teacher, which is read once.
        public, charged: label function over this, dimensionless; base public or charged.
        break_even_public, break_even_charged: first number of epochs at which this weighs more;
            None for a teacher.
    """

    name: str
    size_bytes: int
    epoch_bytes: float
    public: float
    charged: float
    break_even_public: int | None
    break_even_charged: int | None


def rivals_of(
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


def shared_data_sets(
    tower: Tower, teacher: int, row_values: int, ours: LabelFunction
) -> dict[str, float | None]:
    """Data sets that must share one base before ``ours`` beats a teacher in each.

    Each would ship a teacher of that many bytes instead, and stores ``row_values`` of text rows,
    0 where the head needs none. The keys are those of ``Plan.data_sets``.
    """
    rows = model_bytes(row_values, ours.precision)
    text = model_bytes(tower.text_parameters if row_values else 0, ours.precision)
    return {
        "image tower": break_even_data_sets(ours.base, teacher, ours.public),
        "and text rows": break_even_data_sets(ours.base, teacher, ours.public + rows),
        "and text tower": break_even_data_sets(ours.base + text, teacher, ours.public),
    }
