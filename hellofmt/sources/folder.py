"""Listing a folder with one folder per class, so that every entry is accounted for.

The rule of torchvision's ``ImageFolder``, which ignores what it does not know, made explicit:

- A folder in the root is a class; its images may lie deeper, in any folder below. Folders are read
  in the order of their paths and files in the order of their names, by code points. Links to
  folders are followed, since class folders are often links into a larger data set, but no folder
  is read twice: a link to a folder that is part of the source already is refused.
- A file is an image if its name has an extension of an image. Its content says of which type:
  PNG, JPEG and WebP are read whatever their names say, every other type is refused by name, since
  leaving it out would make another data set. Of at most 10,000 images, evenly spread, the first
  bytes are read while listing, so that what is refused is refused at once and as a whole; of more,
  the rest is found out when it is decoded.
- Hidden entries (``.ipynb_checkpoints``, ``._cat.jpg``, ``__MACOSX``, ...) are skipped with
  everything below them, and so are files beside the images that hold text or metadata
  (``README``, ``n01443537_boxes.txt``, ``Thumbs.db``). Both are counted in a note.
- Folders in the root that are called ``train``, ``val`` or ``test`` are parts of a data set and not
  its classes: two of them, or nothing else, is refused.
- Anything else stops with its name: an image outside the class folders, a file of no known kind,
  a class without an image, a pipe, a link to nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.errors import UserInputError, printable
from hellofmt.sources.content import IMAGE_EXTENSIONS, codec_of, extension_of, fact_of
from hellofmt.sources.files import read_head
from hellofmt.sources.kept import Watched
from hellofmt.sources.listing import Listing, Names, NamesBuilder, some
from hellofmt.sources.notes import Notes, is_hidden

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from numpy.typing import NDArray

_SNIFFED: Final = 10_000
_WATCHED: Final = 1_000
# Text and metadata, by extension and by name.
_TEXTS: Final = """
    txt md rst html htm pdf csv tsv json jsonl xml yaml yml toml ini cfg db log list lst py sh
    sha256 md5 bib
"""
_NAMES: Final = """
    readme license licence copying notice authors citation changelog manifest md5sums sha256sums
    checksums
"""
_PARTS: Final = "train training trainset val valid validation test testing testset"
_SPLITS: Final = frozenset(_PARTS.split())
_SIDECAR_EXTENSIONS: Final = frozenset(_TEXTS.split())
_SIDECAR_NAMES: Final = frozenset(_NAMES.split())


def list_folder(root: Path, *, skips_unreadable: bool = False) -> tuple[Listing, Watched]:
    """List the images of a folder with one folder per class; see the module for the rule.

    Images are sorted by class and path; ``Watched`` tells when the listing is out of date.
    """
    walk = _Walk(root)
    keys, strays = walk.classes()
    if not keys:
        raise UserInputError.make(
            "E_DATA", f"`{printable(root)}`: no class folder; expected one folder per class"
        )
    if strays:
        raise UserInputError.make(
            "E_DATA",
            f"images that lie in no class folder: {len(strays):,}, such as"
            f" `{printable(strays[0])}`; expected one folder per class",
        )
    splits = [key for key in keys if key.lower() in _SPLITS]
    if len(splits) > 1 or splits == keys:
        raise UserInputError.make(
            "E_DATA",
            f"`{printable(root)}` holds parts of a data set, not classes: {some(splits)}; expected"
            f" the folder of one of them, such as `{printable(root / splits[-1])}`",
        )
    counts: list[int] = []
    empty: list[str] = []
    for key in keys:
        foreign = walk.notes.foreign.count
        counts.append(walk.add_class(key))
        if not counts[-1] and foreign == walk.notes.foreign.count:
            empty.append(f"{root / key}")
    names = walk.names()
    if not skips_unreadable:
        _sniff(names, walk.notes)
        walk.notes.refuse_foreign()
    if empty:
        raise UserInputError.make(
            "E_DATA", f"class folders without an image: {len(empty):,}: {some(empty)}"
        )
    listing = Listing(
        printable(root.resolve().name) or "images",
        keys,
        notes=walk.notes.lines(),
        key_of=np.repeat(np.arange(len(keys), dtype=np.int32), counts),
        names=names,
        digest=walk.digest(names),
        times=walk.times(),
    )
    return listing, walk.watched(names)


class _Walk:
    """One pass over a folder: names, and sizes and times of change for the digest."""

    def __init__(self, root: Path) -> None:
        self.notes = Notes()
        self._root, self._whole = str(root), os.path.realpath(root)
        self._seen = {_identity(parent): str(parent) for parent in root.resolve().parents}
        self._builder = NamesBuilder()
        self._sizes, self._times = hashlib.sha256(), hashlib.sha256()
        self._folders: list[str] = []
        self._real: dict[str, str] = {}
        self._started = time.time_ns()
        self._enter(self._root)

    def classes(self) -> tuple[list[str], list[str]]:
        """Class folders, sorted, and images beside them."""
        keys: list[str] = []
        strays: list[str] = []
        with os.scandir(self._root) as entries:
            for entry in sorted(entries, key=_name):
                if is_hidden(entry.name):
                    self.notes.hidden.add(entry.path)
                elif entry.is_dir():
                    keys.append(entry.name)
                elif self._is_image(entry):
                    strays.append(entry.path)
        return keys, strays

    def add_class(self, key: str) -> int:
        """Add a class folder in ``ImageFolder``'s order; return its number of images."""
        folders: list[tuple[str, list[str], NDArray[np.int64]]] = []
        top = f"{self._root}/{key}"
        todo = [top]
        while todo:
            folder = todo.pop()
            self._enter(folder)
            files: list[os.DirEntry[str]] = []
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=_name):
                    if is_hidden(entry.name):
                        self.notes.hidden.add(entry.path)
                    elif entry.is_dir():
                        todo.append(entry.path)
                    elif self._is_image(entry):
                        files.append(entry)
            stats = np.empty((len(files), 2), np.int64)
            for row, entry in enumerate(files):
                status = entry.stat()
                stats[row] = status.st_size, status.st_mtime_ns
                # Links into another set are how subsets are made; these add nothing new.
                if entry.is_symlink() and self._is_inside(entry.path):
                    self.notes.twice.add(entry.path)
            folders.append((folder, list(map(_name, files)), stats))
        count = 0
        for folder, names, stats in sorted(folders, key=lambda each: each[0]):
            if not names:
                continue
            self._builder.add(folder, names)
            self._sizes.update(stats[:, 0].tobytes())
            self._times.update(stats[:, 1].tobytes())
            count += len(names)
            if folder != top:
                self.notes.deep.add(f"{folder}/{names[0]}", len(names))
        return count

    def names(self) -> Names:
        """The images."""
        return self._builder.names()

    def digest(self, names: Names) -> str:
        """Digest of paths below the root and sizes."""
        digest = hashlib.sha256(
            b"\0".join(os.fsencode(folder[len(self._root) :]) for folder in names.folders)
        )
        for array in (names.starts, names.text, names.ends):
            digest.update(array.data)
        digest.update(self._sizes.digest())
        return digest.hexdigest()

    def times(self) -> str:
        """Digest of the times of change."""
        return self._times.hexdigest()

    def watched(self, names: Names) -> Watched:
        """Every folder, since its time changes with its entries, and some of the files."""
        step = max(1, len(names) // _WATCHED)
        files = [names.path(row) for row in range(0, len(names), step)]
        return Watched.of(self._folders + files, self._started)

    def _enter(self, folder: str) -> None:
        """Refuse a folder whose images would count twice."""
        identity = _identity(folder)
        if identity in self._seen:
            raise UserInputError.make(
                "E_DATA",
                f"`{printable(self._seen[identity])}` and `{printable(folder)}` are the same"
                " folder: its images would count twice; expected no link from one part of the"
                " source to another",
            )
        self._seen[identity] = folder
        self._folders.append(folder)

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is called an image; what else it is goes into the notes."""
        # A pipe would be waited for, and a device may never end.
        if not entry.is_file():
            raise UserInputError.make("E_DATA", f"`{printable(entry.path)}`: no regular file")
        extension = extension_of(entry.name)
        if extension in IMAGE_EXTENSIONS:
            return True
        stem = entry.name.split(".")[0].lower()
        if extension in _SIDECAR_EXTENSIONS or stem in _SIDECAR_NAMES:
            self.notes.sidecars.add(entry.path)
        else:
            self.notes.add_foreign(entry.path)
        return False

    def _is_inside(self, path: str) -> bool:
        """Whether a link leads to a file of the source itself."""
        folder, _, name = path.rpartition("/")
        target = os.path.join(folder, os.readlink(path))  # noqa: PTH115, PTH118
        if os.path.islink(target):  # noqa: PTH114
            target = os.path.realpath(target)
        folder, _, name = target.rpartition("/")
        if folder not in self._real:
            # A folder of links has many into few folders.
            self._real[folder] = os.path.realpath(folder)
        return f"{self._real[folder]}/{name}".startswith(f"{self._whole}/")


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _identity(folder: str | Path) -> Hashable:
    """The same for all names of one folder."""
    status = os.stat(folder)  # noqa: PTH116
    # Some file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _sniff(names: Names, notes: Notes) -> None:
    """Look for files that are called images and are none, in at most so many."""
    for row in range(0, len(names), -(-len(names) // _SNIFFED) or 1):
        path = names.path(row)
        head = read_head(path)
        if codec_of(head) is None:
            notes.add_foreign(path, fact_of(head))
