"""``hello train``: a student from an archive and nothing else, measured on real images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from hellofmt.archive import open_archive
from hellofmt.distillation import read_image_folder
from hellofmt.errors import UserInputError
from hellofmt.student import (
    SMALL_IMAGE_SIZE,
    Teacher,
    build_student,
    evaluate,
    label_source,
    recipe,
    train_from_archive,
)
from hellofmt_cli.output import echo_json, echo_page, json_option, limit_option, limits, progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["train"]

_EVALUATIONS = 10


@click.command("train")
@click.argument("file")
@click.option("--student", required=True, metavar="NAME", help="`cnn`, `convnet3`, `resnet18`, ...")
@click.option(
    "--eval", "folder", required=True, metavar="DIR", help="Real images, a folder per class."
)
@click.option(
    "--labels",
    metavar="[soft|hard|DIR]",
    default="soft",
    show_default=True,
    help="The archive's label function, its images' classes, or stored labels or a teacher.",
)
@click.option("--recipe", "recipe_name", metavar="NAME", help="`kl`, `hello`, `rded`, `sre2l`.")
@click.option("--steps", type=click.IntRange(1), help="Gradient steps.")
@click.option("--epochs", type=click.IntRange(1), help="Passes instead of steps.")
@click.option("--batch-size", type=click.IntRange(1), help="Views per step.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--base", metavar="BASE", help="Base encoder, for an archive that needs one.")
@click.option("--expect", metavar="ID", help="The id the archive must have.")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where everything runs.")
@click.option("--mixed", is_flag=True, help="The student computes in bfloat16.")
@limit_option
@json_option
def train(
    file: str,
    student: str,
    folder: str,
    labels: str,
    recipe_name: str | None,
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    seed: int,
    base: str | None,
    expect: str | None,
    workers: int,
    device: str,
    mixed: bool,
    as_json: bool,
) -> None:
    """Train a fresh STUDENT on the archive FILE and report its accuracy.

    Reported are the accuracy after the last step and, apart, the best of ten measurements on the
    way: the field often publishes the best, which looks at the test images to choose.
    """
    if steps is not None and epochs is not None:
        raise UserInputError.make("E_OPTION", "`--steps` and `--epochs`: expected one, got both")
    if labels == "hard" and recipe_name is not None:
        raise UserInputError.make("E_OPTION", "`--recipe` with hard labels: expected none")
    plan = recipe("hard" if labels == "hard" else recipe_name or "kl")
    with open_archive(file, expect=expect, limits=limits()) as archive:
        if len(archive) == 0:
            raise UserInputError.make("E_DATA", "the archive has no images; expected some to train")
        views, keys = archive.manifest.views, archive.classes.keys
        # Room for the centre crop of `evaluate`, which small images go without.
        size = views.size if views.size <= SMALL_IMAGE_SIZE else views.size * 8 // 7
        images = read_image_folder(folder, size, classes=keys)
        # A batch larger than the data set would only repeat images within a step.
        plan = replace(plan, batch_size=batch_size or min(plan.batch_size, len(archive)))
        source = None
        if labels not in ("soft", "hard"):
            source = label_source(labels, classes=keys, device=device)
        teacher = source if isinstance(source, Teacher) else None
        total = steps or -(-(epochs or plan.epochs) * len(archive) // plan.batch_size)
        network = build_student(student, len(keys), views.size, seed=seed).to(device)
        every = max(1, total // _EVALUATIONS)
        scores: list[float] = []
        with progress("train", "step") as callback:

            def on_step(done: int, _: Tensor) -> None:
                if callback is not None:
                    callback(done, total)
                if done % every == 0 or done == total:
                    scores.append(evaluate(network, images.pixels, images.labels, views))

            train_from_archive(
                network,
                archive,
                plan,
                steps=total,
                seed=seed,
                base=base,
                device=device,
                workers=workers,
                on_step=on_step,
                stored=labels if source is not None and teacher is None else None,
                label_function=teacher,
                mixed=mixed,
            )
        document = {
            "schema": "hello.train/1",
            "id": archive.id,
            "student": student,
            "recipe": plan.name,
            "labels": labels,
            "steps": total,
            "batch_size": plan.batch_size,
            "seed": seed,
            "mixed": mixed,
            "images": len(images),
            "accuracy": {"last": round(scores[-1], 2), "best": round(max(scores), 2)},
        }
    if as_json:
        echo_json(document)
        return
    echo_page(
        [
            ("student", f"{student}, seed {seed}"),
            ("recipe", f"{plan.name}, {total:,} steps of {plan.batch_size} views"),
            ("accuracy, last", f"{scores[-1]:.2f} % of {len(images):,} images"),
            ("accuracy, best", f"{max(scores):.2f} % of {len(scores)} measurements on the way"),
        ]
    )
