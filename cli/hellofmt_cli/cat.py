"""``hello cat``: one verified member to stdout."""

from __future__ import annotations

import sys
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import click

from hellofmt.archive import UNSET
from hellofmt.errors import UserInputError, did_you_mean, printable, shown_path
from hellofmt_cli.options import command, expect_option, limit_option
from hellofmt_cli.output import opened

if TYPE_CHECKING:
    from hellofmt.archive import Archive

_TEXTS: Final = frozenset({"card", "classes", "license", "record"})


@command("cat")
@click.argument("file")
@click.argument("member")
@expect_option
@limit_option
def cat(file: str, member: str, expect: str | None) -> None:
    """Write MEMBER of FILE to stdout, after its digest was checked.

    MEMBER is `manifest`, `id`, a section (`card` or `__hello__/card`; `hello ls` lists them) or an
    image by its name, `images/0003/000042.png`. Sections come decompressed; images of a packed
    archive come as PNG.

    On a terminal texts are shown with their control characters escaped, and binary members are
    refused: redirect them into a file.

    \b
    hello cat x.hello card
    hello cat x.hello images/0003/000042.png > image.png
    """  # noqa: D301 - click wants the character
    with opened(file, expect=expect) as archive:
        data, is_text = _read(archive, member)
    if sys.stdout.isatty():
        if not is_text:
            raise UserInputError.make(
                "E_OPTION", f"`{shown_path(member)}` is binary; redirect stdout into a file"
            )
        for line in data.decode("utf-8", "replace").splitlines():
            # No character needs more than the ten of \\UNNNNNNNN: nothing is cut.
            click.echo(printable(line, limit=10 * len(line) + 10))
        return
    click.echo(data, nl=False)


def _read(archive: Archive, member: str) -> tuple[bytes, bool]:
    """Bytes of a member, and whether they are text."""
    section = member.removeprefix("__hello__/")
    if section == "manifest":
        return archive.manifest_bytes, True
    if section == "id":
        return f"{archive.id.removeprefix('sha256:')}\n".encode(), True
    if archive.has_section(section):
        return archive.section(section), section in _TEXTS
    row = _find_image(archive, member)
    if row is None:
        raise UserInputError.make(
            "E_OPTION",
            f"no member `{shown_path(member)}`",
            advice=did_you_mean(member, _names(archive)) or "`hello ls` lists them",
        )
    return archive.plain_images([row])[0], False


def _names(archive: Archive) -> list[str]:
    """Names of everything but images, which nobody types by heart."""
    sections = (section.name for section in archive.manifest.sections)
    return [f"__hello__/{name}" for name in ("manifest", "id", *sections)]


def _find_image(archive: Archive, name: str) -> int | None:
    """Row of the image called ``name``, if there is one."""
    stem = PurePosixPath(name).stem
    # Names are computed from rows, so a name says where to look; only an equal one is a match.
    if not (stem.isascii() and stem.isdigit() and len(stem) < 20):
        return None
    shard = archive.manifest.shard
    row = int(stem) - (0 if shard is UNSET else shard.first)
    if not 0 <= row < len(archive) or archive.image_name(row) != name:
        return None
    return row
