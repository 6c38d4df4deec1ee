"""``hello extract``: a verified archive as a directory.

Never ``tarfile.extractall``: names are computed from the index, not read from headers, so a file
cannot name a place outside. Everything goes into a new directory of mode 0700 beside the target,
each file opened with ``O_CREAT | O_EXCL``, and the directory gets its name only when
it is complete. An existing target is refused, there is no option to merge or replace.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hellofmt.archive import (
    UNSET,
    free_bytes,
    open_archive,
    open_new,
    temporary_path,
    verify_archive,
)
from hellofmt.errors import HelloIOError, shown_path, target_exists
from hellofmt_cli.cat import image_bytes
from hellofmt_cli.output import (
    Choice,
    count,
    echo_json,
    json_option,
    limit_option,
    limits,
    progress,
    reading,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hellofmt.archive import HelloFile
    from hellofmt.projector.peft import MhaFix

__all__ = ["extract"]


_BLOCK_BYTES: Final = 4096
"""What a file of one byte takes on most file systems."""


@click.command("extract")
@click.argument("file")
@click.argument("directory")
@click.option("--expect", metavar="ID", help="Refuse any archive but the one with this sha256 id.")
@click.option("--peft", is_flag=True, help="Write the deltas as an adapter of PEFT, nothing else.")
@click.option("--base", metavar="BASE", help="With --peft: base encoder of the archive.")
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
    peft: bool,
    base: str | None,
    peft_mha_fix: MhaFix,
    as_json: bool,
) -> None:
    """Unpack FILE into the new DIRECTORY, after verifying all of it.

    The images land in DIRECTORY/images/<class number>/, so torchvision's ImageFolder reads them;
    a class without images has no folder and would shift the numbers of those after it. Sections
    land in DIRECTORY/__hello__/, decompressed. Images of a packed archive come as PNG.

    With --peft, DIRECTORY holds adapter_config.json and adapter_model.safetensors, which PEFT loads
    onto the open_clip model. The head of the projector is not part of an adapter.
    """
    target = Path(directory)
    _refuse_existing(target)
    reading(file)
    with progress("verify", "image") as callback:
        verified = verify_archive(file, expect=expect, limits=limits(), progress=callback)
    if peft:
        with open_archive(file, expect=verified.id, limits=limits()) as archive:
            # Loads torch, which unpacking does not need.
            from hellofmt.projector import Projector

            Projector.from_file(archive, base).to_peft(directory, mha_fix=peft_mha_fix)
        written = sum(path.stat().st_size for path in target.iterdir())
        _report(verified.id, directory, 2, written, as_json=as_json)
        return
    # What was verified is what is read: the path could name another file by now.
    with (
        open_archive(file, expect=verified.id, limits=limits()) as archive,
        progress("extract", "file") as callback,
    ):
        files, written = _extract(archive, target, callback)
    _report(verified.id, directory, files, written, as_json=as_json)


def _report(archive_id: str, directory: str, files: int, written: int, *, as_json: bool) -> None:
    if as_json:
        document = {"schema": "hello.extract/1", "id": archive_id, "directory": directory}
        echo_json({**document, "files": files, "bytes": written})
    else:
        click.echo(f"{count(files, 'file')}, {size(written)}, in {shown_path(directory)}")


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise target_exists(target, can_replace=False)


def _members(archive: HelloFile) -> Iterator[tuple[str, bytes]]:
    """Every file to write: (relative name, bytes), verified."""
    yield "__hello__/manifest", archive.manifest_bytes
    yield "__hello__/id", f"{archive.id.removeprefix('sha256:')}\n".encode()
    for section in archive.manifest.sections:
        if section.name != "pixels":
            yield f"__hello__/{section.name}", archive.section(section.name)
    for row in range(len(archive)):
        yield archive.image_name(row), image_bytes(archive, row)


def _extract(
    archive: HelloFile, target: Path, callback: Callable[[int, int], None] | None
) -> tuple[int, int]:
    """Write all members; the number of files and bytes."""
    parent = target.absolute().parent
    _check_space(archive, parent)
    temporary = temporary_path(target.absolute())
    # Mode 0700: nobody else can put a link where a file is about to be made.
    temporary.mkdir(mode=0o700)
    total = len(archive.manifest.sections) + 2 + len(archive)
    files = written = 0
    try:
        made: set[Path] = set()
        for name, data in _members(archive):
            path = temporary / name
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            _write(path, data)
            files += 1
            written += len(data)
            if callback is not None:
                callback(files, total)
        # A rename would replace an empty directory that appeared meanwhile.
        _refuse_existing(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return files, written


def _check_space(archive: HelloFile, parent: Path) -> None:
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
