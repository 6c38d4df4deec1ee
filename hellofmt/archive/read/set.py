"""A sharded data set: its files read as one archive.

Each shard is a full archive. Opening checks that they belong together: manifests agree except where
they describe images, no shard is missing or repeated, and rows are consecutive; when the index is
read, labels must be sorted over all shards. A ``HelloSet`` has the interface of a ``HelloFile``, so
whatever reads an archive reads a set.

A single shard that is named exactly opens as an archive, and a pattern never opens part of a set: a
training run on 15 of 16 files would look like any other.
"""

from __future__ import annotations

import bisect
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from hellofmt.archive.format.digest import Whole, content_id, set_id
from hellofmt.archive.format.manifest import UNSET, Images, Manifest, Shard
from hellofmt.archive.read.archive import Archive
from hellofmt.archive.read.checks import check_expect
from hellofmt.archive.storage.source import display_name, is_url
from hellofmt.errors import CorruptError, SpecError, TrustError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import Classes
    from hellofmt.archive.format.index import Index
    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.read.file import Access, HelloFile

_OWN_SECTIONS: Final = frozenset({"index", "pixels"})
_THREADS: Final = 8
# Local shards whose descriptors are held; a process may often have no more than 1,024.
_MOST_OPEN: Final = 256


def open_set(names: Sequence[str], expect: str | None, limits: Limits, access: Access) -> Archive:
    """Open the files of a sharded data set, in any order, as one archive.

    A single file that is not a shard is opened as itself.
    """
    check_expect(expect)
    files = _open_all(names, limits, access)
    try:
        if len(files) > 1 or files[0].manifest.shard is not UNSET:
            return HelloSet(files, limits, access, expect)
    except BaseException:
        _close_all(files)
        raise
    _close_all(files)
    return access.open(names[0], expect, limits)


def _open_all(names: Sequence[str], limits: Limits, access: Access) -> list[HelloFile]:
    """Open all files or none; over a network several at a time."""
    files: list[HelloFile] = []
    fault: BaseException | None = None
    access = replace(access, keeps_open=len(names) <= _MOST_OPEN)
    with ThreadPoolExecutor(_THREADS if any(map(is_url, names)) else 1) as pool:
        waiting = [pool.submit(access.open, name, None, limits) for name in names]
        for future in waiting:
            try:
                files.append(future.result())
            except BaseException as error:
                fault = fault or error
                for other in waiting:
                    other.cancel()
    if fault is not None:
        _close_all(files)
        raise fault
    return files


def _close_all(files: Sequence[HelloFile]) -> None:
    for file in files:
        file.close()


class HelloSet(Archive):
    """The files of a sharded data set as one archive; ``Draft`` shows one written and opened.

    Rows and image names are numbered over all shards. ``manifest`` is that of a shard with the
    images of all; ``section`` and ``tensors`` read the first shard, whose bytes equal the others'.
    ``index.offset`` counts in the shard of its row. What is about the bytes of one file, such as
    ``source`` and ``section_offset``, is read from ``shards[i]``.

    Attributes:
        path: name of the first file and the number of files, for messages.
    """

    def __init__(
        self, files: Sequence[HelloFile], limits: Limits, access: Access, expect: str | None
    ) -> None:
        """Check that ``files``, open and in any order, are one complete set; take ownership.

        Raises:
            UserInputError: they are not one complete set (E_DATA).
            SpecError: their rows are not consecutive (E_INDEX).
            TrustError: the id of the set is not ``expect`` (E_PIN).
        """
        self._shards = _in_order(files)
        first = self._shards[0]
        images = [_images_of(file) for file in self._shards]
        self._firsts = [_shard_of(file).first for file in self._shards]
        count, span = sum(one.count for one in images), sum(one.span for one in images)
        whole = msgspec.structs.replace(images[0], count=count, span=span)
        self.manifest = msgspec.structs.replace(first.manifest, shard=UNSET, images=whole)
        self.extras = first.extras
        self.id = set_id([file.id for file in self.shards])
        if expect not in (None, self.id):
            raise TrustError.make("E_PIN", f"id of the set; expected {expect}, got {self.id}")
        self.limits = limits
        self.path = f"{first.path} ... ({len(self.shards)} shards)"
        self.size_bytes = sum(file.size_bytes for file in self.shards)
        self._access = access
        self.storage_options, self.cache = access.storage_options, first.cache
        self._index: Index | None = None

    def __repr__(self) -> str:
        name = display_name(self.shards[0].path)
        return f"<HelloSet {name!r} ... {len(self.shards)} shards, {len(self)} images>"

    @property
    def shards(self) -> Sequence[HelloFile]:
        """The open files, in order."""
        return self._shards

    @property
    def content_id(self) -> str:
        """Identity of the content, equal for the same data set in one file; never a pin."""
        return _shard_of(self.shards[0]).content_id

    def check_content(self) -> None:
        """Compute the content of the whole set and compare it with what the shards name.

        Raises:
            CorruptError: it is another (E_DIGEST_ROOT).
        """
        from hellofmt.archive.format.index import index_section

        images = _images_of(self)
        whole = Whole(images.count, images.span, index_section(self.index.all_columns()))
        content = content_id(self.shards[0].manifest_bytes, whole=whole)
        if content != self.content_id:
            text = f"content of the set; its shards name {self.content_id}, but hold {content}"
            raise CorruptError.make("E_DIGEST_ROOT", text)

    @property
    def classes(self) -> Classes:
        """The classes in label order."""
        return self.shards[0].classes

    @property
    def index(self) -> Index:
        """The index of all shards; ``offset`` counts in the shard of the row.

        Raises:
            HelloError: the index of a shard is damaged, or labels are not sorted over
                all of them (E_INDEX).
        """
        if self._index is None:
            parts = cast("list[Index]", [file.index for file in self.shards])
            self._index = _joined(parts, self.manifest)
        return self._index

    def has_section(self, name: str) -> bool:
        """Tell whether the shards have a section called ``name``."""
        return self.shards[0].has_section(name)

    def section_sizes(self) -> dict[str, int]:
        """Return stored bytes per section, summed over the shards; each shard has every section."""
        sizes = dict.fromkeys(self.shards[0].section_sizes(), 0)
        for file in self.shards:
            for name, size in file.section_sizes().items():
                sizes[name] += size
        return sizes

    def section(self, name: str) -> bytes:
        """Return the raw bytes of a section that all shards share; see ``HelloFile.section``."""
        if name in _OWN_SECTIONS:
            raise self._one_per_shard(f"section `{name}`")
        return self.shards[0].section(name)

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the tensors of a section that all shards share; see ``HelloFile.tensors``."""
        if name in _OWN_SECTIONS:
            raise self._one_per_shard(f"section `{name}`")
        return self.shards[0].tensors(name)

    def check_image(self, row: int, block: bytes) -> bytes:
        """Verify an image member; see ``HelloFile.check_image``."""
        shard, local = self._place(row)
        return self.shards[shard].check_image(local, block)

    def image_name(self, row: int) -> str:
        """Return the name of an image, numbered over the set; see ``HelloFile.image_name``."""
        shard, local = self._place(row)
        return self.shards[shard].image_name(local)

    def read_images(self, rows: Sequence[int], *, exact: bool = False) -> list[bytes]:
        """Read the stored bytes of many images; see ``HelloFile.read_images``."""
        rows_of: dict[int, list[int]] = {}
        places: list[tuple[int, int]] = []
        for row in map(int, rows):
            shard, local = self._place(row)
            places.append((shard, len(rows_of.setdefault(shard, []))))
            rows_of[shard].append(local)

        def read(shard: int) -> list[bytes]:
            return self.shards[shard].read_images(rows_of[shard], exact=exact)

        if len(rows_of) > 1 and is_url(self.shards[0].path):
            with ThreadPoolExecutor(_THREADS) as pool:
                files = dict(zip(rows_of, pool.map(read, rows_of), strict=True))
        else:
            files = {shard: read(shard) for shard in rows_of}
        return [files[shard][at] for shard, at in places]

    def _place(self, row: int) -> tuple[int, int]:
        """Return the shard of a row, and its row there; see ``row_of``."""
        self.row_of(row)
        shard = bisect.bisect_right(self._firsts, row) - 1
        return shard, row - self._firsts[shard]

    def close(self) -> None:
        """Close every file; reading afterwards is a ``HelloIOError``."""
        _close_all(self.shards)

    def __reduce__(self) -> tuple[Any, ...]:
        names = [file.path for file in self.shards]
        return open_set, (names, self.id, self.limits, self._access)


def _shard_of(file: HelloFile) -> Shard:
    """Return which part of a set a file is."""
    shard = file.manifest.shard
    if shard is UNSET:
        raise _no_set(f"{_shown(file)} is not a shard; expected the files of one data set")
    return shard


def _images_of(file: Archive) -> Images:
    # The format has no shard without images.
    return cast("Images", file.manifest.images)


def _no_set(text: str) -> UserInputError:
    return UserInputError.make("E_DATA", text)


def _shown(file: HelloFile) -> str:
    return f"`{printable(display_name(file.path))}`"


def _in_order(files: Sequence[HelloFile]) -> list[HelloFile]:
    """Sort the shards by number: all of one set, none missing, none repeated, rows consecutive."""
    ordered = sorted(files, key=lambda file: _shard_of(file).index)
    count, total = _shard_of(ordered[0]).count, _shard_of(ordered[0]).total
    by_number: dict[int, HelloFile] = {}
    content = _shard_of(ordered[0]).content_id
    for file in ordered:
        shard = _shard_of(file)
        if shard.content_id != content:
            raise CorruptError.make(
                "E_DIGEST_ROOT",
                f"{_shown(file)} is of the set with content {shard.content_id}, "
                f"{_shown(ordered[0])} of {content}: shards of two sets, as a process that was "
                "killed while it replaced a set leaves them; write the set again",
            )
        if (shard.count, shard.total) != (count, total):
            raise _no_set(
                f"{_shown(file)} is of {shard.count} shards with {shard.total} images, "
                f"{_shown(ordered[0])} of {count} with {total}"
            )
        if shard.index in by_number:
            raise _no_set(
                f"{_shown(file)} and {_shown(by_number[shard.index])} are both shard {shard.index}"
            )
        by_number[shard.index] = file
    missing = next((i for i in range(count) if i not in by_number), None)
    if missing is not None:
        raise _no_set(f"shard {missing} is missing; expected {count} shards, got {len(ordered)}")
    known = _common(ordered[0])
    row = 0
    for file in ordered:
        common = _common(file)
        keys = sorted(known.keys() | common.keys())
        key = printable(next((k for k in keys if known.get(k) != common.get(k)), ""), 80)
        if key:
            raise CorruptError.make(
                "E_DIGEST_ROOT",
                f"{_shown(file)} ({file.id}) is of another data set than {_shown(ordered[0])} "
                f"({ordered[0].id}): `{key}` differs",
            )
        if _shard_of(file).first != row:
            text = f"{_shown(file)} begins at image {_shard_of(file).first}; expected {row}"
            raise SpecError.make("E_INDEX", text, member="__hello__/manifest")
        row += _images_of(file).count
    # The last shard ends at `total`, says its own manifest.
    return ordered


def _common(file: HelloFile) -> dict[str, Any]:
    """Return what must be equal in all shards of a set."""
    # From the bytes, so that keys of a newer version are compared too.
    document: dict[str, Any] = json.loads(file.manifest_bytes)
    document.pop("shard", None)
    document["sections"] = [
        section for section in document["sections"] if section["name"] not in _OWN_SECTIONS
    ]
    # One reader decodes them all.
    for key in ("count", "span"):
        document["images"].pop(key)
    return document


def _joined(parts: Sequence[Index], manifest: Manifest) -> Index:
    """Join the indices of all shards."""
    import numpy as np

    from hellofmt.archive.format.index import Index, check_labels

    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("size", "label", "height", "width", "sha256", "offset")
    }
    further = {
        name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns
    }
    for column in (*columns.values(), *further.values()):
        column.flags.writeable = False
    check_labels(columns["label"], manifest)
    return Index(**columns, columns=MappingProxyType(further))
