"""``hello train``: a student from an archive and nothing else, measured on real images.

Under ``torchrun`` every process trains on its share of each batch; rank 0 alone measures, prints
and writes.
"""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import torchvision

import hellofmt
from hellofmt.archive import ClassLine, open_archive
from hellofmt.errors import UserInputError, did_you_mean, shown_path
from hellofmt.loading import HelloDataset, StoredLabels
from hellofmt.runs import joined
from hellofmt.sources import read_source
from hellofmt.student import (
    RECIPES,
    SMALL_IMAGE_SIZE,
    Average,
    Curve,
    evaluate,
    recipe,
    train_from_dataset,
)
from hellofmt.teacher import build_network, label_source
from hellofmt_cli.curves import Log
from hellofmt_cli.making import advise, bar
from hellofmt_cli.output import (
    device_option,
    echo_json,
    echo_page,
    is_speaking,
    json_option,
    limit_option,
    limits,
    warn,
)
from hellofmt_cli.workers import worker_ends_in_one_line

if TYPE_CHECKING:
    from torch import Tensor

    from hellofmt.archive import Archive
    from hellofmt.sources import ArrayImages
    from hellofmt.student import Recipe

__all__ = ["train"]


@click.command("train")
@click.argument("file")
@click.option(
    "--student",
    required=True,
    metavar="NAME",
    help="Network to train: `cnn`, `convnet3`, `resnet10w16`, `resnet10w32`; `resnet18-cifar`, a"
    " ResNet with a stem for small images; one of torchvision or timm (`resnet18`, `timm:NAME`);"
    " MODULE:FACTORY.",
)
@click.option(
    "--eval",
    "folder",
    required=True,
    metavar="DATA",
    help="Real images: a folder per class, shards, an archive, or torchvision:NAME:ROOT:test.",
)
@click.option(
    "--labels",
    metavar="[soft|hard|PATH]",
    default="soft",
    show_default=True,
    help="The archive's label function, the classes of its images, or a folder of stored labels"
    " (`hello labels`) or of a teacher.",
)
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME",
    help=f"{', '.join(f'`{name}`' for name in RECIPES if name != 'hard')}.  [default: kl]",
)
@click.option("--steps", type=click.IntRange(1), help="Gradient steps.")
@click.option("--epochs", type=click.IntRange(1), help="Passes instead of steps.")
@click.option("--batch-size", type=click.IntRange(1), help="Views per step.")
@click.option("--ema", type=float, metavar="DECAY", help="Measure an average of the weights: 0.99.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--base", metavar="BASE", help="Base encoder, for an archive that needs one.")
@click.option("--expect", metavar="ID", help="The id the archive must have.")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True)
@device_option("Where everything runs.")
@click.option("--bfloat16", is_flag=True, help="Train the student in bfloat16 autocast.")
@click.option(
    "--checkpoint",
    metavar="PATH",
    help="Keep the state here, and continue from it: a file, or an existing folder for many runs.",
)
@click.option(
    "--checkpoint-every", type=click.IntRange(1), default=100, show_default=True, help="Steps."
)
# Two spellings: before it starts anything, torchrun takes `--log` for one of its own options.
@click.option(
    "--log",
    "--curve",
    "log",
    metavar="DIR",
    help="Write the curve here: CSV, JSON, PNG, TensorBoard. Under torchrun, `--curve`.",
)
@limit_option
@json_option
def train(file: str, as_json: bool, **options: Any) -> None:
    """Train a fresh STUDENT on the archive FILE and report its accuracy.

    Reported are the accuracy after the last step and, apart, the best of the measurements on the
    way: the field often publishes the best, which looks at the test images to choose.
    """
    if options["steps"] is not None and options["epochs"] is not None:
        raise UserInputError.make("E_OPTION", "`--steps` and `--epochs`: expected one, got both")
    if options["labels"] == "hard" and options["recipe_name"] is not None:
        raise UserInputError.make("E_OPTION", "`--recipe` with hard labels: expected none")
    with (
        joined(options["device"]) as place,
        open_archive(file, expect=options["expect"], limits=limits()) as archive,
    ):
        document = _train(archive, options, place.world)
    if not is_speaking():
        return
    if as_json:
        echo_json(document)
        return
    accuracy = document["accuracy"]
    run = f"{document['recipe']}, {document['steps']:,} steps of {document['batch_size']} views"
    best = f"{accuracy['best']:.2f} % of {len(document['measured'])} measurements on the way"
    echo_page(
        [
            ("student", f"{document['student']}, seed {document['seed']}"),
            ("recipe", run),
            ("accuracy, last", f"{accuracy['last']:.2f} % of {document['images']:,} images"),
            ("accuracy, best", f"{best}, at step {accuracy['best_step']:,}"),
        ]
    )


def _train(archive: Archive, options: dict[str, Any], world: int) -> dict[str, Any]:
    """Train and measure; the document of ``--json``."""
    name, seed, device = options["student"], options["seed"], options["device"]
    labels = options["labels"]
    plan = recipe("hard" if labels == "hard" else options["recipe_name"] or "kl")
    if len(archive) == 0:
        raise UserInputError.make("E_DATA", "the archive has no images; expected some to train")
    views, keys = archive.manifest.views, archive.classes.keys
    images = _read_images(options["folder"], archive)
    plan = plan.settled(name, len(archive), len(keys))
    if options["batch_size"]:
        plan = replace(plan, batch_size=options["batch_size"])
    epochs: int = options["epochs"] or plan.epochs
    total: int = options["steps"] or -(-epochs * len(archive) // plan.batch_size)
    dataset = _labelled(archive, plan, options)
    # Built before any worker is, so that they inherit it.
    kernel = None
    if plan.labels != "hard" and dataset.stored is None:
        kernel = dataset.label_source().kernel
    network = build_network(name, len(keys), views.size, seed=seed).to(device)
    advise(name, views.size)
    average = None if options["ema"] is None else Average(network, options["ema"])
    measured = network if average is None else average.module
    curve = Curve(plan, total)
    log = None
    if options["log"] is not None and is_speaking():
        log = Log(options["log"], curve, f"{name}, recipe {plan.name}, labels {labels}")
    marks = set(plan.evaluation_steps(total, len(archive)))
    began = time.perf_counter()
    with worker_ends_in_one_line(options["workers"]), bar("train") as callback:

        def on_step(done: int, loss: Tensor) -> None:
            nonlocal began
            if callback is not None:
                callback(done, total)
            if not is_speaking():
                return
            accuracy = None
            if done in marks:
                accuracy = evaluate(measured, images.pixels, images.labels, views)
            point = curve.add(done, loss, accuracy)
            now = time.perf_counter()
            curve.seconds += now - began
            began = now
            if point is not None and log is not None:
                log.add(point)

        train_from_dataset(
            network,
            dataset,
            plan,
            steps=total,
            seed=seed,
            workers=options["workers"],
            on_step=on_step,
            bfloat16=options["bfloat16"],
            average=average,
            checkpoint=options["checkpoint"],
            checkpoint_every=options["checkpoint_every"],
            keeper=curve,
            labels=labels,
        )
    if not is_speaking():
        return {}
    document = {
        "schema": "hello.train/1",
        "id": archive.id,
        "student": name,
        "recipe": plan.name,
        "labels": labels,
        "label_kernel": kernel,
        "temperature": dataset.temperature if plan.labels == "soft" else None,
        "steps": total,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "seed": seed,
        "bfloat16": options["bfloat16"],
        "ema": options["ema"],
        "processes": world,
        "images": len(images),
        "accuracy": _accuracy(curve),
        "measured": [
            {"step": point.step, "accuracy": round(point.accuracy or 0.0, 2)}
            for point in curve.measured
        ],
        "seconds": round(curve.seconds, 2),
        "versions": {
            "hellofmt": hellofmt.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
    if log is not None:
        log.finish(document)
    return document


def _accuracy(curve: Curve) -> dict[str, Any]:
    best, step = curve.best()
    return {"last": round(curve.last(), 2), "best": round(best, 2), "best_step": step}


def _read_images(data: str, archive: Archive) -> ArrayImages:
    """Real images with the classes of the archive, in its order."""
    side = archive.manifest.views.size
    # Room for the centre crop of `evaluate`, which small images go without.
    size = side if side <= SMALL_IMAGE_SIZE else side * 8 // 7
    pairs = zip(archive.classes.keys, archive.classes.names, strict=True)
    images = read_source(data, size, classes=[ClassLine(*pair) for pair in pairs])
    for note in images.notes:
        warn(note)
    return images


def _labelled(archive: Archive, plan: Recipe, options: dict[str, Any]) -> HelloDataset:
    """The archive's images with the labels that the user wants."""
    labels, device = options["labels"], options["device"]
    stored = label_function = None
    if labels not in ("soft", "hard"):
        nearest = did_you_mean(labels, ("soft", "hard"))
        # A folder that is missing stays the OSError it is.
        if nearest and not Path(labels).exists():
            raise UserInputError.make(
                "E_OPTION",
                f"expected soft, hard or a folder of labels, got `{shown_path(labels)}`",
                argument="labels",
                advice=nearest,
            )
        found = label_source(labels, classes=archive.classes.keys, device=device)
        if isinstance(found, StoredLabels):
            stored = found
        else:
            label_function = found
    return HelloDataset(
        archive,
        labels=plan.labels,
        temperature=plan.temperature,
        base=options["base"],
        seed=options["seed"],
        device=device,
        stored=stored,
        label_function=label_function,
    )
