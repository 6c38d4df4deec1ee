"""``hello extract``: a verified archive as a directory, in the form that another program reads.

Never ``tarfile.extractall``: names are computed from the index, not read from headers, so a file
cannot name a place outside. Files are opened with ``O_CREAT | O_EXCL`` in a private directory,
which gets its name only when it is complete. An existing target is refused; there is no option to
merge or replace.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hellofmt.archive import (
    UNSET,
    free_bytes,
    new_directory,
    open_archive,
    open_new,
    verify_archive,
)
from hellofmt.errors import HelloIOError, UserInputError, shown_path, target_exists
from hellofmt_cli.cat import image_bytes
from hellofmt_cli.console import console
from hellofmt_cli.options import (
    Choice,
    expect_option,
    json_option,
    label_function_option,
    limit_option,
    limits,
)
from hellofmt_cli.output import count, echo_json, reading, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from hellofmt.archive import Archive
    from hellofmt.projector import MhaFix

__all__ = ["extract"]


_BLOCK_BYTES: Final = 4096
"""What a file of one byte takes on most file systems."""

_SHARD_IMAGES: Final = 10_000
_SHARD_BYTES: Final = 1 << 30
"""Most of one tar file, and about its size: what webdataset's authors suggest."""


@click.command("extract")
@click.argument("file")
@click.argument("directory")
@expect_option
@click.option(
    "--as",
    "form",
    type=Choice(["members", "imagefolder", "webdataset"]),
    default="members",
    show_default=True,
    help="Write every member of the archive, or the images alone: one folder per class, or "
    "webdataset's tar files with the class number beside each image.",
)
@click.option("--peft", is_flag=True, help="Write the deltas as an adapter of PEFT, nothing else.")
@click.option("--base", metavar="BASE", help="With --peft: base encoder of the archive.")
@label_function_option
@click.option(
    "--peft-mha-fix",
    type=Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="With --peft: halve the deltas of attention's out_proj, which PEFT adds twice (up to "
    "0.21.2).",
)
@limit_option
@json_option
def extract(
    file: str,
    directory: str,
    expect: str | None,
    form: Literal["members", "imagefolder", "webdataset"],
    peft: bool,
    base: str | None,
    label_function: str | None,
    peft_mha_fix: MhaFix,
    as_json: bool,
) -> None:
    """Unpack FILE into the new DIRECTORY, after verifying all of it.

    The images land in DIRECTORY/images/<class number>/ and the sections, decompressed, in
    DIRECTORY/__hello__/. Images of a packed archive come as PNG.

    With --as imagefolder, DIRECTORY holds a folder of images per class, named by its number, which
    torchvision's ImageFolder and Hugging Face's imagefolder read. With --as webdataset it holds
    images-000000.tar and so on, each image with its class number in a .cls file. Both add
    classes.txt: number, key and names of each class. Readers of folders count the folders they
    find, so a class without images is reported.

    With --peft, DIRECTORY holds adapter_config.json and adapter_model.safetensors, which PEFT loads
    onto the open_clip model. The head of the projector is not part of an adapter.
    """
    if os.path.lexists(directory):
        raise target_exists(Path(directory), can_replace=False)
    if peft and form != "members":
        raise UserInputError.make("E_OPTION", "--peft writes an adapter, so it excludes --as")
    reading(file)
    with console.stage("verify", "image") as callback:
        verified = verify_archive(file, expect=expect, limits=limits(), progress=callback)
    if peft:
        with open_archive(file, expect=verified.id, limits=limits()) as archive:
            # Loads torch, which unpacking does not need.
            from hellofmt.projector import Projector

            made = Projector.from_file(archive, base, label_function=label_function)
            made.to_peft(directory, mha_fix=peft_mha_fix)
        _report(verified.id, directory, as_json=as_json)
        return
    # What was verified is what is read: the path could name another file by now.
    with (
        open_archive(file, expect=verified.id, limits=limits()) as archive,
        console.stage("extract", "file") as callback,
    ):
        if form != "members" and not len(archive):
            raise UserInputError.make("E_OPTION", f"--as {form}: the archive has no images")
        _check_space(archive, Path(directory).absolute().parent)
        with new_directory(directory) as folder:
            if form == "members":
                _write_all(folder, _members(archive), _count_members(archive), callback)
            else:
                _write_images(folder, archive, form, callback)
        empty = _classes_without_images(archive) if form == "imagefolder" else []
    if empty:
        console.warn(
            f"{count(len(empty), 'class', 'classes')} without images ({_some(empty)}): a reader "
            "that numbers the folders it finds gives later classes lower numbers"
        )
    _report(verified.id, directory, as_json=as_json)


def _report(archive_id: str, directory: str, *, as_json: bool) -> None:
    sizes = [path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()]
    if as_json:
        document = {"schema": "hello.extract/1", "id": archive_id, "directory": directory}
        echo_json({**document, "files": len(sizes), "bytes": sum(sizes)})
    else:
        click.echo(f"{count(len(sizes), 'file')}, {size(sum(sizes))}, in {shown_path(directory)}")


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _classes_without_images(archive: Archive) -> list[int]:
    index = archive.index
    present = set[int]() if index is None else {int(label) for label in index.label}
    return [number for number in range(len(archive.classes)) if number not in present]


def _members(archive: Archive) -> Iterator[tuple[str, bytes]]:
    """Every file to write: (relative name, bytes), verified."""
    yield "__hello__/manifest", archive.manifest_bytes
    yield "__hello__/id", f"{archive.id.removeprefix('sha256:')}\n".encode()
    for section in archive.manifest.sections:
        if section.name != "pixels":
            yield f"__hello__/{section.name}", archive.section(section.name)
    for row in range(len(archive)):
        yield archive.image_name(row), image_bytes(archive, row)


def _count_members(archive: Archive) -> int:
    sections = [s for s in archive.manifest.sections if s.name != "pixels"]
    return len(sections) + 2 + len(archive)


def _write_all(
    folder: Path,
    files: Iterator[tuple[str, bytes]],
    total: int,
    callback: Callable[[int, int], None],
) -> None:
    parents: set[Path] = set()
    for done, (name, data) in enumerate(files, 1):
        path = folder / name
        if path.parent not in parents:
            path.parent.mkdir(parents=True, exist_ok=True)
            parents.add(path.parent)
        _write(path, data)
        callback(done, total)


def _write_images(
    folder: Path,
    archive: Archive,
    form: Literal["members", "imagefolder", "webdataset"],
    callback: Callable[[int, int], None],
) -> None:
    """Images by class number, without anything of the archive's own."""
    classes = zip(archive.classes.keys, archive.classes.names, strict=True)
    lines = [f"{k}\t{key}\t{', '.join(names)}\n" for k, (key, names) in enumerate(classes)]
    _write(folder / "classes.txt", "".join(lines).encode())
    names = (archive.image_name(row).removeprefix("images/") for row in range(len(archive)))
    images = ((name, image_bytes(archive, row)) for row, name in enumerate(names))
    if form == "imagefolder":
        _write_all(folder, images, len(archive), callback)
        return
    # Loads torch, which the other forms do not need.
    from webdataset.writer import ShardWriter

    # webdataset formats the pattern, and opens an absolute path as a plain file.
    pattern = str(folder).replace("%", "%%") + "/images-%06d.tar"
    with ShardWriter(pattern, _SHARD_IMAGES, _SHARD_BYTES, verbose=0) as shards:
        for done, (name, data) in enumerate(images, 1):
            stem, _, extension = name.rpartition(".")
            number = stem.split("/")[0]
            shards.write({"__key__": stem, extension: data, "cls": int(number)})
            callback(done, len(archive))


def _check_space(archive: Archive, parent: Path) -> None:
    """Refuse before writing rather than fill the disk: raw sections, images, a block for each."""
    free = free_bytes(parent)
    sections = archive.manifest.sections
    raw = sum(s.size if s.raw_size is UNSET else s.raw_size for s in sections)
    index = archive.index
    images = 0 if index is None else int(index.size.sum())
    need = raw + images + _BLOCK_BYTES * (len(sections) + len(archive))
    if free is not None and need > free:
        raise HelloIOError.make("E_NOSPACE", f"needs {size(need)}, {size(free)} are free")


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(open_new(path), "wb") as stream:
        stream.write(data)
