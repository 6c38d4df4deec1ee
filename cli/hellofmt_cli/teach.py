"""``hello teach``: a teacher for the user's own data, with its trajectory."""

from __future__ import annotations

from typing import Any

import click

from hellofmt.distillation import split_validation
from hellofmt.errors import shown_path
from hellofmt.runs import Meter, network_gflop
from hellofmt.sources import read_source
from hellofmt.teacher import CHECKPOINTS, TEACHER_RECIPE, build_network, train_trajectory
from hellofmt_cli.making import (
    advise,
    arithmetic,
    bar,
    cost_documents,
    cost_lines,
    data_options,
    measured_kind,
    read_data,
    steps_of,
)
from hellofmt_cli.output import echo_json, echo_page, json_option, say, warn

__all__ = ["teach"]


@click.command("teach")
@data_options
@click.option(
    "--arch",
    required=True,
    metavar="NAME",
    help="Network to train: `resnet10w32`, `resnet18-cifar`, `resnet18`, ...",
)
@click.option("--epochs", type=click.IntRange(1), required=True, help="Passes over DATA.")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder of the teacher.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--eval", "folder", metavar="DIR", help="Images to measure on; else 5 % of DATA.")
@click.option("--checkpoints", type=click.IntRange(1), default=CHECKPOINTS, show_default=True)
@json_option
def teach(
    data: tuple[str, ...],
    arch: str,
    epochs: int,
    output: str,
    batch_size: int,
    folder: str | None,
    checkpoints: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a teacher on DATA with hard labels and keep its trajectory.

    DATA is what `hello pack` reads, by the same rule, or torchvision:NAME:ROOT[:SPLIT]: a folder
    with one folder per class, WebDataset shards (.tar), or an archive.

    NAME is `cnn`, `resnet10w32`, a network of torchvision or timm (torchvision:NAME and timm:NAME
    where both have it; `resnet18-cifar` has a stem for images up to 64 px), or MODULE:FACTORY, a
    function of yours from the number of classes to a torch module.

    The folder gets evenly spaced checkpoints, since small distilled sets want weak teachers. A run
    that was killed continues from its last checkpoint.
    """
    read = read_data(data, options)
    if folder is None:
        train, held_out = split_validation(read.images, seed=options["seed"])
        kind = measured_kind(read.images, held_out)
    else:
        train, kind = read.images, f"images of {shown_path(folder)}"
        held_out = read_source(folder, read.views.size, classes=read.images.classes)
        for note in held_out.notes:
            warn(note)
    steps = steps_of(epochs, len(train), batch_size)
    say(f"teach: {arch}, {steps:,} steps of {batch_size} views")
    advise(arch, read.views.size)
    meter = Meter()
    with meter.stage("teach"), bar("teach") as on_step:
        done = train_trajectory(
            train,
            read.views,
            output,
            network=arch,
            steps=steps,
            held_out=held_out,
            checkpoints=checkpoints,
            batch_size=batch_size,
            seed=options["seed"],
            recipe=TEACHER_RECIPE,
            device=options["device"],
            build=build_network,
            bfloat16=options["bfloat16"],
            on_step=on_step,
        )
    network = build_network(arch, len(train.classes), read.views.size)
    meter.set_gflop(network_gflop(network, read.views.size, steps * batch_size, backward=True))
    if as_json:
        echo_json(
            {
                "schema": "hello.teach/1",
                "path": output,
                "network": arch,
                "steps": steps,
                "images": len(held_out),
                "bfloat16": options["bfloat16"],
                "cost": cost_documents(meter.costs),
                "checkpoints": [
                    {"file": c.file, "step": c.step, "accuracy": round(c.accuracy, 2)}
                    for c in done.checkpoints
                ],
            }
        )
        return
    rows: list[tuple[str, str] | None] = [("teacher", f"{shown_path(output)}, {arch}")]
    rows += [(f"step {c.step:,}", f"{c.accuracy:.1f} %") for c in done.checkpoints]
    rows.append(("trained in", arithmetic(options)))
    rows += cost_lines(meter.costs)
    echo_page([*rows, ("measured on", f"{len(held_out):,} {kind}")])
