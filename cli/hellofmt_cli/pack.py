"""``hello pack``: images on disk into one archive; or an adapter of PEFT into a projector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hellofmt.archive import open_archive, read_class_lines, shard_path
from hellofmt.errors import HelloIOError, TrustError, shown_path
from hellofmt_cli.console import console
from hellofmt_cli.options import ViewOptions, command, json_option, limit_option, limits
from hellofmt_cli.output import count, echo_json, echo_page, size
from hellofmt_cli.pack_options import adapter_options, file_options, pack_view_options
from hellofmt_cli.text_options import text_options

if TYPE_CHECKING:
    from pathlib import Path

    from hellofmt_cli.pack_options import AdapterOptions, FileOptions
    from hellofmt_cli.text_options import TextOptions


@command("pack", has_config=True)
@click.argument("source", nargs=-1)
@file_options
@text_options
@click.option("--method", help="How the images were made.")
@pack_view_options
@adapter_options
@limit_option
@json_option
def pack(
    source: tuple[str, ...],
    files: FileOptions,
    texts: TextOptions,
    method: str | None,
    views: ViewOptions,
    adapter: AdapterOptions,
    as_json: bool,
) -> None:
    """Pack the images of SOURCE into an archive.

    SOURCE is a folder with one folder per class (torchvision's ImageFolder, the output of RDED and
    SRe2L), one or more WebDataset shards (.tar, with a .cls number beside each image), or another
    archive. Bytes are kept exactly; images that are damaged or outside their profile are refused by
    name, all of them at once, or, if damaged, left out with --skip-unreadable. Hidden entries and
    text files beside the images are skipped and counted; anything else that is not an image in PNG,
    JPEG or WebP is refused by name. One class is enough here; training needs two.

    Folders get their labels from --classes or the projector, by name; or, if they are numbers
    and none is a key of the list, as places in the list. Without a list they are classes in the
    order of their names, as torchvision has them, 10 before 2, which is said.

    Without --projector the archive has hard labels only. Its views then are random crops of 8 to
    100 % of the area and flips, not mixed, as large as the images but at most 224 pixels.

    Without SOURCE, the label functions of all --projector make one archive; they need the same base
    and classes. `hello train --label-function NAME` chooses.

    With --adapter, --base and --classes, and without SOURCE, the archive is a projector: the base's
    image tower as PEFT adapted it, with the zero-shot head of the class names. Images are joined to
    it by `hello pack SOURCE --projector`.

    \b
    hello pack images/ -o x.hello
    hello pack images/ --projector labels.hello --reencode jpeg -o x.hello
    """  # noqa: D301 - click wants the character
    if (adapter.adapter is None) == (not (source or files.projectors)):
        raise click.UsageError("expected SOURCE, --projector, or --adapter alone")
    changes = views.changes()
    if views.view_size is not None:
        changes["size"] = views.view_size
    classes = None
    if files.classes is not None:
        classes = read_class_lines(files.classes, say=console.say)
    if files.max_side is not None and files.reencode is None:
        raise click.UsageError("--max-side needs --reencode: bytes are kept otherwise")
    if adapter.adapter is not None:
        if adapter.base is None or classes is None:
            raise click.UsageError("--adapter needs --base and --classes")
        if files.shards is not None or files.belongs_to is not None:
            raise click.UsageError("--adapter makes a projector; it has no images to pack")
        with console.stage("loading PyTorch"):
            from hellofmt_cli.pack_adapter import pack_adapter
        archive_id = pack_adapter(
            adapter,
            texts.read(method),
            files.output,
            classes=classes,
            views=changes,
            force=files.force,
        )
    else:
        from hellofmt.sources import pack_archive

        with console.stage("pack", "image") as on_image:
            archive_id = pack_archive(
                source or None,
                files.output,
                projector=files.projector,
                belongs_to=files.belongs_to,
                ordered=files.ordered,
                classes=classes,
                views=changes,
                texts=texts.read(method),
                reencode=files.reencode,
                max_side=files.max_side,
                skips_unreadable=files.skip_unreadable,
                layout=files.layout,
                shards=files.shards,
                force=files.force,
                limits=limits(),
                progress=on_image,
                say=console.warn,
            )
    _report(files.output, archive_id, files.shards, as_json=as_json)


def _report(output: str, archive_id: str, shards: int | None, *, as_json: bool) -> None:
    """Read the new archive and say what it holds."""
    files: str | list[Path] = output
    if shards is not None:
        files = [shard_path(output, index, shards) for index in range(shards)]
    try:
        with open_archive(files, expect=archive_id, limits=limits()) as file:
            images, total, number = len(file), file.size_bytes, file.manifest.classes
    except TrustError as error:
        # Nobody has pinned it but this run.
        text = f"`{shown_path(output)}` was replaced by another program once it was written"
        advice = "give every run a name of its own"
        raise HelloIOError.make("E_TARGET", text, advice=advice) from error
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
