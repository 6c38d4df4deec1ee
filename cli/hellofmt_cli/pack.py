"""``hello pack``: images on disk into one archive; or an adapter of PEFT into a projector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hellofmt.archive import decimal_string, open_archive, read_class_lines, read_file, shard_path
from hellofmt.errors import UserInputError, shown_path
from hellofmt.sources import pack_archive
from hellofmt_cli.output import (
    Choice,
    count,
    echo_json,
    echo_page,
    json_option,
    limit_option,
    limits,
    progress,
    say,
    size,
    warn,
)

if TYPE_CHECKING:
    from typing import Literal

    from hellofmt.archive import Storage
    from hellofmt.projector import MhaFix

__all__ = ["pack"]


@click.command("pack")
@click.argument("source", nargs=-1)
@click.option("-o", "--output", required=True, metavar="FILE", help="The archive to write.")
@click.option("--projector", metavar="FILE", help="Archive whose label function is copied.")
@click.option(
    "--classes",
    metavar="FILE",
    help="Class list in label order: `key TAB name` a line, or a published list.",
)
@click.option("--force", is_flag=True, help="Replace an existing archive.")
@click.option(
    "--reencode",
    type=Choice(["png", "jpeg", "webp"]),
    help="Convert images of another codec or outside the profile.",
)
@click.option(
    "--layout",
    type=Choice(["auto", "files", "packed"]),
    default="auto",
    show_default=True,
    help="One member per image, one array of all pixels, or the smaller of the two.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, 99_999),
    help="Spread the images over so many files, NAME-00000-of-00016.hello.",
)
@click.option("--name", help="Of the data set.  [default: name of SOURCE]")
@click.option("--version", default="1.0.0", show_default=True, help="Of the data set.")
@click.option("--license", help="SPDX expression.  [default: NOASSERTION]")
@click.option("--license-file", metavar="FILE", help="Text of the licence.")
@click.option("--card", metavar="FILE", help="Dataset card, Markdown.")
@click.option("--method", help="How the images were made.")
@click.option("--from", "sources", multiple=True, help="Data set the images come from.")
@click.option("--note", multiple=True, metavar="KEY=TEXT", help="Free text, kept as `x_KEY`.")
@click.option("--view-size", type=click.IntRange(1, 4096), help="Side of a view in pixels.")
@click.option(
    "--view-crop", nargs=2, type=click.FloatRange(0, 1, min_open=True), help="Area of crops."
)
@click.option("--view-flip", type=click.FloatRange(0, 1), help="Probability of a flip.")
@click.option("--view-mix", type=Choice(["none", "cutmix", "mixup"]), help="How views are mixed.")
@click.option("--adapter", metavar="DIR", help="Adapter of PEFT, instead of SOURCE.")
@click.option("--base", metavar="BASE", help="With --adapter: the open_clip model it adapts.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="With --adapter: `{}` stands for the class name.  [default: a photo of a {}.]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="With --adapter: default temperature of the labels.",
)
@click.option(
    "--storage",
    type=Choice(["float32", "float16", "bfloat16", "int8", "int4"]),
    default="float16",
    show_default=True,
    help="With --adapter: how its numbers are stored.",
)
@click.option(
    "--peft-mha-fix",
    type=Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="With --adapter: PEFT adds the delta of attention's out_proj twice (up to 0.21.2); keep "
    "what it did to the features.",
)
@limit_option
@json_option
def pack(
    source: tuple[str, ...],
    output: str,
    projector: str | None,
    classes: str | None,
    force: bool,
    reencode: Literal["png", "jpeg", "webp"] | None,
    layout: Literal["auto", "files", "packed"],
    shards: int | None,
    name: str | None,
    version: str,
    license: str | None,
    license_file: str | None,
    card: str | None,
    method: str | None,
    sources: tuple[str, ...],
    note: tuple[str, ...],
    view_size: int | None,
    view_crop: tuple[float, float] | None,
    view_flip: float | None,
    view_mix: str | None,
    adapter: str | None,
    base: str | None,
    prompts: tuple[str, ...],
    temperature: float,
    storage: Storage,
    peft_mha_fix: MhaFix,
    as_json: bool,
) -> None:
    """Pack the images of SOURCE into an archive.

    SOURCE is a folder with one folder per class (torchvision's ImageFolder, the output of RDED and
    SRe2L), one or more WebDataset shards (.tar, with a .cls number beside each image), or another
    archive. Bytes are kept exactly; an image outside its profile is refused by name. Hidden entries
    and text files beside the images are skipped and counted; anything else that is not an image in
    PNG, JPEG or WebP is refused by name. One class is enough here; training needs two.

    Folders get their labels from --classes or the projector, by name; or, if they are numbers
    and none is a key of the list, as places in the list. Without a list they are classes in the
    order of their names, as torchvision has them, 10 before 2, which is said.

    Without --projector the archive has hard labels only. Its views then are random crops of 8 to
    100 % of the area and flips, not mixed, as large as the images but at most 224 pixels.

    With --adapter, --base and --classes, and without SOURCE, the archive is a projector: the base's
    image tower as PEFT adapted it, with the zero-shot head of the class names. Images are joined to
    it by `hello pack SOURCE --projector`.
    """
    if (adapter is None) == (not source):
        raise click.UsageError("expected either SOURCE or --adapter")
    if adapter is not None:
        if base is None or classes is None:
            raise click.UsageError("--adapter needs --base and --classes")
        if projector is not None or shards is not None:
            raise click.UsageError("--adapter makes a projector; it has no images to pack")
        # Loads torch, which packing images does not need.
        from hellofmt_cli.pack_adapter import pack_adapter

        archive_id = pack_adapter(
            adapter,
            output,
            base=base,
            classes=read_class_lines(classes, say=say),
            prompts=prompts or ("a photo of a {}.",),
            temperature=temperature,
            storage=storage,
            mha_fix=peft_mha_fix,
            views=_views(view_size, view_crop, view_flip, view_mix),
            dataset={
                "name": name or Path(adapter).resolve().name,
                "version": version,
                "license": license or "NOASSERTION",
                "method": method or "peft",
                "sources": list(sources),
            },
            texts={"card": _text(card), "license": _text(license_file)},
            extras=dict(_note(text) for text in note),
            force=force,
        )
        _report(output, archive_id, shards, as_json=as_json)
        return
    with progress("pack", "image") as callback:
        archive_id = pack_archive(
            source,
            output,
            projector=projector,
            classes=None if classes is None else read_class_lines(classes, say=say),
            views=_views(view_size, view_crop, view_flip, view_mix),
            name=name,
            version=version,
            license=license,
            license_text=_text(license_file),
            card=_text(card),
            method=method,
            sources=sources or None,
            extras=dict(_note(text) for text in note),
            reencode=reencode,
            layout=layout,
            shards=shards,
            force=force,
            limits=limits(),
            progress=callback,
            say=warn,
        )
    _report(output, archive_id, shards, as_json=as_json)


def _report(output: str, archive_id: str, shards: int | None, *, as_json: bool) -> None:
    """Read the new archive and say what it holds."""
    files: str | list[Path] = output
    if shards is not None:
        files = [shard_path(output, index, shards) for index in range(shards)]
    with open_archive(files, expect=archive_id, limits=limits()) as file:
        images, total, number = len(file), file.size_bytes, file.manifest.classes
    if as_json:
        document: dict[str, Any] = {
            "schema": "hello.pack/1",
            "path": output,
            "id": archive_id,
            "bytes": total,
        }
        if shards is not None:
            document["shards"] = shards
        echo_json({**document, "images": images, "classes": number})
    else:
        what = f"{count(images, 'image')} of {count(number, 'class', 'classes')}, {size(total)}"
        if shards is not None:
            output = f"{shard_path(output, 0, shards)} ..."
            what += f" in {count(shards, 'shard')}"
        echo_page([("packed", shown_path(output)), ("holds", what), ("id", archive_id)])


def _views(
    view_size: int | None,
    crop: tuple[float, float] | None,
    flip: float | None,
    mix: str | None,
) -> dict[str, Any]:
    """Fields of the views that the user changes."""
    changes: dict[str, Any] = {}
    if view_size is not None:
        changes["size"] = view_size
    if crop is not None:
        if crop[0] > crop[1]:
            raise click.BadParameter("--view-crop: expected the smaller area first")
        changes["crop_scale"] = [decimal_string(bound) for bound in crop]
    if flip is not None:
        changes["flip"] = decimal_string(flip)
    if mix is not None:
        changes["mix"] = mix
        changes["mix_probability"] = "0.0" if mix == "none" else "1.0"
    return changes


def _text(path: str | None) -> str | None:
    """A whole UTF-8 text file."""
    if path is None:
        return None
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError:
        raise UserInputError.make("E_DATA", f"`{shown_path(path)}`: not UTF-8") from None


def _note(text: str) -> tuple[str, str]:
    """``KEY=TEXT`` as a free field of the manifest."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"--note: expected KEY=TEXT, got {shown_path(text)}")
    return (key if key.startswith("x_") else f"x_{key}"), value
