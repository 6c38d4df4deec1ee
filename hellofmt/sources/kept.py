"""Listings kept in the work folder, so that a second start need not list a million files again.

A kept listing is used if everything that it watches is as it was: the times of change of all
folders, which move when an entry comes or goes, and size and time of a thousand of the files; of
shards, size and time of each. A file that is overwritten in place may go unnoticed until it is
read. What changed within two seconds before it was listed is listed again, because clocks of file
systems are coarse.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.numpy import save

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.storage.local_files import write_small_file
from hellofmt.archive.storage.source import is_url
from hellofmt.errors import printable
from hellofmt.sources.listing import Listing, Names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

KEPT_PATTERN: Final = "listing-*.safetensors"
"""Names of kept listings in a work folder."""

_VERSION: Final = 2
_WORTH_KEEPING: Final = 20_000
"""Images from which listing takes longer than a blink."""
_COARSE_NS: Final = 2_000_000_000
_DTYPES: Final = {"U8": "u1", "I32": "<i4", "U32": "<u4", "I64": "<i8"}
"""What safetensors calls the types of our arrays."""


@dataclass(frozen=True)
class Watched:
    """Paths whose times and sizes tell that a listing is out of date.

    Attributes:
        paths: folders and files.
        stamps: int64 (P, 2), time of change in ns and size in bytes; -1 of what is not there.
        started: when listing began, ns since 1970.
    """

    paths: list[str]
    stamps: NDArray[np.int64]
    started: int

    @classmethod
    def of(cls, paths: Sequence[str], started: int) -> Watched:
        """Watch these paths; URLs are left out, they tell no times."""
        watched = [path for path in paths if not is_url(path)]
        return cls(watched, _stamps(watched), started)

    def is_fresh(self) -> bool:
        """Whether everything is as it was, and was old enough to tell."""
        newest = int(self.stamps[:, 0].max(initial=0))
        return newest < self.started - _COARSE_NS and np.array_equal(
            self.stamps, _stamps(self.paths)
        )


def _stamps(paths: Sequence[str]) -> NDArray[np.int64]:
    stamps = np.full((len(paths), 2), -1, np.int64)
    for row, path in enumerate(paths):
        try:
            status = os.stat(path)  # noqa: PTH116 - a thousand of them
        except OSError:
            continue
        stamps[row] = status.st_mtime_ns, status.st_size
    return stamps


def kept_listing(
    work: Path | None, inputs: Sequence[str], make: Callable[[], tuple[Listing, Watched]]
) -> Listing:
    """Return the listing that was kept for these inputs, or make and keep it.

    ``inputs`` are kind, absolute paths and options of the source. A listing that is another than
    the one that was kept has a note.
    """
    if work is None:
        return make()[0]
    text = json.dumps([_VERSION, *inputs])
    path = work / f"listing-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
    kept = _read(path)
    if kept is not None and kept[1].is_fresh():
        return kept[0]
    listing, watched = make()
    if len(listing.key_of) >= _WORTH_KEEPING:
        work.mkdir(parents=True, exist_ok=True)
        _write(path, listing, watched)
        # What is in memory can go.
        written = _read(path)
        if written is not None:
            listing = written[0]
        del written, watched
    if kept is None or (kept[0].digest, kept[0].times) == (listing.digest, listing.times):
        return listing
    then, now = len(kept[0].key_of), len(listing.key_of)
    note = f"`{printable(inputs[1])}` changed since it was listed: {then:,} images then, {now:,}"
    note += " now; what was made of the former is not used again"
    return replace(listing, notes=(*listing.notes, note))


def _write(path: Path, listing: Listing, watched: Watched) -> None:
    names = listing.names
    tensors = {
        "key_of": listing.key_of,
        "starts": names.starts,
        "text": names.text,
        "ends": names.ends,
        "spans": listing.spans,
        "stamps": watched.stamps,
    }
    lines = listing.lines
    facts = {
        "name": listing.name,
        "keys": listing.keys,
        "lines": None if lines is None else [[line.key, *line.names] for line in lines],
        "is_numbered": listing.is_numbered,
        "notes": listing.notes,
        "digest": listing.digest,
        "times": listing.times,
        "folders": names.folders,
        "watched": watched.paths,
        "started": watched.started,
    }
    # Names that are not UTF-8 are lone surrogates, which JSON escapes.
    write_small_file(path, save(tensors, {"facts": json.dumps(facts)}), force=True)


def _read(path: Path) -> tuple[Listing, Watched] | None:
    """Read a kept listing; None if there is none that can be read, since it is made again.

    Arrays stay in the file and are mapped: the processes of a machine share what they look at.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A few names would bring megabytes into the memory of a process.
            mapped.madvise(mmap.MADV_NOHUGEPAGE)
        start = 8 + int.from_bytes(mapped[:8], "little")
        header: dict[str, Any] = json.loads(mapped[8:start])
        facts = json.loads(header.pop("__metadata__")["facts"])
        arrays: dict[str, NDArray[Any]] = {}
        for name, tensor in header.items():
            shape, dtype = tensor["shape"], np.dtype(_DTYPES[tensor["dtype"]])
            offset = start + tensor["data_offsets"][0]
            arrays[name] = np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)
        lines = facts["lines"]
        listing = Listing(
            facts["name"],
            facts["keys"],
            None if lines is None else [ClassLine(key, tuple(names)) for key, *names in lines],
            is_numbered=facts["is_numbered"],
            notes=tuple(facts["notes"]),
            key_of=arrays["key_of"],
            names=Names(tuple(facts["folders"]), arrays["starts"], arrays["text"], arrays["ends"]),
            spans=arrays["spans"],
            digest=facts["digest"],
            times=facts["times"],
        )
        return listing, Watched(facts["watched"], arrays["stamps"], facts["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
