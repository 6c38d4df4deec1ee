"""The manifest: what an archive says about itself, as closed types.

One canonical JSON document of at most 1 MiB, so that ``bytes == canonical(parse(bytes))`` decides
every spelling. It has no floats, because two writers never print a float the same way: a decimal is
a string in one form, read as the nearest double. Unknown keys are refused, except top-level
``x_...`` strings, which nothing interprets. The types are the schema:
``spec/hello-1.schema.json`` is generated from them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, UnsetType

from hellofmt.archive.format.canonical import END
from hellofmt.archive.format.fields import (
    Closed,
    Count,
    DecimalString,
    DecimalTriple,
    Digest,
    Interpolation,
    Name,
    Positive,
    Text,
)
from hellofmt.archive.format.label_function import LabelFunction  # noqa: TC001 - msgspec reads it
from hellofmt.archive.format.views import Views  # noqa: TC001 - msgspec reads it


class Producer(Closed, frozen=True):
    """The program that wrote the file."""

    name: Name
    version: Name


class Dataset(Closed, frozen=True):
    """A description of the data set, for people and for ``hello diff``.

    ``ipc`` is absent if the archive has no images or if classes differ in their number.

    Example:
        ``Draft`` takes one.
    """

    name: Name
    version: Name
    license: Text
    method: Text
    sources: Annotated[list[Text], Meta(max_length=65536)]
    ipc: Positive | UnsetType = UNSET


class Column(Closed, frozen=True):
    """A further column of the index: one array of ``shape`` for each image."""

    dtype: Literal["F32", "I32", "U8", "U64"]
    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}" + END)]
    shape: Annotated[list[Positive], Meta(max_length=3)]


class Images(Closed, frozen=True):
    """The images: how many, in which codec, and how many bytes they span.

    ``layout`` ``files`` stores one member per image; ``packed`` one section ``pixels``, whose codec
    is ``raw`` and whose images all have ``shape`` (height, width, channels). ``span`` counts the
    bytes from the first image header to the trailer, 0 when packed. ``order`` ``value`` says that
    the first k images of a class are the choice for k.
    """

    codec: Literal["png", "jpeg", "webp", "raw"]
    count: Positive
    layout: Literal["files", "packed"]
    span: Count
    columns: Annotated[list[Column], Meta(min_length=1, max_length=16)] | UnsetType = UNSET
    order: Literal["value"] | UnsetType = UNSET
    shape: Annotated[list[Positive], Meta(min_length=3, max_length=3)] | UnsetType = UNSET


class VisionArch(Closed, frozen=True):
    """The keys of open_clip's ``vision_cfg`` that are data.

    Keys that name files or download weights are left out. ``timm_model_name`` is looked up in
    timm's own registry, never imported. ``block_type`` is stated only where none of the options of
    a custom block (``qk_norm`` and the four ``scale_...``) implies it. ``timm_proj`` ``""`` stands
    for open_clip's null: timm's own classifier is the projection.
    """

    image_size: Positive | UnsetType = UNSET
    layers: Positive | Annotated[list[Positive], Meta(min_length=1, max_length=8)] | UnsetType = (
        UNSET
    )
    width: Positive | UnsetType = UNSET
    patch_size: Positive | UnsetType = UNSET
    head_width: Positive | UnsetType = UNSET
    mlp_ratio: DecimalString | UnsetType = UNSET
    ls_init_value: DecimalString | UnsetType = UNSET
    attentional_pool: bool | UnsetType = UNSET
    attn_pooler_queries: Positive | UnsetType = UNSET
    attn_pooler_heads: Positive | UnsetType = UNSET
    no_ln_pre: bool | UnsetType = UNSET
    final_ln_after_pool: bool | UnsetType = UNSET
    pool_type: Literal["tok", "avg"] | UnsetType = UNSET
    norm_eps: DecimalString | UnsetType = UNSET
    act_approximate: Literal["tanh"] | UnsetType = UNSET
    block_type: Literal["custom"] | UnsetType = UNSET
    qk_norm: bool | UnsetType = UNSET
    scale_heads: bool | UnsetType = UNSET
    scale_attn_inner: bool | UnsetType = UNSET
    scale_attn: bool | UnsetType = UNSET
    scale_fc: bool | UnsetType = UNSET
    timm_model_name: Annotated[str, Meta(pattern=r"^[a-z0-9_.]{1,100}" + END)] | UnsetType = UNSET
    timm_pool: Literal["", "avg", "map", "token", "tok", "abs_attn", "rot_attn"] | UnsetType = UNSET
    timm_proj: Literal["", "linear", "mlp", "none"] | UnsetType = UNSET
    timm_proj_bias: bool | UnsetType = UNSET


class TextArch(Closed, frozen=True):
    """open_clip's ``text_cfg`` of a seeded text tower, which no file describes."""

    context_length: Positive
    vocab_size: Positive
    width: Positive
    heads: Positive
    layers: Positive


class Arch(Closed, frozen=True):
    """Architecture of the base; ``quick_gelu`` is part of it, never inferred from a name."""

    embed_dim: Positive
    quick_gelu: bool
    vision: VisionArch


class Preprocess(Closed, frozen=True):
    """How a view in [0, 1] enters the base: resized to ``size`` x ``size``, then normalised.

    ``antialias`` is absent where the nearest pixel is taken.
    """

    interpolation: Interpolation
    mean: DecimalTriple
    size: Positive
    std: DecimalTriple
    antialias: bool | UnsetType = UNSET


class Base(Closed, frozen=True):
    r"""The public encoder that the deltas belong to, pinned by digest.

    ``digest`` = SHA-256 over ``hello/base/1\n`` + canonical JSON of ``arch``, ``preprocess`` and
    ``tensors``. ``name`` and ``pretrained`` are hints for people; a file never starts a download.
    ``seed`` (and ``text`` where the head starts from text) belong to kind ``seeded``, whose weights
    are generated.
    """

    arch: Arch
    digest: Digest
    kind: Literal["open_clip", "seeded", "embedded"]
    name: Text
    preprocess: Preprocess
    tensors: Digest
    pretrained: Text | UnsetType = UNSET
    seed: Count | UnsetType = UNSET
    text: TextArch | UnsetType = UNSET


class Section(Closed, frozen=True):
    """A metadata member: digest and size of its stored bytes, and of the raw ones if compressed.

    ``raw_size`` and ``raw_digest`` are present exactly when ``encoding`` is ``zstd``.
    """

    digest: Digest
    encoding: Literal["none", "zstd"]
    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}" + END)]
    size: Count
    raw_digest: Digest | UnsetType = UNSET
    raw_size: Count | UnsetType = UNSET


class Shard(Closed, frozen=True):
    """Which part of a sharded data set this file is: rows ``first .. first + images.count - 1``.

    ``content_id`` is that of the whole data set in one file: a set is one thing.
    """

    content_id: Digest
    count: Annotated[int, Meta(ge=2, lt=2**53)]
    first: Count
    index: Count
    total: Positive


class Manifest(Closed, frozen=True):
    """The whole manifest except the free ``x_`` keys, which ``extras`` holds after parsing.

    The first of ``functions`` is the default. ``label_function`` is the ``id`` of the archive whose
    label functions these images belong to.

    Example:
        >>> import hellofmt
        >>> with hellofmt.open("photos.hello") as archive:
        ...     archive.manifest.dataset.name, archive.manifest.views.size
        ('photos', 16)
    """

    classes: Positive
    dataset: Dataset
    hello: Annotated[str, Meta(pattern=r"^1\.(0|[1-9][0-9]{0,3})" + END)]
    producer: Producer
    requires: Annotated[list[Name], Meta(max_length=64)]
    sections: Annotated[list[Section], Meta(max_length=64)]
    views: Views
    base: Base | UnsetType = UNSET
    functions: Annotated[list[LabelFunction], Meta(min_length=1, max_length=16)] | UnsetType = UNSET
    images: Images | UnsetType = UNSET
    label_function: Digest | UnsetType = UNSET
    shard: Shard | UnsetType = UNSET

    @property
    def is_newer(self) -> bool:
        """Whether the file is of a higher minor version than this reader knows."""
        return int(self.hello.partition(".")[2]) > KNOWN_MINOR


KNOWN_MINOR: Final = 0
"""The highest minor version whose keys this reader knows."""
KNOWN_FEATURES: Final = frozenset({"images.packed"})
"""Features that ``requires`` may name."""
