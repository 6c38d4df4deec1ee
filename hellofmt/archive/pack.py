"""Images that lie on disk, packed into an archive, with a label function or without.

Three kinds of source: a folder with one sub-folder per class (``ImageFolder``'s rule, and what RDED
and SRe2L write), WebDataset shards, and another archive. Bytes are kept exactly as they are; an
image outside its profile is refused by name, never silently re-encoded.

Shards are listed with the standard library's ``tarfile`` and read undecoded: webdataset's own
``.decode()`` unpickles, and its reader skips what it cannot read. ``tarfile`` too ends silently at
a damaged header, so here the bytes after the last member must be zeros; otherwise the shard is
refused rather than read in part. Only extensions of an allow-list are ever opened.

A label function is copied from its archive bit for bit: its tensors are not decoded and stored
again, so probes, quantisation and digest stay what they were.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from hellofmt.archive.classes import ClassLine
from hellofmt.archive.images import Codec, encode_image, parse_image
from hellofmt.archive.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.manifest import UNSET, Dataset, Views, decimal_string
from hellofmt.archive.reader import HelloFile, open_archive
from hellofmt.archive.shards import write_shards
from hellofmt.archive.tensors import StoredTensor, expected_tensors, parse_tensors
from hellofmt.archive.writer import Draft, ImageItem, ImageSet, ProjectorPart, write_archive
from hellofmt.errors import HelloError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Literal

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["default_views", "pack_archive"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
LARGEST_DEFAULT_VIEW: Final = 224
"""Side of a default view at most, in pixels: what students on ImageNet are trained on."""

_CODECS: Final[Mapping[str, Codec]] = {
    "png": "png",
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "webp": "webp",
}
_NUMBERED: Final = re.compile(r"([^0-9]*)([0-9]{1,9})")
_BLOCK: Final = 512
_SHOWN: Final = 5
# A list of classes is made up to the largest label, so a label must not be able to fill the memory.
_LABEL_DIGITS: Final = 6
# Images read to choose the size of a default view; reading all would read the source once more.
_SAMPLED: Final = 64


@dataclass(frozen=True)
class _Picture:
    """One image of a source: its class as the source calls it, and where its bytes are.

    ``source`` is the path of a file where it is a string.
    """

    key: str
    name: str
    codec: Codec
    source: str | Callable[[], bytes]

    def read(self) -> bytes:
        """The bytes, as they are now."""
        if not isinstance(self.source, str):
            return self.source()
        # A pipe would be waited for, and a device may never end.
        if not stat.S_ISREG(Path(self.source).stat().st_mode):
            raise UserInputError.make("E_DATA", f"`{printable(self.name)}`: no regular file")
        return Path(self.source).read_bytes()

    def __call__(self) -> bytes:
        """The bytes, within the profile of the codec, or an error that names the picture."""
        data = self.read()
        try:
            parse_image(data, self.codec)
        except HelloError as error:
            raise UserInputError.make("E_DATA", f"`{printable(self.name)}`: {error}") from None
        return data


@dataclass(frozen=True)
class _Source:
    """Everything read from a source before its images are.

    ``lines`` are the classes, where the source knows their order itself; ``keys`` are the classes
    it names, in no particular order.
    """

    pictures: list[_Picture]
    keys: list[str]
    lines: list[ClassLine] | None = None


@dataclass(frozen=True)
class _LabelFunction:
    """What is taken over from an archive with a label function."""

    part: ProjectorPart
    lines: list[ClassLine]
    dataset: Dataset
    views: Views


@dataclass(frozen=True)
class _Member:
    """A member of a shard, read on demand, so that no shard is held in memory."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        """The bytes of the member."""
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) != self.size:
            raise UserInputError.make("E_DATA", f"`{printable(self.path)}`: changed while read")
        return data


@dataclass(frozen=True)
class _Reencoded:
    """A picture in another codec, or its own bytes where they are within the profile already."""

    picture: _Picture
    codec: Codec

    def __call__(self) -> bytes:
        """The bytes to store."""
        data = self.picture.read()
        if self.picture.codec == self.codec:
            try:
                parse_image(data, self.codec)
            except HelloError:
                pass
            else:
                return data
        return encode_image(_decode_any(data, self.picture), self.codec)


def pack_archive(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    projector: str | os.PathLike[str] | None = None,
    classes: Sequence[ClassLine] | None = None,
    views: Views | Mapping[str, Any] | None = None,
    name: str | None = None,
    version: str = "1.0.0",
    license: str | None = None,
    method: str | None = None,
    sources: Sequence[str] | None = None,
    card: str | None = None,
    license_text: str | None = None,
    extras: Mapping[str, str] | None = None,
    reencode: Literal["png", "jpeg", "webp"] | None = None,
    layout: Literal["auto", "files", "packed"] = "auto",
    shards: int | None = None,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Pack images into an archive; what it gets is verified before it has its name.

    Classes get their numbers, in this order: from ``classes`` or the projector, by the name of the
    folder; if those are numbers (also with one common prefix, ``new000``) and none is a key of the
    list, that number is the place in the list; without a list, folders are classes in the order of
    their names. That is the order of torchvision's ``ImageFolder``, which teachers are trained
    with: of folders ``0`` to ``10``, the third class is ``10``.

    Args:
        source: an image folder, a ``.hello`` archive, or one or more WebDataset shards (``.tar``).
        target: the archive to write.
        projector: an archive whose label function is copied; its classes and views are taken over.
        classes: the classes in label order; those of the source may be fewer.
        views: how views are made; the projector's, else ``default_views`` for the median shorter
            side of the images, at most 224. A mapping changes only the fields it names.
        name: of the data set; else the name of the source.
        version: of the data set.
        license: SPDX expression; else ``NOASSERTION``.
        method: how the images were made; else the projector's, else ``unknown``.
        sources: data sets the images come from; else the projector's.
        card: Markdown text about the data set.
        license_text: the text of the licence.
        extras: notes, keys starting ``x_``.
        reencode: convert images of another codec or outside the profile; quality 95 for JPEG.
        layout: ``files``, ``packed`` (one array, for tiny images of one size) or the smaller.
        shards: spread the images over so many files, ``name-00000-of-00016.hello`` beside the
            target, which itself is not written.
        force: replace an existing target.
        limits: of the archive.
        progress: called with steps done and in all.

    Returns:
        The ``sha256:...`` id; with ``shards`` that of the set.

    Raises:
        UserInputError: the source has no images or mixed codecs, its classes do not match, a shard
            is damaged, an image is outside its profile (E_DATA, naming it); ``projector`` has no
            label function (E_OPTION).
        CorruptError: the projector's archive, or the one that images are taken from, is damaged.
        LimitError: above the limits.
        HelloIOError: the target exists (E_TARGET) or cannot be written.
        OSError: a source is missing or cannot be read.

    Example:
        >>> import hellofmt
        >>> hellofmt.pack("images/", "mine.hello", license="CC0-1.0")  # doctest: +SKIP
        'sha256:...'
    """
    paths = _paths(source)
    label_function = None if projector is None else _read_label_function(projector, limits)
    with ExitStack() as opened:
        read = _read_source(paths, limits, opened)
        lines = None if classes is None else list(classes)
        if label_function is not None:
            _check_same_classes(lines, label_function.lines)
            lines = label_function.lines
            method = label_function.dataset.method if method is None else method
            sources = label_function.dataset.sources if sources is None else sources
        lines, labels = _labelled(read, lines)
        if not isinstance(views, Views):
            if label_function is not None:
                start = label_function.views
            else:
                start = default_views(_sampled_side(read.pictures, limits))
            views = _changed(start, views or {})
        draft = Draft(
            dataset=Dataset(
                name=name or _default_name(paths),
                version=version,
                license=license or "NOASSERTION",
                method=method or "unknown",
                sources=list(sources or ()),
            ),
            classes=lines,
            views=views,
            images=ImageSet(
                codec=reencode or _one_codec(read.pictures),
                items=[
                    ImageItem(label, _item_source(picture, reencode))
                    for label, picture in zip(labels, read.pictures, strict=True)
                ],
                layout=layout,
            ),
            projector=None if label_function is None else label_function.part,
            card=card,
            license=license_text,
            extras=dict(extras or {}),
        )
        try:
            if shards is not None:
                return write_shards(
                    target, draft, shards, force=force, limits=limits, progress=progress
                )
            return write_archive(target, draft, force=force, limits=limits, progress=progress)
        except UserInputError as error:
            cause = error.__cause__
            if isinstance(cause, HelloError) and cause.code == "E_CODEC" and reencode is None:
                error.advice = "{reencode} converts it"
            raise


def _item_source(picture: _Picture, reencode: Codec | None) -> str | Callable[[], bytes]:
    """What the writer reads; a file it can name itself, and need not read to know its size."""
    if reencode is not None:
        return _Reencoded(picture, reencode)
    return picture.source if isinstance(picture.source, str) else picture


def default_views(size: int) -> Views:
    """Views for images that come without any: ``RandomResizedCrop`` and a flip, nothing mixed.

    Crops of 8 to 100 % of the area and 3/4 to 4/3 in aspect are torchvision's defaults, mean and
    standard deviation those of ImageNet: what the literature trains students with.

    Args:
        size: side of a view in pixels, >= 1.

    Returns:
        The views.
    """
    return Views(
        antialias=True,
        crop_ratio=[decimal_string(0.75), decimal_string(4 / 3)],
        crop_scale=["0.08", "1.0"],
        flip="0.5",
        interpolation="bilinear",
        mean=[decimal_string(value) for value in IMAGENET_MEAN],
        mix="none",
        mix_alpha="1.0",
        mix_probability="0.0",
        shuffle=1,
        size=size,
        std=[decimal_string(value) for value in IMAGENET_STD],
    )


def _paths(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    if isinstance(source, str | os.PathLike):
        return [Path(source)]
    paths = [Path(path) for path in source]
    if not paths:
        raise UserInputError.make("E_DATA", "no source given")
    return paths


def _read_source(paths: list[Path], limits: Limits, opened: ExitStack) -> _Source:
    """List what is to be packed, by what kind of source it is."""
    modes = [path.stat().st_mode for path in paths]
    if len(paths) == 1 and stat.S_ISDIR(modes[0]):
        return _read_folder(paths[0])
    if any(map(stat.S_ISDIR, modes)):
        raise UserInputError.make("E_DATA", "several sources; expected one folder, or shards")
    for path, mode in zip(paths, modes, strict=True):
        if not stat.S_ISREG(mode):
            raise UserInputError.make(
                "E_DATA", f"`{printable(path)}`: neither a folder nor a regular file"
            )
    if len(paths) == 1 and _is_archive(paths[0]):
        return _read_archive(opened.enter_context(open_archive(paths[0], limits=limits)))
    return _read_shards(paths)


def _is_archive(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(18) == b"__hello__/manifest"


def _read_folder(root: Path) -> _Source:
    """A folder with one sub-folder per class; images may lie deeper, in any folder of a class."""
    keys = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not keys:
        raise UserInputError.make(
            "E_DATA", f"`{printable(root)}`: no class folder; expected one folder per class"
        )
    pictures: list[_Picture] = []
    for key in keys:
        before = len(pictures)
        # Links are followed: class folders are often links into a larger data set.
        for folder, _, files in sorted(os.walk(root / key, followlinks=True)):
            for file in sorted(files):
                codec = _codec_of(file)
                if codec is not None:
                    path = f"{folder}/{file}"
                    pictures.append(_Picture(key, path, codec, path))
        if len(pictures) == before:
            raise UserInputError.make(
                "E_DATA", f"`{printable(root / key)}`: no image; expected png, jpg, jpeg or webp"
            )
    return _Source(pictures, keys)


def _codec_of(file: str) -> Codec | None:
    stem, _, extension = file.rpartition(".")
    return _CODECS.get(extension.lower()) if stem else None


def _read_archive(file: HelloFile) -> _Source:
    """The images of another archive; read, and so verified, one by one while packing."""
    images, index = file.manifest.images, file.index
    if images is UNSET or index is None:
        raise UserInputError.make("E_DATA", f"`{printable(file.path)}`: an archive without images")
    keys = file.classes.keys
    pictures: list[_Picture] = []
    for row, label in enumerate(index.label.tolist()):
        read = _ArchiveImage(file, row, packed=images.codec == "raw")
        codec: Codec = "png" if images.codec == "raw" else images.codec
        pictures.append(_Picture(keys[label], f"{file.path}:{file.image_name(row)}", codec, read))
    return _Source(pictures, keys, _class_lines(file))


@dataclass(frozen=True)
class _ArchiveImage:
    """An image of another archive."""

    file: HelloFile
    row: int
    packed: bool

    def __call__(self) -> bytes:
        """The stored bytes; of a packed archive its pixels as PNG."""
        if self.packed:
            return encode_image(self.file.decode_image(self.row), "png")
        return self.file.read_image(self.row)


def _read_shards(paths: list[Path]) -> _Source:
    """WebDataset shards: samples of an image and a ``.cls`` number under one key."""
    pictures: list[_Picture] = []
    for path in paths:
        sample: dict[str, _Member] = {}
        current = ""
        for name, member in _tar_members(path):
            folder, _, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if key != current:
                pictures += _sample(path, current, sample)
                sample, current = {}, key
            # Whatever else a sample holds (json, txt, a pickle) is not even read.
            if extension.lower() in _CODECS or extension == "cls":
                sample[extension.lower()] = member
        pictures += _sample(path, current, sample)
    if not pictures:
        raise UserInputError.make("E_DATA", f"`{printable(paths[0])}`: no image with a `.cls`")
    labels = sorted({int(picture.key) for picture in pictures})
    # A number is a label, whether or not every class has an image in these shards.
    lines = [ClassLine(str(label), (str(label),)) for label in range(labels[-1] + 1)]
    return _Source(pictures, [str(label) for label in labels], lines)


def _sample(path: Path, key: str, sample: dict[str, _Member]) -> list[_Picture]:
    """The picture of one sample; a sample without image and label is none of ours."""
    if not sample:
        return []
    where = f"{path}:{key}"
    images = [extension for extension in sample if extension in _CODECS]
    if len(images) != 1 or "cls" not in sample:
        raise UserInputError.make(
            "E_DATA",
            f"`{printable(where)}`: expected one image and a `.cls`, got "
            f"{printable(', '.join(sorted(sample)))}",
        )
    text = sample["cls"]().strip() if sample["cls"].size <= 32 else b""
    if not (text.isdigit() and len(text) <= _LABEL_DIGITS):
        raise UserInputError.make(
            "E_DATA",
            f"`{printable(where)}.cls`: expected a class number of at most {_LABEL_DIGITS} digits",
        )
    extension = images[0]
    name = f"{where}.{extension}"
    return [_Picture(str(int(text)), name, _CODECS[extension], sample[extension])]


def _tar_members(path: Path) -> Iterable[tuple[str, _Member]]:
    """Name and place of every file in a tar, in order; damage anywhere is an error."""
    end, file_size = 0, path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.offset_data + info.size > file_size or info.offset < end or info.size < 0:
                    raise _damaged(path)
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                if info.isdir():
                    end = info.offset_data
                    continue
                if not info.isreg() or info.issparse():
                    raise UserInputError.make(
                        "E_DATA",
                        f"`{printable(path)}`: `{printable(info.name)}` is a link or special file",
                    )
                yield info.name, _Member(path, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise UserInputError.make(
            "E_DATA", f"`{printable(path)}`: not an uncompressed tar file: {printable(error)}"
        ) from None
    if not _ends(path, end, file_size):
        raise _damaged(path)


def _ends(path: Path, end: int, file_size: int) -> bool:
    """Whether zeros, at least one block of them, follow the last member."""
    if end + _BLOCK > file_size:
        return False
    with path.open("rb") as stream:
        stream.seek(end)
        while chunk := stream.read(1 << 20):
            if chunk.count(0) != len(chunk):
                return False
    return True


def _damaged(path: Path) -> UserInputError:
    return UserInputError.make(
        "E_DATA",
        f"`{printable(path)}`: damaged tar file; a header or the end is not where it should be",
    )


def _read_label_function(path: str | os.PathLike[str], limits: Limits) -> _LabelFunction:
    """The label function of an archive, its tensors as they are stored.

    Raises:
        UserInputError: the archive has none (E_OPTION).
        HelloError: it is damaged.
        OSError: it cannot be read.
    """
    with open_archive(path, limits=limits) as file:
        manifest = file.manifest
        base, adapter, head = manifest.base, manifest.adapter, manifest.head
        if base is UNSET or adapter is UNSET or head is UNSET:
            raise UserInputError.make(
                "E_OPTION", f"`{printable(path)}`: no label function in this archive"
            )

        def stored(section: str) -> dict[str, StoredTensor]:
            # `file.section` verified them; this gives them without decoding a value.
            kinds = expected_tensors(manifest, section)
            return parse_tensors(file.section(section), section, kinds)

        part = ProjectorPart(
            base=base,
            adapter=adapter,
            head=head,
            adapter_tensors=stored("adapter"),
            head_tensors=stored("head"),
            probe_logits=cast("NDArray[np.float32]", stored("probes")["logits"].numpy()),
            base_tensors=stored("base") if base.kind == "embedded" else None,
        )
        return _LabelFunction(part, _class_lines(file), manifest.dataset, manifest.views)


def _class_lines(file: HelloFile) -> list[ClassLine]:
    """The classes of an archive, as a writer takes them."""
    classes = file.classes
    return [ClassLine(*pair) for pair in zip(classes.keys, classes.names, strict=True)]


def _changed(views: Views, changes: Mapping[str, Any]) -> Views:
    """``views`` with some fields changed."""
    unknown = sorted(set(changes) - set(Views.__struct_fields__))
    if unknown:
        raise UserInputError.make("E_OPTION", f"`views`: no field {printable(', '.join(unknown))}")
    return msgspec.structs.replace(views, **changes)


def _check_same_classes(given: list[ClassLine] | None, known: list[ClassLine]) -> None:
    """A class list beside a projector must be the projector's: its rows are what it labels."""
    if given is None or [line.key for line in given] == [line.key for line in known]:
        return
    raise UserInputError.make(
        "E_DATA",
        f"the class list is not the projector's; expected {len(known)} classes beginning "
        f"{_some(line.key for line in known)}, got {len(given)} beginning "
        f"{_some(line.key for line in given)}",
    )


def _some(keys: Iterable[str]) -> str:
    """The first few of many keys, fit for a message."""
    listed = list(keys)
    more = ", ..." if len(listed) > _SHOWN else ""
    return printable(", ".join(listed[:_SHOWN])) + more


def _numbers(keys: Sequence[str]) -> list[int] | None:
    """The numbers in names like ``0``, ``00012`` or ``new003``, all of one prefix; else None."""
    matches = [_NUMBERED.fullmatch(key) for key in keys]
    found = [match for match in matches if match is not None]
    numbers = [int(match[2]) for match in found]
    if len(found) < len(keys) or len({match[1] for match in found}) > 1:
        return None
    return numbers if len(set(numbers)) == len(numbers) else None


def _labelled(read: _Source, lines: list[ClassLine] | None) -> tuple[list[ClassLine], list[int]]:
    """The classes, and the label of every picture."""
    numbers = _numbers(read.keys)
    if lines is None and read.lines is not None:
        lines = read.lines
    if lines is None:
        # Also numbers, 10 before 2: a teacher trained on these folders has its classes so.
        lines = [ClassLine(key, tuple(key.split(", "))) for key in sorted(read.keys)]
    place = {line.key: label for label, line in enumerate(lines)}
    unknown = [key for key in read.keys if key not in place]
    if len(unknown) == len(read.keys) and numbers is not None and max(numbers) < len(lines):
        place = dict(zip(read.keys, numbers, strict=True))
    elif unknown:
        raise UserInputError.make(
            "E_DATA",
            f"{len(unknown)} of {len(read.keys)} classes of the source are not in the class list "
            f"of {len(lines)}: {_some(unknown)}; expected {_some(line.key for line in lines)}",
        )
    return lines, [place[picture.key] for picture in read.pictures]


def _one_codec(pictures: Sequence[_Picture]) -> Codec:
    """The codec that all pictures have."""
    codecs: list[Codec] = sorted({picture.codec for picture in pictures})
    if len(codecs) > 1:
        counts = [f"{sum(p.codec == c for p in pictures)} {c}" for c in codecs]
        raise UserInputError.make(
            "E_DATA",
            f"an archive has one codec, the source has {', '.join(counts)}; "
            "`--reencode` converts them",
        )
    return codecs[0]


def _default_name(paths: list[Path]) -> str:
    name = paths[0].resolve().name
    return name.split(".")[0] or name or "dataset"


def _sampled_side(pictures: Sequence[_Picture], limits: Limits) -> int:
    """Side of a default view: the median shorter side of a sample, at most 224 pixels."""
    step = max(1, len(pictures) // _SAMPLED)
    sides: list[int] = []
    for picture in pictures[::step]:
        # The writer refuses by name what is too large or outside its profile, or converts it.
        path = picture.source
        if isinstance(path, str) and Path(path).stat().st_size > limits.image_bytes:
            continue
        try:
            shape = parse_image(picture.read(), picture.codec)
        except HelloError:
            continue
        sides.append(min(shape.height, shape.width))
    if not sides:
        return LARGEST_DEFAULT_VIEW
    return min(sorted(sides)[len(sides) // 2], LARGEST_DEFAULT_VIEW)


def _decode_any(data: bytes, picture: _Picture) -> NDArray[np.uint8]:
    """Pixels of an image that may be outside the profile: grey as (H, W), all else as RGB."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    fault = ""
    try:
        # The extension may be wrong; the plugins stay those of the three codecs.
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if not image.mode.startswith(("I", "F")):
                mode = "L" if image.mode in ("1", "L") else "RGB"
                return np.asarray(image.convert(mode), np.uint8)
            fault = f"mode {image.mode}; expected 8 bits"
    except UnidentifiedImageError:
        # Its own text names a buffer of ours.
        fault = "neither PNG nor JPEG nor WebP"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fault = printable(error)
    raise UserInputError.make("E_DATA", f"`{printable(picture.name)}`: cannot be decoded: {fault}")
