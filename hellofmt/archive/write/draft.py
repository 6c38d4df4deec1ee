"""Describe an archive to be written: images, label function and texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.images import Codec
    from hellofmt.archive.format.label_function import Adapter, Head
    from hellofmt.archive.format.manifest import Base, Dataset, Producer, Shard
    from hellofmt.archive.format.record import Record
    from hellofmt.archive.format.tensors import StoredTensor
    from hellofmt.archive.format.views import Views

DEFAULT_NAME: Final = "default"
"""Name of a label function that its writer did not name."""


@dataclass(frozen=True)
class ImageItem:
    """One image to pack; see ``Draft``.

    Attributes:
        label: its class, counted from 0.
        source: its bytes, the path of a file, or a function that returns the same bytes at every
            call; it is called in the thread of the writer's caller.
        size: number of bytes that the function returns; None calls it once more to know.
        walked: SHA-256 of bytes that ``check_image_data`` has accepted; the writer refuses others,
            and does not walk over these again.
    """

    label: int
    source: bytes | str | Path | Callable[[], bytes]
    size: int | None = None
    walked: bytes | None = None


@dataclass(frozen=True)
class ImageSet:
    """The images to pack, in any order; the writer sorts them by label, stably; see ``Draft``.

    Attributes:
        codec: codec of every item.
        items: at least one.
        layout: ``files``, one member per image; ``packed``, the pixels of PNG images of one size
            in one section; ``auto``, whichever is smaller.
        columns: further columns of the index by name, a row for each item: float32, int32, uint8 or
            uint64 (N, ...). ``weight``, ``source``, ``crop`` and ``labels`` have a meaning; other
            names begin ``x_``.
        order: ``value`` if the items of a class come in order of value: the first k are the choice
            for k images per class.
    """

    codec: Codec
    items: Sequence[ImageItem]
    layout: Literal["auto", "files", "packed"] = "auto"
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, "NDArray[Any]"])
    order: Literal["value"] | None = None


@dataclass(frozen=True)
class ProjectorPart:
    """A label function to pack.

    Attributes:
        base: the encoder, pinned.
        adapter: the low-rank deltas, sorted by parameter.
        head: the linear head.
        adapter_tensors: ``<param>::A``, ``<param>::B`` and their scales.
        head_tensors: ``logit_scale`` and the tensors that ``head`` declares.
        probe_logits: float32 (P, C), logits of the first P probe pictures.
        base_tensors: the image tower, for a base of kind ``embedded``.
        name: what tells the label functions of one archive apart, ``[a-z0-9_]{1,32}``.
    """

    base: Base
    adapter: Adapter
    head: Head
    adapter_tensors: Mapping[str, StoredTensor]
    head_tensors: Mapping[str, StoredTensor]
    probe_logits: NDArray[np.float32]
    base_tensors: Mapping[str, StoredTensor] | None = None
    name: str = DEFAULT_NAME


@dataclass(frozen=True)
class Texts:
    """What an archive says of itself; None leaves it to whoever makes the archive.

    Attributes:
        name: of the data set.
        version: of the data set.
        license: SPDX expression of the images' licence.
        license_text: text of the licence.
        card: Markdown text about the data set; empty means none.
        method: how the images were made.
        sources: data sets that the images come from.
        extras: notes, keys starting ``x_``.

    Example:
        >>> import hellofmt
        >>> texts = Texts(name="stripes", license="CC0-1.0")
        >>> _ = hellofmt.pack("photos", "stripes.hello", texts=texts)
        >>> with hellofmt.open("stripes.hello") as archive:
        ...     archive.manifest.dataset.license
        'CC0-1.0'
    """

    name: str | None = None
    version: str = "1.0.0"
    license: str | None = None
    license_text: str | None = None
    card: str | None = None
    method: str | None = None
    sources: Sequence[str] | None = None
    extras: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Draft:
    """The contents of a new archive: images, a label function, or both.

    Attributes:
        dataset: description for people; ``ipc`` is computed from the images.
        classes: one line per class, in label order.
        views: view settings that the labels were fitted for.
        images: the images, if any.
        projector: the label function, if any; with ``further`` ones the default.
        card: Markdown for people.
        license: text of the licence.
        record: how it was made.
        extras: free strings under ``x_`` keys.
        shard: which part of a sharded data set this is.
        producer: program that writes it; hellofmt and its version if absent.
        further: more label functions of the same base.
        label_function: ``id`` of the archive with the label functions for these images, which then
            come without one.

    Example:
        >>> from hellofmt.archive import ClassLine, Dataset, ImageItem, ImageSet
        >>> from hellofmt.archive import default_views, open_archive, write_archive, write_shards
        >>> images = [ImageItem(0, "photos/rows/0.png"), ImageItem(1, "photos/grey/40.png")]
        >>> facts = {"version": "1", "license": "CC0-1.0", "method": "none", "sources": ["mine"]}
        >>> draft = Draft(
        ...     Dataset(name="two", **facts),
        ...     classes=[ClassLine("rows", ("rows",)), ClassLine("grey", ("grey",))],
        ...     views=default_views(16),
        ...     images=ImageSet("png", images),
        ... )
        >>> name = write_archive("two.hello", draft)
        >>> write_shards("two.hello", draft, 2)[:7]
        'sha256:'
        >>> with open_archive("two-*-of-00002.hello") as archive:
        ...     type(archive).__name__, len(archive)
        ('HelloSet', 2)
    """

    dataset: Dataset
    classes: Sequence[ClassLine]
    views: Views
    images: ImageSet | None = None
    projector: ProjectorPart | None = None
    card: str | None = None
    license: str | None = None
    record: Record | None = None
    extras: Mapping[str, str] = field(default_factory=dict[str, str])
    shard: Shard | None = None
    producer: Producer | None = None
    further: Sequence[ProjectorPart] = ()
    label_function: str | None = None
