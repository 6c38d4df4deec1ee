"""``hello labels``: the labels of a finite schedule as files, for trainers that know only files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import click

from hellofmt.errors import UserInputError
from hellofmt_cli.console import console
from hellofmt_cli.fit_options import teacher_options
from hellofmt_cli.options import (
    Choice,
    base_option,
    batch_size_option,
    chosen_device,
    command,
    device_option,
    expect_option,
    grouped,
    ipc_option,
    json_option,
    label_dtype_option,
    label_function_option,
    limit_option,
    option,
    output_option,
    seed_option,
    shared,
)
from hellofmt_cli.output import count, echo_json, echo_page, opened, size
from hellofmt_cli.workers import worker_ends_in_one_line, workers_for

if TYPE_CHECKING:
    from hellofmt_cli.fit_options import TeacherOptions

FORM_NAMES: Final = ("safetensors", "topk", "fkd", "embeddings", "pruned")
"""``FORMS`` of stored labels, without their torch."""


@dataclass(frozen=True)
class LabelOptions:
    """The labels that are written."""

    HEADING: ClassVar[str] = "Label"

    epochs: int = option(type=click.IntRange(1), required=True, help="Number of passes to label.")
    output: str = shared(
        output_option("DIR", "Write the labels into this new directory."), "Output"
    )
    form: Literal["safetensors", "topk", "fkd", "embeddings", "pruned"] = option(
        type=Choice(FORM_NAMES), default="safetensors", help="Write files of this form; see above."
    )
    k: int = option(
        "-k",
        type=click.IntRange(1),
        default=10,
        help="Number of classes to keep of each label, by `topk` and `pruned`.",
    )
    teacher: str | None = option(
        metavar="TEACHER",
        help="Write this teacher's labels instead of the archive's; as for `hello fit`.",
    )
    seed: int = shared(seed_option("Seed of the views."), "Run")
    temperature: float | None = option(
        type=float, help="Temperature of the soft labels, instead of the archive's."
    )
    batch_size: int = shared(batch_size_option, "Run")
    base: str | None = shared(base_option, "Label function")
    label_function: str | None = shared(label_function_option, "Label function")
    label_dtype: str = shared(label_dtype_option, "Label function")
    ipc: int | None = shared(ipc_option, "Data")
    expect: str | None = shared(expect_option, "Data")
    workers: int | None = option(
        type=click.IntRange(0),
        help="Processes that read images and draw views; any number gives the same labels. "
        " [default: the cores but one, at most 16; 0 for a short run]",
    )
    device: str = shared(device_option("Device that labels are made on."), "Run")


@command("labels", has_config=True)
@click.argument("file")
@grouped("options", LabelOptions)
@teacher_options
@limit_option
@json_option
def labels(file: str, options: LabelOptions, teacher_input: TeacherOptions, as_json: bool) -> None:
    """Write the soft labels of FILE's views for epochs 0 to EPOCHS - 1 into a new directory.

    \b
    safetensors  softmax of every view, float16, and the view's parameters
    topk         the K largest probabilities, 4 + 4 K bytes a view (TinyViT)
    pruned       the same in 4 K bytes, of few epochs that a long run sees over and over (LPQLD)
    fkd          batch files with the entries of FKD and SRe2L; no pickles
    embeddings   float16 embeddings: reading costs the head, at any temperature

    A training run does not need this: the archive makes the same labels as it goes. `hello train
    --labels DIR` and HelloDataset(..., stored=DIR) read it back, for any number of epochs with
    --views-per-image EPOCHS. TEACHER is what `hello distill`
    takes, or a directory of hellofmt.teacher.write_teacher; FILE needs no label function then, but
    --temperature if it has none.

    \b
    hello labels x.hello --epochs 300 -o labels
    hello labels x.hello --epochs 30 --form pruned -k 5 -o labels
    """  # noqa: D301 - click wants the character
    if options.teacher is not None and options.form == "embeddings":
        text = "`--form embeddings` of a teacher, which has none; expected another form"
        raise UserInputError.make("E_OPTION", text)
    with console.stage("loading PyTorch"):
        import torch

        from hellofmt.loading import HelloDataset, write_labels
        from hellofmt_cli.inputs import load_teacher
    options = replace(options, device=chosen_device(options.device))
    epochs, form = options.epochs, options.form
    with opened(file, expect=options.expect) as archive:
        function = options.label_function
        if options.teacher is not None:
            if function is not None:
                raise UserInputError.make("E_OPTION", "--teacher replaces --label-function")
            if options.label_dtype != "float32":
                raise UserInputError.make("E_OPTION", "--label-dtype is not for --teacher")
            keys, side = list(archive.classes.keys), archive.manifest.views.size
            function = load_teacher(options.teacher, keys, side, teacher_input)
            function = function.to(options.device)
        rows = len(archive) if options.ipc is None else options.ipc * len(archive.classes.keys)
        workers = workers_for(epochs * rows, options.workers)
        with worker_ends_in_one_line(workers), console.stage("labels", "label") as on_label:
            dataset = HelloDataset(
                archive,
                seed=options.seed,
                temperature=options.temperature,
                base=options.base,
                device=options.device,
                dtype=getattr(torch, options.label_dtype),
                label_function=function,
                ipc=options.ipc,
            )
            written = write_labels(
                dataset,
                options.output,
                epochs=epochs,
                form=form,
                k=options.k,
                batch_size=options.batch_size,
                workers=workers,
                progress=on_label,
            )
        made = epochs * len(dataset)
        dtype = options.label_dtype if options.teacher is None else None
        if as_json:
            echo_json(
                {
                    "schema": "hello.labels/1",
                    "id": archive.id,
                    "directory": options.output,
                    "form": form,
                    "labels": made,
                    "bytes": written,
                    "archive_bytes": archive.size_bytes,
                    "kernel": dataset.label_source().kernel,
                    "label_dtype": dtype,
                }
            )
            return
    echo_page(
        [
            ("labels", f"{count(made, 'view')} of {count(epochs, 'epoch')}, as {form}"),
            *([] if dtype is None else [("made in", dtype)]),
            ("written", f"{size(written)}, in {options.output}"),
            ("archive", f"{size(archive.size_bytes)}, for any number of epochs"),
        ]
    )
