"""``hello teach``: a teacher for the user's own data, with its trajectory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import click

from hellofmt.errors import shown_path
from hellofmt_cli.command_line import recorded_command
from hellofmt_cli.console import console
from hellofmt_cli.data import read_data, read_images, share_findings, steps_of
from hellofmt_cli.options import (
    batch_size_option,
    chosen_device,
    command,
    data_options,
    grouped,
    json_option,
    option,
    output_option,
    shared,
)
from hellofmt_cli.output import echo_json, echo_page
from hellofmt_cli.workers import worker_ends_in_one_line

if TYPE_CHECKING:
    from hellofmt_cli.options import DataOptions

DEFAULT_CHECKPOINTS = 9
"""``CHECKPOINTS`` of the trajectory, without its torch."""


@dataclass(frozen=True)
class TrainingOptions:
    """How the teacher is trained, and where it is written."""

    HEADING: ClassVar[str] = "Teacher"

    arch: str = option(
        required=True,
        metavar="NETWORK",
        help="Network to train: `resnet10w32`, `resnet18-cifar`, `resnet18`, ...",
    )
    epochs: int = option(type=click.IntRange(1), required=True, help="Number of passes over DATA.")
    batch_size: int = shared(batch_size_option)
    evaluation: str | None = option(
        "--eval",
        metavar="DATA",
        help="Images to measure on.  [default: 5 % of DATA, which are not trained on]",
    )
    checkpoints: int = option(
        type=click.IntRange(1),
        default=DEFAULT_CHECKPOINTS,
        help="Number of checkpoints to keep, evenly spaced.",
    )
    output: str = shared(output_option("DIR", "Write the teacher into this folder."), "Output")


@command("teach", has_config=True)
@data_options
@grouped("training", TrainingOptions)
@json_option
def teach(data: DataOptions, training: TrainingOptions, as_json: bool) -> None:
    """Train a teacher on DATA with hard labels and keep its trajectory.

    DATA is a folder with one folder per class or of Parquet files, WebDataset shards (.tar) or
    their URLs, an archive, torchvision:NAME:ROOT[:SPLIT], or hf:NAME[:SPLIT]. It is listed and
    never in memory at once; views are crops of the original images.

    NETWORK is `cnn`, `resnet10w32`, a network of torchvision or timm (torchvision:NAME and
    timm:NAME where both have it; `resnet18-cifar` has a stem for images up to 64 px), or
    MODULE:FACTORY, a function of yours from the number of classes to a torch module.

    The folder gets evenly spaced checkpoints, since small distilled sets want weak teachers. A run
    that was killed continues from its last checkpoint. `torchrun -m hellofmt teach ...` divides
    each batch among processes.

    \b
    hello teach photos --arch resnet18 --epochs 20 -o teacher
    hello teach photos --arch cnn --epochs 5 --eval val -o teacher
    """  # noqa: D301 - click wants the character
    with console.stage("loading PyTorch"):
        from hellofmt.runs import joined
    data = replace(data, device=chosen_device(data.device))
    with joined(data.device), worker_ends_in_one_line():
        _teach(data, training, as_json)


def _teach(data: DataOptions, training: TrainingOptions, as_json: bool) -> None:
    from hellofmt.distillation import split_validation
    from hellofmt.runs import Meter, network_gflop, without_paths
    from hellofmt.teacher import TEACHER_RECIPE, build_network, train_trajectory
    from hellofmt_cli.costs import cost_documents, cost_lines
    from hellofmt_cli.inputs import advise, measured_kind

    read = read_data(data)
    if training.evaluation is None:
        train, held_out = split_validation(read.images, seed=data.seed)
        kind = measured_kind(read.images, held_out)
    else:
        train, kind = read.images, f"images of {shown_path(training.evaluation)}"
        held_out = read_images(
            training.evaluation, read.images.classes, skips_unreadable=data.skip_unreadable
        )
    batch_size = training.batch_size
    steps = steps_of(training.epochs, len(train), batch_size)
    advise(training.arch, read.views.size)
    meter = Meter(console.stage)
    with meter.stage("teach"):
        console.say(f"teach: {training.arch}, {steps:,} steps of {batch_size} views")
        done = train_trajectory(
            train,
            read.views,
            training.output,
            network=training.arch,
            steps=steps,
            held_out=held_out,
            checkpoints=training.checkpoints,
            batch_size=batch_size,
            seed=data.seed,
            recipe=TEACHER_RECIPE,
            device=data.device,
            build=build_network,
            bfloat16=data.bfloat16,
            command=recorded_command(without_paths),
            workers=read.workers,
            on_step=console.step,
        )
    share_findings()
    if not console.is_speaking:
        return
    network = build_network(training.arch, len(train.classes), read.views.size)
    meter.set_gflop(network_gflop(network, read.views.size, steps * batch_size, backward=True))
    counted = len(held_out) - int(held_out.unreadable().sum())
    if as_json:
        echo_json(
            {
                "schema": "hello.teach/1",
                "path": training.output,
                "network": training.arch,
                "steps": steps,
                "images": counted,
                "bfloat16": data.bfloat16,
                "cost": cost_documents(meter.costs),
                "checkpoints": [
                    {"file": c.file, "step": c.step, "accuracy": round(c.accuracy, 2)}
                    for c in done.checkpoints
                ],
            }
        )
        return
    rows: list[tuple[str, str] | None] = [
        ("teacher", f"{shown_path(training.output)}, {training.arch}")
    ]
    rows += [(f"step {c.step:,}", f"{c.accuracy:.1f} %") for c in done.checkpoints]
    rows.append(("trained in", data.arithmetic))
    rows += cost_lines(meter.costs)
    echo_page([*rows, ("measured on", f"{counted:,} {kind}")])
