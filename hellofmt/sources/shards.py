"""Listing WebDataset shards: samples of an image and a ``.cls`` number under one key.

Shards are listed with the standard library's ``tarfile`` and read undecoded: webdataset's own
``.decode()`` unpickles, and its reader skips what it cannot read. ``tarfile`` too ends silently at
a damaged header, so here the bytes after the last member must be zeros; otherwise the shard is
refused rather than read in part. Only images and labels are ever opened.

A key is the name up to the first dot of its last part, as in WebDataset, and a sample is what
follows one another under one key. ``img.v1.000.jpg`` with ``img.v1.000.cls`` is a sample as well,
although WebDataset would take both for fields of a sample ``img`` and drop them; that is said.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.classes import ClassLine
from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.sources.content import HEAD_BYTES, IMAGE_EXTENSIONS
from hellofmt.sources.listing import Listing, Picture
from hellofmt.sources.notes import Notes, is_hidden

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["list_shards"]

_BLOCK: Final = 512
# A list of classes is made up to the largest label, so a label must not be able to fill the memory.
_LABEL_DIGITS: Final = 6
_LABEL_BYTES: Final = 32


@dataclass(frozen=True)
class _Member:
    """A member of a shard, read on demand, so that no shard is held in memory."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        """The bytes of the member."""
        return self.head(self.size)

    def head(self, length: int) -> bytes:
        """At most its first ``length`` bytes."""
        length = min(length, self.size)
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read(length)
        if len(data) != length:
            raise UserInputError.make("E_DATA", f"`{printable(self.path)}`: changed while read")
        return data


def list_shards(paths: Sequence[Path]) -> Listing:
    """List the samples of WebDataset shards.

    Args:
        paths: uncompressed tar files, in order.

    Returns:
        The listing, its pictures in the order of the shards. Keys are labels; without a class list
        the classes are the numbers up to the largest, whether or not each has an image.

    Raises:
        UserInputError: E_DATA: not a whole tar file, a link or special file in it, a sample without
            one image or without a label, a member twice in a sample, an image of another type.
        OSError: a shard cannot be read.
    """
    notes, pictures, dotted = Notes(), list[Picture](), list[str]()
    for path in paths:
        fields: dict[str, _Member] = {}
        current = ""
        for name, member in _tar_members(path):
            folder, slash, base = name.rpartition("/")
            # The folders that a shard was made from may be hidden; its images are not.
            if is_hidden(base) or "__MACOSX" in folder.split("/"):
                notes.hidden.append(f"{path}:{name}")
                continue
            stem, _, field = base.partition(".")
            field = field.lower()
            key = folder + slash + stem
            if key != current:
                pictures += _samples(path, current, fields, notes, dotted)
                fields, current = {}, key
            if field in fields:
                raise UserInputError.make(
                    "E_DATA", f"`{printable(path)}:{printable(name)}` is twice in its sample"
                )
            fields[field] = member
        pictures += _samples(path, current, fields, notes, dotted)
    notes.refuse_foreign()
    if not pictures:
        raise UserInputError.make("E_DATA", f"`{printable(paths[0])}`: no image with a `.cls`")
    labels = sorted({int(picture.key) for picture in pictures})
    lines = [ClassLine(str(label), (str(label),)) for label in range(labels[-1] + 1)]
    said = notes.lines()
    if dotted:
        said.append(
            "samples whose key holds a dot, where WebDataset would end it:"
            f" {len(dotted):,}, such as `{printable(dotted[0])}`"
        )
    name = printable(paths[0].name.split(".")[0]) or "shards"
    keys = [str(label) for label in labels]
    return Listing(name, pictures, keys, lines, is_numbered=True, notes=said)


def _samples(
    path: Path, key: str, fields: dict[str, _Member], notes: Notes, dotted: list[str]
) -> list[Picture]:
    """The pictures among members whose names begin alike: one, or one for each key with dots."""
    plain: dict[str, _Member] = {}
    samples = {f"{path}:{key}": plain}
    for field, member in fields.items():
        stem, _, last = field.rpartition(".")
        # The label tells where a key ends: `v1.000.cls` is the label of `v1.000.jpg`, whereas the
        # mask `seg.png` beside `jpg` and `cls` has none.
        if stem and f"{stem}.cls" in fields:
            samples.setdefault(f"{path}:{key}.{stem}", {})[last] = member
        else:
            plain[field] = member
    dotted += list(samples)[1:]
    return [
        picture for where, sample in samples.items() for picture in _sample(where, sample, notes)
    ]


def _sample(where: str, fields: dict[str, _Member], notes: Notes) -> list[Picture]:
    """The picture of one sample; none where it has neither an image nor a label."""
    images = [field for field in fields if field in IMAGE_EXTENSIONS]
    others = [field for field in fields if field not in IMAGE_EXTENSIONS and field != "cls"]
    if len(images) != 1 or "cls" not in fields:
        if len(others) < len(fields) or any(
            field.rpartition(".")[2] in IMAGE_EXTENSIONS for field in others
        ):
            raise UserInputError.make(
                "E_DATA",
                f"`{printable(where)}`: expected one image and a `.cls`, got"
                f" {printable(', '.join(sorted(fields)))}",
            )
        images = []
    notes.sidecars += [f"{where}.{field}" for field in others]
    if not images:
        return []
    label, (field,) = fields["cls"], images
    text = label().strip() if label.size <= _LABEL_BYTES else b""
    if not (text.isdigit() and len(text) <= _LABEL_DIGITS):
        raise UserInputError.make(
            "E_DATA",
            f"`{printable(where)}.cls`: expected a class number of at most {_LABEL_DIGITS} digits,"
            f" got `{printable(text, 40)}`",
        )
    name = f"{where}.{field}"
    member = fields[field]
    return notes.picture(str(int(text)), name, field, member.head(HEAD_BYTES), member)


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
            "E_DATA",
            f"`{printable(path)}`: not an uncompressed tar file: {foreign_text(error)}",
            advice="pass a folder with one folder per class, tar files that are unpacked from gzip"
            " or xz, or an archive",
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
