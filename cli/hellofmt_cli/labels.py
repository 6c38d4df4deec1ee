"""``hello labels``: the labels of a finite schedule as files, for trainers that know only files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hellofmt.archive import open_archive
from hellofmt.errors import UserInputError
from hellofmt.loading import FORMS, HelloDataset, write_labels
from hellofmt_cli.making import load_teacher_of, teacher_options
from hellofmt_cli.output import (
    Choice,
    count,
    device_option,
    echo_json,
    echo_page,
    json_option,
    limit_option,
    limits,
    progress,
    reading,
    size,
)

if TYPE_CHECKING:
    from typing import Literal


__all__ = ["labels"]


@click.command("labels")
@click.argument("file")
@click.option("--epochs", type=click.IntRange(1), required=True, help="Passes to label.")
@click.option("-o", "--out", required=True, metavar="DIR", help="New directory to write.")
@click.option(
    "--form", type=Choice(FORMS), default="safetensors", show_default=True, help="See above."
)
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Classes kept.")
@click.option(
    "--teacher",
    metavar="TEACHER",
    help="Write this teacher's labels instead of the archive's; as for `hello fit`.",
)
@teacher_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the views.")
@click.option("--temperature", type=float, help="T of the soft labels, instead of the archive's.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--base", metavar="BASE", help="Base encoder, for an archive that needs one.")
@click.option("--expect", metavar="ID", help="The id the archive must have.")
@device_option("Where labels are made.")
@limit_option
@json_option
def labels(
    file: str,
    epochs: int,
    out: str,
    form: Literal["safetensors", "topk", "fkd", "embeddings", "pruned"],
    k: int,
    teacher: str | None,
    seed: int,
    temperature: float | None,
    batch_size: int,
    base: str | None,
    expect: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the soft labels of FILE's views for epochs 0 to EPOCHS - 1 into a new directory.

    \b
    safetensors  softmax of every view, float16, and the view's parameters
    topk         the K largest probabilities, 4 + 4 K bytes a view (TinyViT)
    pruned       the same in 4 K bytes, of few epochs that a long run sees over and over (LPQLD)
    fkd          batch files with the entries of FKD and SRe2L; no pickles
    embeddings   float16 embeddings: reading costs the head, at any temperature

    A training run does not need this: the archive makes the same labels as it goes. `hello train
    --labels DIR` and HelloDataset(..., stored=DIR) read it back. TEACHER is what `hello distill`
    takes, or a directory of hellofmt.teacher.write_teacher; FILE needs no label function then, but
    --temperature if it has none.
    """  # noqa: D301 - click wants the character
    reading(file)
    with open_archive(file, expect=expect, limits=limits()) as archive:
        if teacher is not None and form == "embeddings":
            text = "`--form embeddings` of a teacher, which has none; expected another form"
            raise UserInputError.make("E_OPTION", text)
        function = None
        if teacher is not None:
            keys, side = list(archive.classes.keys), archive.manifest.views.size
            function = load_teacher_of(teacher, keys, side, options).to(options["device"])
        dataset = HelloDataset(
            archive,
            seed=seed,
            temperature=temperature,
            base=base,
            device=options["device"],
            label_function=function,
        )
        with progress("labels", "label") as callback:
            written = write_labels(
                dataset,
                out,
                epochs=epochs,
                form=form,
                k=k,
                batch_size=batch_size,
                progress=callback,
            )
        made = epochs * len(dataset)
        if as_json:
            echo_json(
                {
                    "schema": "hello.labels/1",
                    "id": archive.id,
                    "directory": out,
                    "form": form,
                    "labels": made,
                    "bytes": written,
                    "archive_bytes": archive.size_bytes,
                    "kernel": dataset.label_source().kernel,
                }
            )
            return
    echo_page(
        [
            ("labels", f"{count(made, 'view')} of {count(epochs, 'epoch')}, as {form}"),
            ("written", f"{size(written)}, in {out}"),
            ("archive", f"{size(archive.size_bytes)}, for any number of epochs"),
        ]
    )
