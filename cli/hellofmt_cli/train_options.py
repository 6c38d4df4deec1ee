"""The options of ``hello train`` as one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import click

from hellofmt_cli.options import (
    base_option,
    device_option,
    expect_option,
    grouped,
    ipc_option,
    label_dtype_option,
    label_function_option,
    seed_option,
    skip_unreadable_option,
)

__all__ = ["RECIPE_NAMES", "TrainOptions", "train_options"]

RECIPE_NAMES: Final = ("hello", "rded", "sre2l", "kl")
"""Recipes with soft labels, without their torch."""


@dataclass(frozen=True)
class TrainOptions:
    """A student's run.

    Attributes:
        file: the archive.
        student: name of the network.
        evaluation: real images that are measured on.
        skip_unreadable: leave out those that cannot be read.
        labels: ``soft``, ``hard``, or a path.
        recipe: name of the recipe; None takes the default one.
        steps: gradient steps.
        epochs: passes over the archive's images; None takes the recipe's.
        batch_size: views in a batch; None takes the recipe's.
        ema: decay of an average of the weights, which is then measured.
        seed: of weights, order and views.
        seeds: number of runs, with seeds from ``seed`` on.
        base: encoder, for an archive that needs one.
        label_function: name of the archive's function; None takes the first.
        label_dtype: precision of its image tower.
        ipc: images of each class; None takes all.
        views_per_image: views that a run sees over and over; None takes a new one in every epoch.
        expect: id the archive must have.
        workers: processes that read images and draw views; None is as many as suit the machine.
        device: that everything runs on.
        bfloat16: whether the student is trained in bfloat16 autocast.
        checkpoint: file or folder of the run's state.
        checkpoint_every: steps between two states.
        curve: folder of the curve.
        random: real images to draw from in the place of the archive's; None takes the archive's.
        record: copy of the archive that gets the result; None records nothing.
    """

    file: str
    student: str
    evaluation: str
    skip_unreadable: bool
    labels: str
    recipe: str | None
    steps: int | None
    epochs: int | None
    batch_size: int | None
    ema: float | None
    seed: int
    seeds: int
    base: str | None
    label_function: str | None
    label_dtype: str
    ipc: int | None
    views_per_image: int | None
    expect: str | None
    workers: int | None
    device: str
    bfloat16: bool
    checkpoint: str | None
    checkpoint_every: int
    curve: str | None
    random: str | None
    record: str | None


train_options = grouped(
    "options",
    TrainOptions,
    click.argument("file"),
    click.option(
        "--student",
        required=True,
        metavar="NETWORK",
        help="Network to train: `cnn`, `convnet3`, `resnet10w16`, `resnet10w32`; `resnet18-cifar`,"
        " a ResNet with a stem for small images; one of torchvision or timm (`resnet18`,"
        " `timm:NAME`); MODULE:FACTORY.",
    ),
    click.option(
        "--eval",
        "evaluation",
        required=True,
        metavar="DATA",
        help="Real images to measure on: a folder per class, shards, an archive,"
        " torchvision:NAME:ROOT:test, or hf:NAME:test.",
    ),
    skip_unreadable_option,
    click.option(
        "--labels",
        metavar="[soft|hard|PATH]",
        default="soft",
        show_default=True,
        help="The archive's label function, the classes of its images, or a folder of stored labels"
        " (`hello labels`) or of a teacher.",
    ),
    click.option(
        "--recipe",
        metavar="NAME",
        help=f"Training recipe: {', '.join(f'`{name}`' for name in RECIPE_NAMES)}.  [default: kl]",
    ),
    click.option("--steps", type=click.IntRange(1), help="Gradient steps."),
    click.option("--epochs", type=click.IntRange(1), help="Passes instead of steps."),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        help="Number of views in a batch.  [default: the recipe's]",
    ),
    click.option(
        "--ema",
        type=float,
        metavar="DECAY",
        help="Measure an average of the weights that decays so, for example by 0.99 a step.",
    ),
    seed_option("Seed of weights, order and views."),
    click.option(
        "--seeds",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Number of runs, one after another, with seeds from --seed on.",
    ),
    base_option,
    label_function_option,
    label_dtype_option,
    ipc_option,
    click.option(
        "--views-per-image",
        type=click.IntRange(1),
        metavar="K",
        help="Show view e mod K in epoch e, and make the label of each view once.  [default: a new"
        " view in every epoch]",
    ),
    expect_option,
    click.option(
        "--workers",
        type=click.IntRange(0),
        help="Processes that read images and, on a CPU, draw views and make labels; any number"
        " gives the same batches.  [default: the cores but one, at most 16; 0 for a short run]",
    ),
    device_option("Device that everything runs on."),
    click.option("--bfloat16", is_flag=True, help="Train the student in bfloat16."),
    click.option(
        "--checkpoint",
        metavar="PATH",
        help="Keep the state here, and continue from it: a file, or an existing folder for many"
        " runs.",
    ),
    click.option(
        "--checkpoint-every",
        type=click.IntRange(1),
        default=100,
        show_default=True,
        help="Steps between two states.",
    ),
    click.option(
        "--curve", metavar="DIR", help="Write the curve here: CSV, JSON, PNG, TensorBoard."
    ),
    click.option(
        "--random",
        metavar="DATA",
        help="Train on as many images per class drawn at random from DATA, in the place of FILE's:"
        " the baseline of random images.",
    ),
    click.option(
        "--record",
        metavar="COPY",
        help="Write a copy of FILE that remembers this result, under a new id; FILE stays.",
    ),
)
