"""Listing a folder with one folder per class, so that every entry is accounted for.

The rule of torchvision's ``ImageFolder``, which ignores what it does not know, made explicit:

- A folder in the root is a class; its images may lie deeper, in any folder below. Folders are read
  in the order of their paths and files in the order of their names, by code points. Links to
  folders are followed, since class folders are often links into a larger data set, but no folder
  is read twice: a link to a folder that is part of the source already is refused.
- A file is an image if its name has an extension of an image. Its content says of which type:
  PNG, JPEG and WebP are read whatever their names say, every other type is refused by name, since
  leaving it out would make another data set.
- Hidden entries (``.ipynb_checkpoints``, ``._cat.jpg``, ``__MACOSX``, ...) are skipped with
  everything below them, and so are files beside the images that hold text or metadata
  (``README``, ``n01443537_boxes.txt``, ``Thumbs.db``). Both are counted in a note.
- Folders in the root that are called ``train``, ``val`` or ``test`` are parts of a data set and not
  its classes: two of them, or nothing else, is refused.
- Anything else stops with its name: an image outside the class folders, a file of no known kind,
  a class without an image, a pipe, a link to nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hellofmt.archive.storage.local_files import open_to_read
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.content import HEAD_BYTES, IMAGE_EXTENSIONS
from hellofmt.sources.listing import Listing, Picture, some
from hellofmt.sources.notes import Notes, extension_of, is_hidden

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["list_folder"]

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


def list_folder(root: Path) -> Listing:
    """List the images of a folder with one folder per class; see the module for the rule.

    Args:
        root: the folder.

    Returns:
        The listing, its pictures sorted by class and path.

    Raises:
        UserInputError: E_DATA: no class folder, a class without an image, an image outside the
            class folders, a file that is neither an image nor a known sidecar, a folder that is
            met twice, or an entry that is neither file nor folder.
        OSError: something cannot be read.
    """
    notes, strays = Notes(), list[str]()
    seen = {_identity(parent): str(parent) for parent in root.resolve().parents}
    _enter(str(root), seen)
    keys: list[str] = []
    for entry in _entries(str(root)):
        if is_hidden(entry.name):
            notes.hidden.append(entry.path)
        elif entry.is_dir():
            keys.append(entry.name)
        elif _is_image(entry, notes):
            strays.append(entry.path)
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
    pictures: list[Picture] = []
    empty: list[str] = []
    for key in keys:
        before = len(pictures) + len(notes.foreign)
        pictures += _list_class(root, key, notes, seen)
        if len(pictures) + len(notes.foreign) == before:
            empty.append(f"{root / key}")
    notes.refuse_foreign()
    if empty:
        raise UserInputError.make(
            "E_DATA", f"class folders without an image: {len(empty):,}: {some(empty)}"
        )
    name = printable(root.resolve().name) or "images"
    return Listing(name, pictures, keys, notes=notes.lines())


def _list_class(root: Path, key: str, notes: Notes, seen: dict[Hashable, str]) -> list[Picture]:
    """The pictures of a class folder, in ``ImageFolder``'s order."""
    folders: list[tuple[str, list[str]]] = []
    whole = root.resolve()
    top = f"{root / key}"
    todo = [top]
    while todo:
        folder = todo.pop()
        _enter(folder, seen)
        files: list[str] = []
        for entry in _entries(folder):
            if is_hidden(entry.name):
                notes.hidden.append(entry.path)
            elif entry.is_dir():
                todo.append(entry.path)
            elif _is_image(entry, notes):
                files.append(entry.path)
                # Links into another set are how subsets are made; these add nothing new.
                if entry.is_symlink() and Path(entry.path).resolve().is_relative_to(whole):
                    notes.twice.append(entry.path)
        folders.append((folder, files))
    pictures: list[Picture] = []
    for folder, files in sorted(folders):
        for path in files:
            pictures += notes.picture(key, path, extension_of(path), _head(path), path)
            if folder != top:
                notes.deep.append(path)
    return pictures


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry[str], notes: Notes) -> bool:
    """Whether a file is called an image; what else it is goes into the notes.

    Raises:
        UserInputError: it is no regular file (E_DATA).
    """
    # A pipe would be waited for, and a device may never end.
    if not entry.is_file():
        raise UserInputError.make("E_DATA", f"`{printable(entry.path)}`: no regular file")
    extension = extension_of(entry.name)
    if extension in IMAGE_EXTENSIONS:
        return True
    stem = entry.name.split(".")[0].lower()
    is_sidecar = extension in _SIDECAR_EXTENSIONS or stem in _SIDECAR_NAMES
    (notes.sidecars if is_sidecar else notes.foreign).append(entry.path)
    return False


def _head(path: str) -> bytes:
    """The first bytes of a file."""
    fd = open_to_read(path)
    try:
        return os.read(fd, HEAD_BYTES)
    finally:
        os.close(fd)


def _identity(folder: str | Path) -> Hashable:
    """The same for all names of one folder."""
    status = Path(folder).stat()
    # Some file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _enter(folder: str, seen: dict[Hashable, str]) -> None:
    """Refuse a folder whose images would count twice."""
    identity = _identity(folder)
    if identity in seen:
        raise UserInputError.make(
            "E_DATA",
            f"`{printable(seen[identity])}` and `{printable(folder)}` are the same folder: its"
            " images would count twice; expected no link from one part of the source to another",
        )
    seen[identity] = folder
