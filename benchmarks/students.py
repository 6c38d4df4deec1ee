"""Train students from archives and measure them on images that no choice depends on.

Each function is the work of a cell (``cells.py``) and returns its result.
"""

from __future__ import annotations

import time
from dataclasses import replace

import msgspec
import numpy as np
import torch
from measures import held_out_fidelity
from sources import (
    archive,
    archive_for,
    archive_of,
    image_bytes,
    kept,
    label_bytes,
    labels_for,
    method_of,
    select,
    taken,
    write_images,
)

import hellofmt
from hellofmt.distillation import SelectSettings, select_images
from hellofmt.ledger import ledger_of
from hellofmt.loading import HelloDataset, view_recipe
from hellofmt.making import HardBatches, ViewBatches
from hellofmt.sources import ArrayImages
from hellofmt.student import (
    build_student,
    evaluate,
    recipe,
    train_from_archive,
    train_from_dataset,
    train_student,
)
from hellofmt.teacher import (
    TEACHER_RECIPE,
    InputRule,
    Teacher,
    label_source,
    maturity,
    teacher_accuracy,
    write_teacher,
)


def student_plan(setting, kind, images, **changes):
    profile = setting.profile
    plan = recipe(profile.recipe)
    if kind == "hard":
        plan = replace(plan, name="hard", loss="ce")
    return replace(
        plan,
        learning_rate=profile.student_rate,
        batch_size=min(profile.student_batch, images),
        **changes,
    )


def is_bfloat16(setting):
    return setting.profile.mixed or setting.bfloat16


def measured(setting, student, images):
    """Measure top-1 in percent, in the precision of the student's training."""
    kind = torch.device(setting.device).type
    with torch.autocast(kind, torch.bfloat16, enabled=is_bfloat16(setting)):
        return evaluate(student, images, setting.views)


def train_one(
    setting, kind, path, *, network, steps, seed, plan=None, watch=None, also=None, **labels
):
    """Train a new student from an archive; return top-1 on the test images and the cost.

    ``watch`` is called after each step with the student and the number of steps done. ``also`` are
    validation images to measure.
    """
    classes, size = len(setting.train.classes), setting.size
    with hellofmt.open(path) as file:
        images = len(file)
    plan = student_plan(setting, kind, images) if plan is None else plan
    student = build_student(network, classes, size, seed=seed).to(setting.device)
    start, processor = time.monotonic(), time.process_time()
    train_from_dataset(
        student,
        dataset_of(setting, kind, path, plan, seed, labels),
        plan,
        steps=steps,
        seed=seed,
        bfloat16=is_bfloat16(setting),
        on_step=None if watch is None else lambda step, _: watch(student, step),
    )
    seconds, processor = time.monotonic() - start, time.process_time() - processor
    top1 = measured(setting, student, setting.test)
    result = {} if also is None else {"validation": round(measured(setting, student, also), 2)}
    return {
        **result,
        "top1": round(top1, 2),
        "train_seconds": round(seconds, 1),
        "cpu_seconds": round(processor, 2),
        "steps": steps,
        "batch": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "student": network,
        "seed": seed,
    }


def dataset_of(setting, kind, path, plan, seed, labels):
    """Open an archive with its labels; runs that share views share the labels made of them too."""
    views = setting.profile.views_per_image
    key = (path, kind)
    if not views or key not in setting.datasets:
        # One at a time, of the seeds that follow each other.
        setting.datasets.clear()
        setting.datasets[key] = HelloDataset(
            path,
            labels=plan.labels,
            temperature=plan.temperature,
            seed=0 if views else seed,
            base=setting.base_argument,
            device=setting.device,
            dtype=torch.bfloat16 if setting.bfloat16 else None,
            **{"views_per_image": views or None, **labels},
        )
    return setting.datasets[key]


def select_cell(setting, method, _):
    """Choose images by one method, for every number per class at once."""
    profile = setting.profile
    most = max(*profile.ipcs, *profile.curve_ipcs)
    return {"method": method, "images": len(select(setting, most, method=method).labels)}


def rival(setting, kind, ipc, seed, network, steps, _):
    path = archive(setting, kind, ipc)
    result = train_one(
        setting,
        kind,
        path,
        network=network,
        steps=steps,
        seed=seed,
        **labels_for(setting, kind, ipc, seed, steps),
    )
    return {
        **result,
        "source": kind,
        "ipc": ipc,
        "method": method_of(setting, kind, ipc),
        "label_bytes": label_bytes(setting, kind, ipc, seed, steps),
        "archive_bytes": path.stat().st_size,
        "image_bytes": image_bytes(path),
    }


def bytes_cell(setting, budget, seed, _):
    """Train a student from the file that a number of bytes buys."""
    path, chosen = archive_for(setting, budget)
    profile = setting.profile
    result = train_one(
        setting, "hello", path, network=profile.student, steps=profile.steps, seed=seed
    )
    size = path.stat().st_size
    return {**result, "budget": budget, "chosen": chosen, "archive_bytes": size}


# --- the paper's ablation -------------------------------------------------------------------------

ABLATION = ("probe", "weak", "low-rank", "text")


def ablation_teacher(setting, row, ipc):
    """Return the last checkpoint for the first row, else the pool for the images per class."""
    if row == "probe":
        return setting.teacher
    return setting.trajectory.pool(maturity(ipc, len(setting.train.classes)))


def ablation_projector(setting, row, ipc):
    profile = setting.profile
    # One pool for both where the fraction is the same; the fit is found under its digest then.
    teacher = ablation_teacher(setting, row, ipc)
    if row in {"probe", "weak"}:
        settings = setting.projector_settings(targets=(), start="stored")
        return setting.fitted(settings, profile.probe_epochs, teacher=teacher, random_head=True)
    if row == "low-rank":
        settings = setting.projector_settings(start="stored")
        return setting.fitted(settings, profile.ablation_epochs, teacher=teacher, random_head=True)
    # The same head, started from the text rows.
    settings = setting.projector_settings(start="stored")
    return setting.fitted(settings, profile.ablation_epochs, teacher=teacher)


def ablation_cell(setting, row, ipc, _):
    """Make the label function and the archive of one row."""
    projector, _ = ablation_projector(setting, row, ipc)
    teacher = ablation_teacher(setting, row, ipc)
    chosen = select(setting, ipc, factor=2)
    path = archive_of(setting, f"ablation-{row}-ipc{ipc}", projector.cpu(), chosen)
    with hellofmt.open(path) as file:
        payload = ledger_of(file).payload
    return {
        "row": row,
        "ipc": ipc,
        "trained": projector.trained_count(),
        "label_bytes": payload,
        "own_top1": round(teacher_accuracy(projector.eval(), setting.test, setting.size), 2),
        "teacher_top1": round(teacher_accuracy(teacher, setting.test, setting.size), 2),
        **held_out_fidelity(setting, projector, teacher),
    }


def ablation_student(setting, row, ipc, seed, steps, _):
    """Train a student of one row; ``hard`` and ``teacher`` are controls on the same mosaics."""
    name = "text" if row in {"hard", "teacher"} else row
    path = setting.folder / "archives" / f"ablation-{name}-ipc{ipc}.hello"
    given = {}
    if row == "teacher":
        given = {"label_function": ablation_teacher(setting, "text", ipc)}
    result = train_one(
        setting,
        row,
        path,
        network=setting.profile.student,
        steps=steps,
        seed=seed,
        **given,
    )
    return {**result, "row": row, "ipc": ipc}


# --- classes that arrive in steps -----------------------------------------------------------------


class _Seen(torch.nn.Module):
    """A label function over the classes seen so far: their logits, and softmax over these."""

    def __init__(self, function, classes):
        super().__init__()
        self._function = function
        self._classes = classes

    def forward(self, views):
        return self._function(views)[:, self._classes]


def continual_cell(setting, kind, step, seed, _):
    """Train a student from scratch on all classes seen so far, and measure it on them.

    The protocol of Zhao and Bilen (WACV 2023) without their herding. One label function of all
    classes serves every step: its logits are cut to the classes seen and their labels renormalised.
    """
    profile, ipc = setting.profile, max(setting.profile.ipcs)
    count = len(setting.train.classes)
    order = np.random.default_rng(0).permutation(count)
    seen = np.sort(order[: round(count * (step + 1) / profile.continual_steps)])
    chosen = select(setting, ipc)
    rows = np.flatnonzero(np.isin(chosen.labels, seen))
    labels = np.searchsorted(seen, chosen.labels[rows])
    part = replace(taken(chosen, rows), labels=labels)
    classes = [setting.train.classes[k] for k in seen]
    path = kept(
        setting.folder / "archives" / f"continual-{step}.hello",
        lambda to: write_images(to, part, setting.train, classes, setting.views),
    )
    given = {}
    if kind == "hello":
        function = setting.fitted_main()[0].labeler().logits
    else:
        function = setting.teacher
    if kind != "hard":
        given["label_function"] = _Seen(function, torch.from_numpy(seen)).eval()
    student = build_student(profile.student, len(seen), setting.size, seed=seed)
    plan = student_plan(setting, kind, len(rows))
    if kind != "hard":
        plan = replace(plan, temperature=setting.profile.temperature)
    train_from_archive(
        student, path, plan, steps=profile.steps, seed=seed, bfloat16=profile.mixed, **given
    )
    mask = np.isin(setting.test.labels, seen)
    labels = np.searchsorted(seen, setting.test.labels[mask])
    test = ArrayImages(setting.test.pixels[mask], labels, tuple(classes))
    top1 = measured(setting, student, test)
    return {
        "top1": round(top1, 2),
        "source": kind,
        "step": step,
        "classes": len(seen),
        "seed": seed,
        "student": profile.student,
    }


# --- sensitivity ----------------------------------------------------------------------------------


def sensitivity_cell(setting, knob, value, seed, _):
    profile, ipc = setting.profile, 10
    path = archive(setting, "hello", ipc)
    plan = student_plan(setting, "hello", ipc * len(setting.train.classes))
    if knob == "temperature":
        plan = replace(plan, temperature=value)
    else:
        plan = replace(plan, loss="mse_ce", hard_weight=value)
    result = train_one(
        setting, "hello", path, network=profile.student, steps=profile.steps, seed=seed, plan=plan
    )
    return {**result, "knob": knob, "value": value}


# --- RDED's CIFAR-10 recipe -----------------------------------------------------------------------

RDED_PUBLISHED = 50.2
RDED_IPC = 10
RDED_EPOCHS = 300
RDED_BATCH = 50
RDED_SEEDS = (1, 2, 3)


def rded_teacher(setting, epochs, _):
    """Train ConvNet-3 with batch normalisation on light crops and flips; theirs trains longer.

    Crops cover more than half of the image, since students see whole ones.
    """
    views = view_recipe("plain", setting.size)
    views = msgspec.structs.replace(views, crop_scale=["0.6", "1.0"])
    steps = round(epochs * len(setting.train) / 128)
    count = len(setting.train.classes)
    network = build_student("convnet3", count, setting.size, seed=0)
    stream = HardBatches(ViewBatches(setting.train, views, 128, seed=0))
    train_student(network, stream, TEACHER_RECIPE, steps=steps, bfloat16=setting.profile.mixed)
    teacher = Teacher(network, InputRule.of_views(views))
    folder = setting.folder / "labels" / "rded-teacher"
    kept(
        folder,
        lambda to: write_teacher(
            to,
            "convnet3",
            teacher,
            classes=[line.key for line in setting.train.classes],
            views=views,
        ),
    )
    top1 = teacher_accuracy(teacher, setting.test, setting.size)
    return {"top1": round(top1, 2), "epochs": epochs, "steps": steps}


def rded_cell(setting, seed, _):
    """Run RDED's selection, views, loss, schedule, epochs and batch size for 10 per class.

    As in RDED, every tenth epoch of the last fifth is measured. ``best`` is the best of these,
    which RDED reports, and ``top1`` the last.
    """
    teacher = label_source(setting.folder / "labels" / "rded-teacher")
    views = view_recipe("rded", setting.size, 1)
    choice = SelectSettings(RDED_IPC, method="rded", seed=seed)
    chosen = select_images(setting.train, teacher, views, choice)
    path = kept(
        setting.folder / "archives" / f"rded-seed{seed}.hello",
        lambda to: write_images(to, chosen, setting.train, setting.train.classes, views),
    )
    images = RDED_IPC * len(setting.train.classes)
    per_epoch = images // RDED_BATCH
    found = []

    def watch(student, step):
        epoch = step / per_epoch
        if epoch > 0.8 * RDED_EPOCHS and epoch % 10 == 0:
            found.append(round(measured(setting, student, setting.test), 2))

    result = train_one(
        setting,
        "teacher",
        path,
        network="convnet3",
        steps=RDED_EPOCHS * per_epoch,
        seed=seed,
        plan=replace(recipe("rded"), batch_size=RDED_BATCH),
        watch=watch,
        label_function=teacher,
    )
    return {**result, "best": max(found), "measured": found, "published": RDED_PUBLISHED}
