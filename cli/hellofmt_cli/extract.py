"""``hello extract``: a verified archive as a directory, in the form that another program reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hellofmt.archive import extract_archive, open_archive, verify_archive
from hellofmt.errors import UserInputError, shown_path, target_exists
from hellofmt_cli.console import console
from hellofmt_cli.options import (
    Choice,
    command,
    expect_option,
    json_option,
    label_function_option,
    limit_option,
    limits,
)
from hellofmt_cli.output import count, echo_json, echo_text, reading, size

if TYPE_CHECKING:
    from hellofmt.archive import PlainForm
    from hellofmt.projector import MhaFix


@command("extract")
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
    "webdataset's tar files.",
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
    form: PlainForm,
    peft: bool,
    base: str | None,
    label_function: str | None,
    peft_mha_fix: MhaFix,
    as_json: bool,
) -> None:
    """Unpack FILE into the new DIRECTORY, after verifying all of it.

    The images land in DIRECTORY/images/<class number>/ and the sections, decompressed, in
    DIRECTORY/__hello__/; those of a set of shards below DIRECTORY/shard-00000/ and so on. Images of
    a packed archive come as PNG.

    With --as imagefolder, DIRECTORY holds a folder of images per class, named by its key, which
    torchvision's ImageFolder and Hugging Face's imagefolder read; folders begin with the class
    number where the keys alone would sort otherwise or are no file names. With --as webdataset it
    holds images-000000.tar and so on: beside each image its class number (.cls) and the names of
    its class (.txt). Both add classes.txt, which `hello pack --classes` takes. Readers of folders
    count the folders they find, so a class without images is reported.

    With --peft, DIRECTORY holds adapter_config.json and adapter_model.safetensors, which PEFT loads
    onto the open_clip model. The head of the projector is not part of an adapter.

    \b
    hello extract x.hello folder
    hello extract x.hello folder --as imagefolder
    """  # noqa: D301 - click wants the character
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
        console.stage("extract", "image") as callback,
    ):
        extract_archive(archive, directory, form=form, progress=callback, say=console.warn)
    _report(verified.id, directory, as_json=as_json)


def _report(archive_id: str, directory: str, *, as_json: bool) -> None:
    sizes = [path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()]
    if as_json:
        document = {"schema": "hello.extract/1", "id": archive_id, "directory": directory}
        echo_json({**document, "files": len(sizes), "bytes": sum(sizes)})
    else:
        echo_text(f"{count(len(sizes), 'file')}, {size(sum(sizes))}, in {shown_path(directory)}")
