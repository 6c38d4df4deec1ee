"""Listing WebDataset shards: samples of an image and a ``.cls`` number under one key.

Shards are listed with the standard library's ``tarfile`` and read undecoded: webdataset's own
``.decode()`` unpickles, and its reader skips what it cannot read. ``tarfile`` too ends silently at
a damaged header, so here the bytes after the last member must be zeros; otherwise the shard is
refused rather than read in part. Only images and labels are ever opened.

A shard is a local file or a URL that fsspec knows. It is walked through once; then an image is one
positioned read, so images come in any order. Walking reads a local shard's headers, but all of a
URL, since a request for each header would take longer.

A key is the name up to the first dot of its last part, as in WebDataset, and a sample is what
follows one another under one key. ``img.v1.000.jpg`` with ``img.v1.000.cls`` is a sample as well,
although WebDataset would take both for fields of a sample ``img`` and drop them; that is said.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.storage.local_files import open_regular, read_at
from hellofmt.archive.storage.remote import open_source
from hellofmt.archive.storage.source import display_name, is_url
from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.sources.content import IMAGE_EXTENSIONS, codec_of, fact_of
from hellofmt.sources.kept import Watched
from hellofmt.sources.listing import Listing, NamesBuilder
from hellofmt.sources.notes import Met, Notes, is_hidden
from hellofmt.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray

    from hellofmt.archive.storage.source import Source as Bytes

_BLOCK: Final = 512
# A list of classes is made up to the largest label, so a label must not be able to fill the memory.
_LABEL_DIGITS: Final = 6
_LABEL_BYTES: Final = 32
_HEAD_BYTES: Final = 64
_WINDOW_BYTES: Final = 4 << 20


class _Member(NamedTuple):
    """Where a member lies in its shard."""

    offset: int
    size: int


class _Image(NamedTuple):
    """An image of a shard, with its label."""

    name: str
    place: _Member
    label: int


class ShardSource(Source):
    """Members of tar files."""

    def _read(self, row: int) -> bytes:
        path = self._names.folders[self._names.folder(row)]
        offset, size = self._spans[row].tolist()
        if is_url(path):
            return _remote(path, os.getpid()).read(offset, size)
        fd, _ = open_regular(path)
        try:
            data = read_at(fd, size, offset)
        finally:
            os.close(fd)
        if len(data) != size:
            raise UserInputError.make(
                "E_DATA",
                f"`{printable(path)}` became shorter since it was listed; `{self._names.name(row)}`"
                f" has {len(data):,} of {size:,} bytes",
            )
        return data

    def _name_of(self, row: int) -> str:
        folder = self._names.folders[self._names.folder(row)]
        return f"{display_name(folder)}:{self._names.name(row)}"


@lru_cache(maxsize=64)
def _remote(url: str, _process: int) -> Bytes:
    """The open shard of this process."""
    return open_source(url)


def list_shards(paths: Sequence[str], *, skips_unreadable: bool = False) -> tuple[Listing, Watched]:
    """List the samples of WebDataset shards.

    Images are in the order of the shards, keys are labels; without a class list the classes are the
    numbers up to the largest, whether or not each has an image. ``skips_unreadable`` leaves out
    images that are of another type by their first bytes.
    """
    started = time.time_ns()
    notes, dotted, builder = Notes(), Met(), NamesBuilder()
    spans: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    digest, times = hashlib.sha256(), hashlib.sha256()
    for path in paths:
        images = list(_images(path, notes, dotted))
        # The folder of shards may be called otherwise on another machine.
        digest.update(os.fsencode(path.rpartition("/")[2]) + b"\0")
        if not is_url(path):
            status = os.stat(path)  # noqa: PTH116
            times.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        if images:
            builder.add(path, [image.name for image in images])
            spans.append(np.array([image.place for image in images], np.int64))
            labels.append(np.array([image.label for image in images], np.int64))
    if not skips_unreadable:
        notes.refuse_foreign()
    if not labels:
        shown = printable(display_name(paths[0]))
        raise UserInputError.make("E_DATA", f"`{shown}`: no image with a `.cls`")
    found, key_of = np.unique(np.concatenate(labels), return_inverse=True)
    names, places = builder.names(), np.concatenate(spans)
    for array in (names.starts, names.text, names.ends, places):
        digest.update(array.data)
    said = list(notes.lines())
    if dotted.count:
        said.append(
            "samples whose key holds a dot, where WebDataset would end it:"
            f" {dotted.count:,}, such as `{printable(dotted.first[0])}`"
        )
    listing = Listing(
        printable(paths[0].rpartition("/")[2].split(".")[0]) or "shards",
        [str(label) for label in found.tolist()],
        [ClassLine(str(label), (str(label),)) for label in range(int(found[-1]) + 1)],
        is_numbered=True,
        notes=tuple(said),
        key_of=key_of.astype(np.int32),
        names=names,
        spans=places,
        digest=digest.hexdigest(),
        times=times.hexdigest(),
    )
    return listing, Watched.of(paths, started)


def _images(path: str, notes: Notes, dotted: Met) -> Iterator[_Image]:
    """The images of a shard."""
    shown = display_name(path)
    with _opened(path) as stream:
        fields: dict[str, _Member] = {}
        current = ""
        for name, member in _tar_members(shown, stream):
            folder, slash, base = name.rpartition("/")
            # The folders that a shard was made from may be hidden; its images are not.
            if is_hidden(base) or "__MACOSX" in folder.split("/"):
                notes.hidden.add(f"{shown}:{name}")
                continue
            stem, _, field = base.partition(".")
            field = field.lower()
            key = folder + slash + stem
            if key != current:
                yield from _samples(shown, stream, current, fields, notes, dotted)
                fields, current = {}, key
            if field in fields:
                raise UserInputError.make(
                    "E_DATA", f"`{printable(shown)}:{printable(name)}` is twice in its sample"
                )
            fields[field] = member
        yield from _samples(shown, stream, current, fields, notes, dotted)


def _samples(
    path: str,
    stream: BinaryIO,
    key: str,
    fields: dict[str, _Member],
    notes: Notes,
    dotted: Met,
) -> Iterator[_Image]:
    """The images among members whose names begin alike: one, or one for each key with dots."""
    plain: dict[str, _Member] = {}
    samples = {key: plain}
    for field, member in fields.items():
        stem, _, last = field.rpartition(".")
        # The label tells where a key ends: `v1.000.cls` is the label of `v1.000.jpg`, whereas the
        # mask `seg.png` beside `jpg` and `cls` has none.
        if stem and f"{stem}.cls" in fields:
            samples.setdefault(f"{key}.{stem}", {})[last] = member
        else:
            plain[field] = member
    for where in list(samples)[1:]:
        dotted.add(f"{path}:{where}")
    for where, sample in samples.items():
        yield from _sample(path, stream, where, sample, notes)


def _sample(
    path: str, stream: BinaryIO, key: str, fields: dict[str, _Member], notes: Notes
) -> Iterator[_Image]:
    """The image of one sample; none where it has neither an image nor a label."""
    where = f"{path}:{key}"
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
    for field in others:
        notes.sidecars.add(f"{where}.{field}")
    if not images:
        return
    label, (field,) = fields["cls"], images
    text = _head(stream, label, _LABEL_BYTES).strip() if label.size <= _LABEL_BYTES else b""
    if not (text.isdigit() and len(text) <= _LABEL_DIGITS):
        raise UserInputError.make(
            "E_DATA",
            f"`{printable(where)}.cls`: expected a class number of at most {_LABEL_DIGITS} digits,"
            f" got `{printable(text, 40)}`",
        )
    head = _head(stream, fields[field], _HEAD_BYTES)
    if codec_of(head) is None:
        notes.add_foreign(f"{where}.{field}", fact_of(head))
    else:
        yield _Image(f"{key}.{field}", fields[field], int(text))


def _head(stream: BinaryIO, member: _Member, length: int) -> bytes:
    """The first bytes of a member; the walk goes on where it was."""
    at = stream.tell()
    stream.seek(member.offset)
    data = stream.read(min(length, member.size))
    stream.seek(at)
    return data


def _opened(path: str) -> BinaryIO:
    if is_url(path):
        return io.BufferedReader(_Window(open_source(path)), _WINDOW_BYTES)
    fd, _ = open_regular(path)
    return os.fdopen(fd, "rb")


class _Window(io.RawIOBase):
    """A file behind a URL, as ``tarfile`` reads one."""

    def __init__(self, source: Bytes) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill a buffer as far as the file goes."""
        length = max(0, min(len(buffer), self._source.size - self._at))
        buffer[:length] = self._source.read(self._at, length)
        self._at += length
        return length


def _tar_members(path: str, stream: BinaryIO) -> Iterator[tuple[str, _Member]]:
    """Name and place of every file in a tar, in order; damage anywhere is an error."""
    file_size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (info := tar.next()) is not None:
                # It would keep every member for as long as it is open.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
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
                yield info.name, _Member(info.offset_data, info.size)
    except tarfile.TarError as error:
        raise UserInputError.make(
            "E_DATA",
            f"`{printable(path)}`: not an uncompressed tar file: {foreign_text(error)}",
            advice="pass a folder with one folder per class, tar files that are unpacked from gzip"
            " or xz, or an archive",
        ) from None
    if not _ends(stream, end, file_size):
        raise _damaged(path)


def _ends(stream: BinaryIO, end: int, file_size: int) -> bool:
    """Whether zeros, at least one block of them, follow the last member."""
    if end + _BLOCK > file_size:
        return False
    stream.seek(end)
    while chunk := stream.read(1 << 20):
        if chunk.count(0) != len(chunk):
            return False
    return True


def _damaged(path: str) -> UserInputError:
    return UserInputError.make(
        "E_DATA",
        f"`{printable(path)}`: damaged tar file; a header or the end is not where it should be",
    )
