"""A student's run from an archive, measured on real images; ``hello train`` prints what it returns.

Apart from ``train``, whose options must not wait for torch.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch

from hellofmt.archive import (
    UNSET,
    Result,
    amend_archive,
    as_line,
    check_amended_targets,
    check_target,
    decimal_string,
    open_archive,
    percent,
    renewed_card,
)
from hellofmt.errors import UserInputError, did_you_mean, shown_path
from hellofmt.loading import HelloDataset, StoredLabels
from hellofmt.projector import Labeler
from hellofmt.runs import device_name, joined, versions, without_paths
from hellofmt.sources import source_record
from hellofmt.student import (
    Average,
    Curve,
    compared,
    evaluate,
    recipe,
    train_from_dataset,
    with_result,
)
from hellofmt.teacher import InputRule, build_network, label_source, save_network
from hellofmt_cli.baseline import random_images
from hellofmt_cli.console import console
from hellofmt_cli.curves import Log
from hellofmt_cli.data import read_images, share_findings
from hellofmt_cli.inputs import advise
from hellofmt_cli.options import chosen_device, limits
from hellofmt_cli.output import count, size, tell_read
from hellofmt_cli.workers import worker_ends_in_one_line, workers_for

if TYPE_CHECKING:
    from torch import Tensor

    from hellofmt.archive import Archive
    from hellofmt.sources import Source
    from hellofmt.student import Recipe
    from hellofmt_cli.train_options import TrainOptions

_VIEWS: Final = 32
"""Views of an image, unless the user says otherwise: of the numbers measured, the largest whose
labels add less than 15 % to a run of 300 epochs (``benchmarks/results/pool-cpu.md``)."""


def train_student(options: TrainOptions) -> dict[str, Any]:
    """Train and measure a student; the document of ``--json``, empty except on rank 0."""
    options = replace(options, device=chosen_device(options.device))
    if options.output is not None:
        check_target(options.output, force=options.force)
    with (
        joined(options.device) as place,
        open_archive(options.file, expect=options.expect, limits=limits()) as archive,
    ):
        tell_read(archive)
        if options.record is not None:
            check_amended_targets(archive, options.record)
        runs = [
            _train(archive, replace(options, seed=options.seed + number), place.world)
            for number in range(options.seeds)
        ]
        made = [run for run in runs if run is not None]
        if not made:
            return {}
        documents, results = zip(*made, strict=True)
        result = msgspec.structs.replace(
            results[0],
            seeds=[seed for one in results for seed in one.seeds],
            accuracy=[accuracy for one in results for accuracy in one.accuracy],
        )
        runs_of = [{"seed": one["seed"], **one["accuracy"]} for one in documents]
        return documents[0] | {"runs": runs_of} | _remembered(archive, result, options.record)


def _train(
    archive: Archive, options: TrainOptions, world: int
) -> tuple[dict[str, Any], Result] | None:
    """Train and measure with one seed; what came of it, on rank 0."""
    name, seed, device = options.student, options.seed, options.device
    labels = options.labels
    plan = recipe("hard" if labels == "hard" else options.recipe or "kl")
    if len(archive) == 0:
        raise UserInputError.make("E_DATA", "the archive has no images; expected some to train")
    views, keys = archive.manifest.views, archive.classes.keys
    images = _read_images(options.evaluation, archive, options)
    rows = len(archive) if options.ipc is None else options.ipc * len(keys)
    plan = plan.settled(name, rows, len(keys))
    if options.batch_size:
        plan = replace(plan, batch_size=options.batch_size)
    epochs: int = options.epochs or plan.epochs
    total: int = options.steps or -(-epochs * rows // plan.batch_size)
    passes = -(-total * plan.batch_size // rows)
    dataset = _labelled(archive, plan, options, images, passes)
    workers = workers_for(total * plan.batch_size, options.workers)
    console.detail(f"recipe: {plan}")
    source = None
    with console.stage("building networks"):
        # Built before any worker is, so that they inherit it.
        if plan.labels != "hard" and dataset.stored is None:
            source = dataset.label_source()
        network = build_network(name, len(keys), views.size, seed=seed).to(device)
    advise(name, views.size)
    average = None if options.ema is None else Average(network, options.ema)
    measured = network if average is None else average.module
    curve = Curve(plan, total)
    log = None
    if options.curve is not None and console.is_speaking:
        title = f"{name}, recipe {plan.name}, labels {labels}"
        log = Log(options.curve, curve, title, options.wandb)
    marks = set(plan.evaluation_steps(total, rows))
    began = time.perf_counter()
    with worker_ends_in_one_line(workers), console.stage("train") as show:
        console.say(f"train: {name}, {total:,} steps of {plan.batch_size} views")
        if isinstance(source, Labeler):
            console.say(f"labels: made in {options.label_dtype}")
        _say_pool(dataset, passes)

        def on_step(done: int, loss: Tensor) -> None:
            nonlocal began
            show(done, total)
            accuracy = None
            if done in marks:
                accuracy = evaluate(measured, images, views, workers=workers)
            if not console.is_speaking:
                return
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
            workers=workers,
            on_step=on_step,
            bfloat16=options.bfloat16,
            average=average,
            checkpoint=options.checkpoint,
            checkpoint_every=options.checkpoint_every,
            keeper=curve,
            labels=labels,
        )
    share_findings()
    if not console.is_speaking:
        return None
    if options.output is not None:
        save_network(measured, InputRule.of_views(views), Path(options.output), prefix="")
    best, at = curve.best()
    document = {
        "schema": "hello.train/1",
        "id": archive.id,
        "student": name,
        "recipe": plan.name,
        "labels": labels,
        "label_function": dataset.label_function if labels == "soft" else None,
        "label_kernel": None if source is None else source.kernel,
        "label_dtype": options.label_dtype if isinstance(source, Labeler) else None,
        "ipc": options.ipc,
        "views_per_image": dataset.views_per_image,
        "temperature": dataset.temperature if plan.labels == "soft" else None,
        "steps": total,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "seed": seed,
        "bfloat16": options.bfloat16,
        "ema": options.ema,
        "processes": world,
        "images": len(images) - int(images.unreadable().sum()),
        "trained_on": "archive" if options.random is None else "random",
        "accuracy": {"last": round(curve.last(), 2), "best": round(best, 2), "best_step": at},
        "measured": [
            {"step": point.step, "accuracy": round(point.accuracy or 0.0, 2)}
            for point in curve.measured
        ],
        "seconds": round(curve.seconds, 2),
        "versions": versions(),
    }
    kind = labels
    if labels not in ("soft", "hard"):
        kind = "teacher" if dataset.stored is None else "stored"
    result = Result(
        accuracy=[percent(curve.last())],
        batch_size=plan.batch_size,
        bfloat16=options.bfloat16,
        device=device_name(device),
        evaluated=source_record(images),
        images="archive" if options.random is None else "random",
        labels=kind,
        learning_rate=decimal_string(plan.learning_rate),
        recipe=plan.name,
        seeds=[seed],
        steps=total,
        student=as_line(without_paths(name)),
        versions=versions(),
        function=dataset.label_function or UNSET if kind == "soft" else UNSET,
        ipc=options.ipc or UNSET,
        ema=UNSET if options.ema is None else decimal_string(options.ema),
        processes=world if world > 1 else UNSET,
        label_dtype=UNSET if options.label_dtype == "float32" else options.label_dtype,
        views_per_image=dataset.views_per_image or UNSET,
    )
    if log is not None:
        log.finish(document)
    return document, result


def _remembered(archive: Archive, result: Result, target: str | None) -> dict[str, Any]:
    """Compare a result with those of the archive, and record it in a copy; None where not."""
    record = archive.record
    known = [] if record is None or record.results is UNSET else record.results
    found = compared(known, result)
    recorded = None
    if found is not None:
        recorded = {
            "accuracy": list(found.recorded),
            "tolerance": None if found.tolerance is None else round(found.tolerance, 2),
            "reproduced": found.is_reproduced,
            "differs": list(found.differs),
        }
    copy = None
    if target is not None:
        with console.stage("writing the copy"):
            joined_record = with_result(record, result)
            made = amend_archive(
                archive, target, record=joined_record, card=renewed_card(archive, joined_record)
            )
        copy = {"path": target, "id": made}
    return {"recorded": recorded, "copy": copy}


def _read_images(data: str, archive: Archive, options: TrainOptions) -> Source:
    """Real images with the classes of the archive, in its order."""
    return read_images(data, archive.classes.lines(), skips_unreadable=options.skip_unreadable)


def _labelled(
    archive: Archive, plan: Recipe, options: TrainOptions, evaluated: Source, passes: int
) -> HelloDataset:
    """The archive's images, or random ones, with the labels that the user wants."""
    labels, device = options.labels, options.device
    stored = None
    label_function: Any = options.label_function
    if labels != "soft" and label_function is not None:
        raise UserInputError.make("E_OPTION", "--label-function needs --labels soft")
    if labels != "soft" and options.label_dtype != "float32":
        raise UserInputError.make("E_OPTION", "--label-dtype needs --labels soft")
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
    kept = options.views_per_image
    if stored is None and plan.labels != "hard":
        # A pool of as many views as there are passes would never be looked into.
        kept = kept or _VIEWS
        kept = kept if kept < passes else None
    images = None
    if options.random is not None:
        if stored is not None:
            raise UserInputError.make(
                "E_OPTION", "--random with stored labels, which belong to the archive's own images"
            )
        source = _read_images(options.random, archive, options)
        if source.portable_digest() == evaluated.portable_digest():
            raise UserInputError.make(
                "E_DATA", "--random and --eval hold the same images; expected training images"
            )
        images = random_images(source, archive, options.seed, options.ipc)
    return HelloDataset(
        archive,
        images=images,
        labels=plan.labels,
        temperature=plan.temperature,
        base=options.base,
        seed=options.seed,
        device=device,
        dtype=getattr(torch, options.label_dtype),
        stored=stored,
        label_function=label_function,
        ipc=options.ipc if images is None else None,
        views_per_image=kept,
    )


def _say_pool(dataset: HelloDataset, passes: int) -> None:
    """``labels: pool of 32 views an image, 3.05 MiB (3,200,000 bytes)``, and what does not fit."""
    pool = dataset.pool
    if pool is None:
        return
    line = f"labels: pool of {count(pool.views, 'view')} an image, {size(pool.needed)}"
    if pool.kept < pool.needed:
        line += f", of which {size(pool.kept)} are kept; the others are made again in every epoch"
    console.say(f"{line}; --views-per-image {passes} makes every view a new one")
