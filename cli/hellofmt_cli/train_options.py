"""The options of ``hello train`` as one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import click

from hellofmt_cli.options import (
    argument,
    base_option,
    device_option,
    expect_option,
    force_option,
    grouped,
    ipc_option,
    label_dtype_option,
    label_function_option,
    option,
    seed_option,
    shared,
    skip_unreadable_option,
)

RECIPE_NAMES: Final = ("hello", "rded", "sre2l", "kl", "strong")
"""Recipes with soft labels, without their torch."""


@dataclass(frozen=True)
class TrainOptions:
    """A student's run."""

    HEADING: ClassVar[str] = "Student"

    file: str = argument()
    student: str = option(
        required=True,
        metavar="NETWORK",
        help="Network to train: `cnn`, `convnet3`, `resnet10w16`, `resnet10w32`; `resnet18-cifar`,"
        " a ResNet with a stem for small images; one of torchvision or timm (`resnet18`,"
        " `timm:NAME`); MODULE:FACTORY.",
    )
    evaluation: str = option(
        "--eval",
        heading="Data",
        required=True,
        metavar="DATA",
        help="Real images to measure on: a folder per class, shards, an archive,"
        " torchvision:NAME:ROOT:test, or hf:NAME:test.",
    )
    skip_unreadable: bool = shared(skip_unreadable_option, "Data")
    labels: str = option(
        heading="Label",
        metavar="[soft|hard|PATH]",
        default="soft",
        help="The archive's label function, the classes of its images, or a folder of stored labels"
        " (`hello labels`) or of a teacher.",
    )
    recipe: str | None = option(
        metavar="NAME",
        help=f"Training recipe: {', '.join(f'`{name}`' for name in RECIPE_NAMES)}.  [default: kl]",
    )
    steps: int | None = option(type=click.IntRange(1), help="Number of gradient steps.")
    epochs: int | None = option(
        type=click.IntRange(1), help="Number of passes over the images, instead of --steps."
    )
    batch_size: int | None = option(
        type=click.IntRange(1), help="Number of views in a batch.  [default: the recipe's]"
    )
    ema: float | None = option(
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="DECAY",
        help="Measure an average of the weights that decays so, for example by 0.99 a step.",
    )
    seed: int = shared(seed_option("Seed of weights, order and views."), "Run")
    seeds: int = option(
        heading="Run",
        type=click.IntRange(1, 64),
        default=1,
        help="Number of runs, one after another, with seeds from --seed on.",
    )
    base: str | None = shared(base_option, "Label")
    label_function: str | None = shared(label_function_option, "Label")
    label_dtype: str = shared(label_dtype_option, "Label")
    ipc: int | None = shared(ipc_option, "Data")
    views_per_image: int | None = option(
        heading="Label",
        type=click.IntRange(1),
        metavar="K",
        help="Show view e mod K in epoch e, and make the label of each view once.  [default: 32;"
        " with hard labels a new view in every epoch, and with stored ones those that are stored,"
        " which `pruned` ones repeat]",
    )
    expect: str | None = shared(expect_option, "Data")
    workers: int | None = option(
        heading="Run",
        type=click.IntRange(0),
        help="Processes that read images and, on a CPU, draw views and make labels; any number"
        " gives the same batches.  [default: the cores but one, at most 16; 0 for a short run]",
    )
    device: str = shared(device_option("Device that everything runs on."), "Run")
    bfloat16: bool = option(heading="Run", is_flag=True, help="Train the student in bfloat16.")
    output: str | None = option(
        "-o",
        "--output",
        heading="Output",
        metavar="FILE",
        help="Write the trained weights here, in safetensors; the library of --student loads them"
        " by its names, and --teacher NETWORK=FILE takes them.",
    )
    force: bool = shared(force_option("file of weights"), "Output")
    checkpoint: str | None = option(
        heading="Output",
        metavar="PATH",
        help="Keep the state here, and continue from it: a file, or an existing folder for many"
        " runs.",
    )
    checkpoint_every: int = option(
        heading="Output",
        type=click.IntRange(1),
        default=100,
        help="Number of steps between two states that are kept.",
    )
    curve: str | None = option(
        heading="Output", metavar="DIR", help="Write the curve here: CSV, JSON, PNG, TensorBoard."
    )
    wandb: str | None = option(
        heading="Output",
        metavar="PROJECT",
        help="Keep the run of --curve for this project of Weights & Biases, too; `wandb sync` sends"
        " it, WANDB_MODE=online at once.",
    )
    random: str | None = option(
        heading="Data",
        metavar="DATA",
        help="Train on as many images per class drawn at random from DATA, in the place of FILE's:"
        " the baseline of random images.",
    )
    record: str | None = option(
        heading="Output",
        metavar="COPY",
        help="Write a copy of FILE that remembers this result, under a new id; FILE stays.",
    )


train_options = grouped("options", TrainOptions)
