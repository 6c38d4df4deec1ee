"""An archive as plain files: its members, an image folder, or webdataset's tar files.

Never ``tarfile.extractall``: names are computed from the index and the classes, not read from
headers, so a file cannot name a place outside. Files are opened with ``O_CREAT | O_EXCL`` in a
private directory, which gets its name only when it is complete (``new_directory``). An existing
target is refused; there is no option to merge or replace.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Literal

from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.parallel import map_ordered
from hellofmt.archive.storage.local_files import free_bytes, new_directory, open_new
from hellofmt.errors import HelloIOError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from hellofmt.archive.read.archive import Archive

PlainForm = Literal["members", "imagefolder", "webdataset"]
"""What an archive can be written as."""

# What a file of one byte takes on most file systems.
_BLOCK_BYTES: Final = 4096
# Images read at once, which of a URL is few requests.
_BATCH: Final = 16
# Most of one tar file, and about its size: what webdataset's authors suggest.
_SHARD_IMAGES: Final = 10_000
_SHARD_BYTES: Final = 1 << 30

# Letters that every file system keeps apart and none takes for something else.
_SAFE_NAME: Final = re.compile(r"\w(?:[\w +.-]{0,98}[\w+-])?", re.ASCII)
# Windows gives these to devices, with any extension.
_DEVICES: Final = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


def extract_archive(
    archive: Archive,
    directory: str | os.PathLike[str],
    *,
    form: PlainForm = "members",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Write an archive, one file or a set, as plain files into a new directory.

    Every byte is verified when it is read. Images of a packed archive are written as PNG.

    - ``members``: ``images/<class number>/<row>.<ext>`` and, decompressed, ``__hello__/<section>``;
      of a set each file below ``shard-00000`` and so on.
    - ``imagefolder``: one folder per class, as torchvision and Hugging Face read it. Folders bear
      the keys of the classes where these are file names on every system that sort in label order;
      else each begins with the number of its class.
    - ``webdataset``: tar files of webdataset's own writer, ``images-000000.tar`` and so on; beside
      each image its class number (``.cls``) and the names of its class (``.txt``).

    The last two also have ``classes.txt``, a class a line in label order: key, TAB, names.

    Args:
        archive: an open archive.
        directory: the new directory, in one that exists.
        form: what to write.
        progress: called with images done and in all.
        say: called with a line for each thing that the form cannot say as the archive does.

    Raises:
        HelloIOError: the directory exists (E_TARGET), or the disk has too little space (E_NOSPACE).
        UserInputError: there are no images, which the form needs (E_OPTION).
        HelloError: the archive changed, or could not be read; see ``Archive.read_image``.
        OSError: a file cannot be written. Nothing is left behind.

    Example:
        >>> import hellofmt
        >>> with hellofmt.open("photos.hello") as archive:
        ...     extract_archive(archive, "extracted", form="imagefolder")
        >>> len(hellofmt.sources.open_source("extracted"))
        60
    """
    if form != "members" and not len(archive):
        raise UserInputError.make("E_OPTION", f"no images to write as {form}")
    _check_space(archive, Path(directory).absolute().parent, form)
    say = say or (lambda _line: None)
    index = archive.index
    if form != "members" and index is not None and index.columns:
        say(f"further columns of the index are left out: {', '.join(index.columns)}")
    write = {"members": _members, "imagefolder": _image_folder, "webdataset": _tar_files}[form]
    with new_directory(directory) as folder:
        write(folder, archive, progress or (lambda _done, _total: None), say)


def _members(
    folder: Path, archive: Archive, step: Callable[[int, int], None], _say: Callable[[str], None]
) -> None:
    before = 0
    for number, part in enumerate(archive.shards):
        root = folder if part is archive else folder / f"shard-{number:05d}"
        (root / "__hello__").mkdir(parents=True)
        _write(root / "__hello__/manifest", part.manifest_bytes)
        _write(root / "__hello__/id", f"{part.id.removeprefix('sha256:')}\n".encode())
        for section in part.manifest.sections:
            if section.name != "pixels":
                _write(root / "__hello__" / section.name, part.section(section.name))
        names = map(part.image_name, range(len(part)))
        done = before
        _write_images(root, names, part, lambda row, done=done: step(done + row, len(archive)))
        before += len(part)


def _image_folder(
    folder: Path, archive: Archive, step: Callable[[int, int], None], say: Callable[[str], None]
) -> None:
    labels = _labels(archive)
    folders = _class_folders(archive.classes.keys, say)
    _write(folder / "classes.txt", archive.section("classes"))
    names = (
        f"{folders[label]}/{PurePosixPath(archive.image_name(row)).name}"
        for row, label in enumerate(labels)
    )
    _write_images(folder, names, archive, lambda done: step(done, len(archive)))
    empty = sorted(set(range(len(folders))) - set(labels))
    if empty:
        shown = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        say(
            f"classes without images: {len(empty)} ({shown}); a reader that numbers the folders it "
            "finds gives later classes lower numbers"
        )


def _tar_files(
    folder: Path, archive: Archive, step: Callable[[int, int], None], _say: Callable[[str], None]
) -> None:
    # Loads torch, which the other forms do not need.
    from webdataset.writer import ShardWriter

    _write(folder / "classes.txt", archive.section("classes"))
    labels = _labels(archive)
    names = [", ".join(names) for names in archive.classes.names]
    # webdataset formats the pattern, and opens an absolute path as a plain file.
    pattern = str(folder).replace("%", "%%") + "/images-%06d.tar"
    with (
        contextlib.closing(_images(archive)) as images,
        # Without the time of writing, the same archive gives the same bytes.
        ShardWriter(pattern, _SHARD_IMAGES, _SHARD_BYTES, verbose=0, mtime=0) as shards,
    ):
        for row, data in enumerate(images):
            key, _, extension = archive.image_name(row).removeprefix("images/").rpartition(".")
            label = labels[row]
            shards.write({"__key__": key, extension: data, "cls": label, "txt": names[label]})
            step(row + 1, len(archive))


def _labels(archive: Archive) -> list[int]:
    index = archive.index
    return [] if index is None else index.label.tolist()


def _images(archive: Archive) -> Generator[bytes]:
    """Yield every image as a file; some are read or encoded ahead in threads."""
    starts = range(0, len(archive), _BATCH)

    def read(start: int) -> list[bytes]:
        return archive.plain_images(range(start, min(start + _BATCH, len(archive))))

    with contextlib.closing(map_ordered(read, starts)) as batches:
        for batch in batches:
            yield from batch


def _write_images(
    folder: Path, names: Iterable[str], archive: Archive, step: Callable[[int], None]
) -> None:
    parents: set[Path] = set()
    with contextlib.closing(_images(archive)) as images:
        for done, (name, data) in enumerate(zip(names, images, strict=True), 1):
            path = folder / name
            if path.parent not in parents:
                path.parent.mkdir(parents=True, exist_ok=True)
                parents.add(path.parent)
            _write(path, data)
            step(done)


def _class_folders(keys: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The folder of each class: names on every system, whose order is that of the labels."""
    unsafe = [key for key in keys if not _SAFE_NAME.fullmatch(key) or _DEVICES.fullmatch(key)]
    if unsafe:
        reason = f"`{printable(unsafe[0], 60)}` is no name of a folder on every system"
    elif len({key.lower() for key in keys}) < len(keys):
        reason = "some keys differ only in capitals"
    elif list(keys) != sorted(keys):
        reason = "the order of the keys is not that of the labels"
    else:
        return list(keys)
    say(f"folders are called by number and key, because {reason}")
    digits = max(4, len(str(len(keys) - 1)))
    words = (re.sub(r"[^\w.-]+", "_", key, flags=re.ASCII)[:60].rstrip(".") for key in keys)
    return [f"{k:0{digits}d}-{word}".rstrip("-") for k, word in enumerate(words)]


def _check_space(archive: Archive, parent: Path, form: PlainForm) -> None:
    """Refuse before writing rather than fill the disk: raw sections, images, a block for each."""
    free = free_bytes(parent)
    sections = archive.manifest.sections if form == "members" else []
    raw = sum(s.size if s.raw_size is UNSET else s.raw_size for s in sections)
    index = archive.index
    images = 0 if index is None else int(index.size.sum())
    need = raw + images + _BLOCK_BYTES * (len(sections) + len(archive))
    if need > free:
        raise HelloIOError.make("E_NOSPACE", f"needs {need:,} bytes, {free:,} are free")


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(open_new(path), "wb") as stream:
        stream.write(data)
