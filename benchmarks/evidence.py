"""Every comparison that the paper's claim needs, by the cell: ``make bench``.

    python benchmarks/evidence.py --data DIR [--data DIR ...] --base BASE [--profile cpu] [--jobs 2]

Each DIR holds ``train`` and ``val`` (or ``test``), a folder of images per class; digits are always
there. Suites, each a set of cells (``cells.py``):

* ``rivals``: hard labels, our label function, the teacher online (RDED), its float16 labels stored
  (SRe2L, FKD), its ten largest stored (TinyViT), those of a tenth of the epochs (LPQLD), the
  teacher in int8, a linear probe on the base, and random images with our labels. One student, one
  recipe, the same images (but for the last), the same views, the same number of steps; labels come
  from real files whose bytes are counted.
* ``ablation``: the paper's own order on mosaics of factor 2; every row at one fit length.
* ``curve``: fidelity of the label function against its bytes, for every rank and storage.
* ``cross``: students of other families. ``continual``: classes that arrive in steps.
* ``sensitivity``: temperature, and the weight of the cross-entropy.
* ``rded``: RDED's published CIFAR-10 recipe with our selection.
* ``cost``: seconds, memory and arithmetic of each stage.

``report.py`` writes the tables and plots from the cells that are finished.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from cells import Cell, Cells, machine, run_workers
from setting import DIGITS, FIT_TEMPERATURE, PROFILES, TEMPERATURE, read_setting

import hellofmt
from hellofmt.distillation import (
    TEACHER_RECIPE,
    ArrayImages,
    RefineSettings,
    Selection,
    SelectSettings,
    Stages,
    Teacher,
    digest_of,
    maturity,
    refine_images,
    select_images,
    teacher_accuracy,
    write_distilled,
)
from hellofmt.distillation.stages import Result
from hellofmt.ledger import ledger_of
from hellofmt.loading import HelloDataset, normalise, view_recipe, write_labels
from hellofmt.projector.precision import stored_labelers
from hellofmt.student import (
    ArrayBatches,
    build_student,
    evaluate,
    label_source,
    recipe,
    train_from_archive,
    train_student,
    write_teacher,
)

TOP_K = 10
PRUNED_TO = 10
RIVALS = (
    "hard",
    "hello",
    "teacher",
    "stored",
    "topk",
    "pruned",
    "teacher-int8",
    "probe",
    "random",
)
LONG_RIVALS = ("hard", "hello", "teacher")
STORAGE = "int8"
HELD_OUT_VIEWS = 4


# --- what is made once ---------------------------------------------------------------------------


def kept(path, make):
    """A file or folder that ``make`` writes at the path it is given; made once.

    Two workers may make it at the same time: both make the same, and the first one's stays.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        make(temporary)
        try:
            temporary.rename(path)
        except OSError:
            shutil.rmtree(temporary)
    return path


def size_of(path):
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def first_of_each(chosen, count):
    """The first ``count`` images of each class; at factor 1 that is the choice for fewer images."""
    ipc = int(np.bincount(chosen.labels)[0])
    rows = np.flatnonzero(np.arange(len(chosen.labels)) % ipc < count)
    return Selection(
        chosen.pixels[rows],
        chosen.labels[rows],
        chosen.rows[rows],
        chosen.losses[rows],
        chosen.crops[rows],
    )


def select(setting, ipc, *, factor=1, random=False):
    """RDED's choice by the teacher; or whole random images."""
    most = max((10, *setting.profile.ipcs, *setting.profile.long_ipcs))
    if factor == 1 and not random and ipc < most:
        return first_of_each(select(setting, most), ipc)
    settings = SelectSettings(ipc, factor, candidates=setting.profile.candidates)
    if random:
        # As many candidates as are needed: nothing is left to choose.
        settings = SelectSettings(
            ipc, factor, candidates=ipc * factor**2, crops=1, crop_scale=(1.0, 1.0)
        )
    inputs = {"data": setting.digest, "teacher": setting.teacher, "select": settings}

    def make():
        chosen = select_images(setting.train, setting.teacher, setting.views, settings)
        return Result(dict(vars(chosen)), {})

    return Selection(**Stages(setting.work / "selections").run("select", inputs, make).tensors)


def probe(setting, **more):
    """Linear probe on the base: no deltas, the whole head."""
    settings = setting.projector_settings(targets=(), start="stored")
    return setting.fitted(settings, setting.profile.probe_epochs, **more)


def archive_of(setting, name, projector, selection):
    """An archive of chosen images and a fitted projector (or none)."""
    return kept(
        setting.work / "archives" / f"{name}.hello",
        lambda path: write_distilled(
            path, selection, projector, setting.train, setting.views, name=name, storage=STORAGE
        ),
    )


def archive(setting, kind, ipc):
    """The archive of a label source at a number of images per class."""
    projector = probe(setting)[0] if kind == "probe" else setting.fitted_main()[0]
    chosen = select(setting, ipc, random=kind == "random")
    name = {"probe": "probe", "random": "random"}.get(kind, "hello")
    return archive_of(setting, f"{name}-ipc{ipc}", projector, chosen)


def label_files(setting, kind, ipc, seed, steps):
    """Labels of the teacher as a rival keeps them, on disk; None where there are none."""
    path = archive(setting, kind, ipc)
    profile = setting.profile
    if kind in {"teacher", "teacher-int8"}:
        storage = "int8" if kind == "teacher-int8" else "float32"
        return kept(
            setting.work / "labels" / kind,
            lambda folder: write_teacher(
                folder,
                profile.teacher,
                setting.teacher.network,
                classes=[line.key for line in setting.train.classes],
                views=setting.views,
                storage=storage,
            ),
        )
    if kind not in {"stored", "topk", "pruned"}:
        return None
    images = len(setting.train.classes) * ipc
    epochs = -(-steps * min(profile.student_batch, images) // images)
    form = {"stored": "safetensors", "topk": "topk", "pruned": "pruned"}[kind]
    if kind == "pruned":
        epochs = -(-epochs // PRUNED_TO)

    def make(folder):
        dataset = HelloDataset(
            path,
            seed=seed,
            label_function=setting.teacher,
            temperature=TEMPERATURE,
            device=setting.device,
        )
        write_labels(
            dataset, folder, epochs=epochs, form=form, k=min(TOP_K, len(setting.train.classes))
        )

    return kept(setting.work / "labels" / f"{kind}-ipc{ipc}-seed{seed}-{epochs}", make)


def label_bytes(setting, kind, ipc, seed, steps):
    """Bytes of the labels alone, on disk, for this run."""
    if kind == "hard":
        return 0
    files = label_files(setting, kind, ipc, seed, steps)
    if files is not None:
        return size_of(files)
    with hellofmt.open(archive(setting, kind, ipc)) as file:
        return ledger_of(file).payload


# --- students ------------------------------------------------------------------------------------


def student_plan(setting, kind, images, **changes):
    plan = recipe("hard" if kind == "hard" else "kl")
    profile = setting.profile
    return replace(
        plan,
        learning_rate=profile.student_rate,
        batch_size=min(profile.student_batch, images),
        **changes,
    )


def measured(setting, student, images):
    """Top-1 in percent, in the precision that the student was trained in."""
    kind = torch.device(setting.device).type
    with torch.autocast(kind, torch.bfloat16, enabled=setting.profile.mixed):
        return evaluate(student, images.pixels, images.labels, setting.views)


def train_one(setting, kind, path, *, network, steps, seed, plan=None, **labels):
    """A fresh student from an archive: top-1 on the measured images, and what the run cost."""
    classes, size = len(setting.train.classes), setting.size
    with hellofmt.open(path) as file:
        images = len(file)
    plan = student_plan(setting, kind, images) if plan is None else plan
    student = build_student(network, classes, size, seed=seed).to(setting.device)
    start = time.monotonic()
    train_from_archive(
        student,
        path,
        plan,
        steps=steps,
        seed=seed,
        base=setting.base_argument,
        device=setting.device,
        mixed=setting.profile.mixed,
        **labels,
    )
    seconds = time.monotonic() - start
    top1 = measured(setting, student, setting.test)
    return {
        "top1": round(top1, 2),
        "train_seconds": round(seconds, 1),
        "steps": steps,
        "batch": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "student": network,
        "seed": seed,
    }


def labels_for(setting, kind, ipc, seed, steps):
    """Keyword arguments of ``train_from_archive`` that choose where labels come from."""
    files = label_files(setting, kind, ipc, seed, steps)
    if files is None:
        return {}
    source = label_source(files)
    if isinstance(source, torch.nn.Module):
        return {"label_function": source.to(setting.device)}
    return {"stored": files}


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
        "label_bytes": label_bytes(setting, kind, ipc, seed, steps),
        "archive_bytes": path.stat().st_size,
    }


# --- fidelity ------------------------------------------------------------------------------------


class _Pictures(torch.utils.data.Dataset):
    """Held-out images as PIL, which an archive without images labels."""

    def __init__(self, images):
        self._images = images
        self.targets = images.labels.tolist()

    def __len__(self):
        return len(self._images)

    def __getitem__(self, row):
        from PIL import Image

        return Image.fromarray(self._images.pixels[row]), self.targets[row]


def compare(wanted, labels):
    """Agreement in percent and mean KL(teacher ‖ labels), both at the labels' T, in nats."""
    wanted, labels = wanted.double(), labels.double()
    same = (wanted.argmax(1) == labels.argmax(1)).double().mean()
    log_q = labels.clamp(min=1e-12).log()
    kl = (wanted * (wanted.clamp(min=1e-300).log() - log_q)).sum(1).mean()
    return {"agreement": round(100 * float(same), 2), "kl": round(float(kl), 6)}


def fidelity_of(setting, kind, _):
    """Every source's labels on the same augmented views of images that nothing was fitted on."""
    held_out = setting.split[1]
    pictures = _Pictures(held_out)
    projector = probe(setting)[0] if kind == "probe" else setting.fitted_main()[0]
    name = "probe" if kind == "probe" else "main"
    path = archive_of(setting, f"labels-only-{name}", projector, None)
    shared = {"images": pictures, "seed": 1, "base": setting.base_argument}
    teacher = {"label_function": setting.teacher, "temperature": TEMPERATURE}
    reference = HelloDataset(path, **shared, **teacher)
    rows = np.arange(len(held_out))
    wanted, got = [], []
    given, files = {}, None
    if kind in {"stored", "topk", "pruned"}:
        form = {"stored": "safetensors", "topk": "topk", "pruned": "pruned"}[kind]
        files = setting.work / "labels" / f"held-out-{kind}"
        k = min(TOP_K, len(setting.train.classes))
        kept(
            files,
            lambda to: write_labels(reference, to, epochs=HELD_OUT_VIEWS, form=form, k=k),
        )
        given = {"stored": files}
    elif kind in {"teacher", "teacher-int8"}:
        files = label_files(setting, kind, setting.profile.ipcs[0], 0, setting.profile.steps)
        given = {"label_function": label_source(files), "temperature": TEMPERATURE}
    labels = "hard" if kind == "hard" else "soft"
    dataset = HelloDataset(path, labels=labels, **shared, **given)
    for epoch in range(HELD_OUT_VIEWS):
        for first in range(0, len(rows), 250):
            indices = [
                hellofmt.loading.sampler.EpochIndex(int(row), epoch)
                for row in rows[first : first + 250]
            ]
            wanted += [label for _, label in reference.__getitems__(indices)]
            got += [label for _, label in dataset.__getitems__(indices)]
    result = compare(torch.stack(wanted), torch.stack(got))
    if kind == "hard":
        # A one-hot label gives the other classes nothing, and their logarithm is infinite.
        result["kl"] = None
    return {**result, "source": kind, "views": len(got), "temperature": TEMPERATURE}


# --- made once, as cells of their own so that they stand in the cost table ----------------------


def teacher_cell(setting, _):
    trajectory = setting.trajectory
    teacher = setting.teacher
    return {
        "network": setting.profile.teacher,
        "classes": len(setting.train.classes),
        "images": [len(setting.split[0]), len(setting.split[1]), len(setting.test)],
        "parameters": sum(p.numel() for p in teacher.network.parameters()),
        "steps": setting.steps(setting.profile.teacher_epochs, setting.profile.batch_size),
        "epochs": setting.profile.teacher_epochs,
        "validation": [round(c.accuracy, 2) for c in trajectory.checkpoints],
        "top1": round(teacher_accuracy(teacher, setting.test, setting.size), 2),
    }


def fit_cell(setting, make, epochs, rank, _):
    projector, fidelity = make()
    rows = []
    for storage, size, labeler in stored_labelers(
        projector, ("float32", "float16", "int8", "int4")
    ):
        rows.append(
            {
                "storage": storage,
                "bytes": size,
                "top1": round(teacher_accuracy(labeler.logits, setting.test, setting.size), 2),
                "fidelity": held_out_fidelity(setting, labeler.logits),
            }
        )
    return {
        "rank": rank,
        "trained": projector.trained_count(),
        # Of a public base in float16; one whose head starts from text needs its text tower too.
        "base_bytes": 0 if setting.name == DIGITS else base_bytes(setting),
        "epochs": epochs,
        "steps": setting.steps(epochs, setting.profile.fit_batch),
        "validation_agreement": round(fidelity.agreement, 2),
        "validation_kl_t1": round(fidelity.kl, 4),
        "top1": round(teacher_accuracy(projector.eval(), setting.test, setting.size), 2),
        "storages": rows,
    }


def base_bytes(setting):
    """The whole public model, text tower included, at 2 bytes a parameter."""
    import open_clip

    name, tag = setting.base_text, None
    if name.startswith("open_clip:"):
        _, name, tag = name.split(":")
    model = open_clip.create_model(name, pretrained=tag, load_weights=False)
    return 2 * sum(p.numel() for p in model.parameters())


def held_out_fidelity(setting, logits, teacher=None):
    """Agreement and KL at T on augmented views of the validation part."""
    held_out, views = setting.split[1], setting.views
    teacher = setting.teacher if teacher is None else teacher
    batches = ArrayBatches(
        held_out.pixels, held_out.labels, len(held_out.classes), views, 250, seed=1
    )
    wanted, got = [], []
    with torch.inference_mode():
        for k in range(-(-len(held_out) * HELD_OUT_VIEWS // 250)):
            batch = batches.batch(k).views
            wanted.append(torch.softmax(teacher(batch) / TEMPERATURE, 1))
            got.append(torch.softmax(logits(batch) / TEMPERATURE, 1))
    return compare(torch.cat(wanted), torch.cat(got))


# --- the paper's ablation ------------------------------------------------------------------------

ABLATION = ("probe", "weak", "low-rank", "text", "refined")


def ablation_teacher(setting, row, ipc):
    """The last checkpoint for the first row, then the pool that suits the images per class."""
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
    """The label function and the archive of one row."""
    projector, _ = ablation_projector(setting, row, ipc)
    teacher = ablation_teacher(setting, row, ipc)
    chosen, losses = select(setting, ipc, factor=2), None
    if row == "refined":
        plan = RefineSettings(steps=setting.profile.refine_steps)
        done = refine_images(chosen, setting.train, projector, setting.views, plan)
        chosen, losses = done.selection, (done.before, done.after)
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
        "refine_loss": losses,
    }


def ablation_student(setting, row, ipc, seed, _):
    """A student of one row; ``hard`` and ``teacher`` are the controls on the same mosaics."""
    name = "text" if row in {"hard", "teacher"} else row
    path = setting.work / "archives" / f"ablation-{name}-ipc{ipc}.hello"
    given = {}
    if row == "teacher":
        given = {"label_function": ablation_teacher(setting, "text", ipc)}
    profile = setting.profile
    result = train_one(
        setting,
        row,
        path,
        network=profile.student,
        steps=profile.steps,
        seed=seed,
        **given,
    )
    return {**result, "row": row, "ipc": ipc}


# --- classes that arrive in steps ----------------------------------------------------------------


class _Seen(torch.nn.Module):
    """A label function over the classes seen so far: their logits, and softmax over these."""

    def __init__(self, function, classes):
        super().__init__()
        self._function = function
        self._classes = classes

    def forward(self, views):
        return self._function(views)[:, self._classes]


def continual_cell(setting, kind, step, seed, _):
    """A student from scratch on the images of the classes seen so far, measured on those classes.

    The protocol of Zhao and Bilen (WACV 2023) without their herding. One label function of all
    classes serves every step: its logits are cut to the classes seen, whose labels it renormalises.
    """
    profile, ipc = setting.profile, max(setting.profile.ipcs)
    count = len(setting.train.classes)
    order = np.random.default_rng(0).permutation(count)
    seen = np.sort(order[: round(count * (step + 1) / profile.continual_steps)])
    chosen = select(setting, ipc)
    rows = np.flatnonzero(np.isin(chosen.labels, seen))
    labels = np.searchsorted(seen, chosen.labels[rows])
    part = Selection(
        chosen.pixels[rows], labels, chosen.rows[rows], chosen.losses[rows], chosen.crops[rows]
    )
    classes = [setting.train.classes[k] for k in seen]
    path = kept(
        setting.work / "archives" / f"continual-{step}.hello",
        lambda to: write_images(to, part, classes, setting.views),
    )
    given = {}
    if kind == "hello":
        function = setting.fitted_main()[0].labeler().logits
    else:
        function = setting.teacher
    if kind != "hard":
        given["label_function"] = _Seen(function, torch.from_numpy(seen)).eval()
    student = build_student(profile.student, len(seen), setting.size, seed=seed)
    plan = replace(student_plan(setting, kind, len(rows)))
    if kind != "hard":
        plan = replace(plan, temperature=TEMPERATURE)
    train_from_archive(
        student, path, plan, steps=profile.steps, seed=seed, mixed=profile.mixed, **given
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


def write_images(path, selection, classes, views):
    """An archive of images with hard labels alone."""
    from hellofmt.archive import Draft, ImageItem, ImageSet, encode_image, write_archive
    from hellofmt.archive.manifest import Dataset

    items = [
        ImageItem(int(label), encode_image(pixels, "png"))
        for pixels, label in zip(selection.pixels, selection.labels, strict=True)
    ]
    draft = Draft(
        dataset=Dataset(
            name="seen", version="1.0.0", license="unknown", method="rded", sources=["seen"]
        ),
        classes=classes,
        views=views,
        images=ImageSet("png", items),
    )
    write_archive(path, draft)


# --- sensitivity ---------------------------------------------------------------------------------


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


# --- RDED's CIFAR-10 recipe ----------------------------------------------------------------------

RDED_PUBLISHED = 50.2
RDED_IPC = 10
RDED_EPOCHS = 300


def rded_teacher(setting, epochs, _):
    """ConvNet-3 with batch normalisation on crops and flips; theirs is trained longer."""
    views = view_recipe("plain", setting.size)
    views = msgspec.structs.replace(views, crop_scale=["0.25", "1.0"])
    steps = round(epochs * len(setting.train) / 128)
    count = len(setting.train.classes)
    network = build_student("convnet3", count, setting.size, seed=0)
    batches = ArrayBatches(setting.train.pixels, setting.train.labels, count, views, 128, seed=0)
    stream = ((batch.images, batch.hard) for batch in batches)
    train_student(network, stream, TEACHER_RECIPE, steps=steps, mixed=setting.profile.mixed)
    teacher = Teacher(network, views)
    folder = setting.work / "labels" / "rded-teacher"
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
    """Their selection, views, loss, schedule and number of epochs; their batch at 10 per class."""
    teacher = label_source(setting.work / "labels" / "rded-teacher")
    views = view_recipe("rded", setting.size, 1)
    chosen = select_images(setting.train, teacher, views, SelectSettings(RDED_IPC, 1, seed=seed))
    path = kept(
        setting.work / "archives" / f"rded-seed{seed}.hello",
        lambda to: write_images(to, chosen, setting.train.classes, views),
    )
    images = RDED_IPC * len(setting.train.classes)
    plan = replace(recipe("rded"), batch_size=50)
    steps = RDED_EPOCHS * images // plan.batch_size
    result = train_one(
        setting,
        "teacher",
        path,
        network="convnet3",
        steps=steps,
        seed=seed,
        plan=plan,
        label_function=teacher,
    )
    return {**result, "published": RDED_PUBLISHED}


# --- cost ----------------------------------------------------------------------------------------


def cost_cell(setting, _):
    """Arithmetic per view of each stage, counted by torch on one batch; 2 per multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = 8
    views = torch.rand(batch, 3, setting.size, setting.size)
    images = normalise(views, setting.views)
    projector = setting.fitted_main()[0]

    def count(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return round(counter.get_total_flops() / batch / 1e9, 5)

    def step(network, run):
        def work():
            run().square().sum().backward()
            for parameter in network.parameters():
                parameter.grad = None

        return work

    student = build_student(setting.profile.student, len(setting.train.classes), setting.size)
    fresh = build_student(setting.profile.teacher, len(setting.train.classes), setting.size)
    projector.train()
    result = {
        "teacher step": count(step(fresh, lambda: fresh(images))),
        "teacher label": count(lambda: setting.teacher(views)),
        "fit step": count(
            lambda: (setting.teacher(views), step(projector, lambda: projector(views))())
        ),
        "hello label": count(lambda: projector.eval().labeler().logits(views)),
        "student step": count(step(student, lambda: student(images))),
    }
    projector.eval()
    return {"gflop_per_view": result}


# --- which cells there are -----------------------------------------------------------------------

# What is tried first, by the beginning of a cell's name: the claim itself, then what explains it.
ORDER = (
    "teacher",
    "fit/main",
    "select",
    "fit/probe",
    "rivals/ipc10/h",
    "rivals/ipc10/teacher/",
    "rivals/ipc1/h",
    "rivals/ipc1/teacher/",
    "cost",
    "fidelity",
    "curve/longer",
    "ablation/ipc10/",
    "curve",
    "ablation",
    "rded",
    "rivals",
    "sensitivity",
    "cross",
    "continual",
)

SUITES = ("rivals", "ablation", "curve", "cross", "continual", "sensitivity", "rded", "cost")
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
WEIGHTS = (0.0, 0.025, 0.1, 0.15, 0.5, 1.0)


def cells_of(setting, suites):
    """The cells of one data set, what is needed first."""
    profile, found = setting.profile, []
    name = setting.name
    common = {
        "data": setting.digest,
        "base": digest_of(setting.base.spec)[:16],
        "mixed": profile.mixed,
    }
    sizes = {
        "teacher": [
            profile.teacher,
            profile.teacher_epochs,
            profile.teacher_rate,
            profile.batch_size,
            profile.teacher_views,
        ],
        "fit": [profile.rank, profile.fit_epochs, profile.fit_rate, profile.fit_batch],
    }

    def add(label, make, needs=(), **settings):
        order = next(i for i, head in enumerate(ORDER) if label.startswith(head))
        found.append(
            Cell(
                f"{name}/{label}",
                {**common, **settings},
                make,
                tuple(f"{name}/{need}" for need in needs),
                order,
            )
        )

    add("teacher", partial(teacher_cell, setting), sizes=sizes["teacher"])
    add(
        "fit/main",
        partial(fit_cell, setting, setting.fitted_main, profile.fit_epochs, profile.rank),
        ("teacher",),
        sizes=[*sizes["fit"], profile.start, FIT_TEMPERATURE],
    )
    add(
        "fit/probe",
        partial(fit_cell, setting, partial(probe, setting), profile.probe_epochs, 0),
        ("teacher",),
        sizes=[profile.probe_epochs, profile.fit_rate, profile.fit_batch],
    )
    add(
        "select",
        lambda _: {
            "images": len(select(setting, max((10, *profile.ipcs, *profile.long_ipcs))).labels)
        },
        ("teacher",),
        candidates=profile.candidates,
    )
    fits = ("fit/main", "fit/probe", "select")
    run = {"steps": profile.steps, "batch": profile.student_batch, "rate": profile.student_rate}
    if "ablation" in suites and profile.ablation_epochs:
        most = max(profile.ipcs)
        for ipc in sorted(profile.ipcs, reverse=True):
            for row in ABLATION:
                # What shares a fit or a choice of images waits for the cell that makes it.
                needs = ["teacher"]
                if row == "refined":
                    needs.append(f"ablation/ipc{ipc}/text")
                elif row != "probe":
                    needs.append(f"ablation/ipc{ipc}/probe")
                elif ipc != most:
                    needs.append(f"ablation/ipc{most}/probe")
                add(
                    f"ablation/ipc{ipc}/{row}",
                    partial(ablation_cell, setting, row, ipc),
                    tuple(needs),
                    epochs=profile.ablation_epochs,
                    probe=profile.probe_epochs,
                    rate=[profile.fit_rate, profile.fit_batch],
                    rank=profile.rank,
                    refine=profile.refine_steps,
                    candidates=profile.candidates,
                )
            for row in (*ABLATION, "hard", "teacher"):
                source = "text" if row in {"hard", "teacher"} else row
                for seed in profile.seeds:
                    add(
                        f"ablation/ipc{ipc}/{row}/seed{seed}",
                        partial(ablation_student, setting, row, ipc, seed),
                        (f"ablation/ipc{ipc}/{source}",),
                        student=profile.student,
                        **run,
                    )
    if "rivals" in suites:
        for kind in RIVALS:
            if kind != "random":
                add(
                    f"fidelity/{kind}",
                    partial(fidelity_of, setting, kind),
                    fits,
                    k=TOP_K,
                    views=HELD_OUT_VIEWS,
                )
        plans = [(ipc, RIVALS) for ipc in profile.ipcs]
        plans += [(ipc, LONG_RIVALS) for ipc in profile.long_ipcs]
        for ipc, kinds in plans:
            for seed in profile.seeds:
                for kind in kinds:
                    add(
                        f"rivals/ipc{ipc}/{kind}/seed{seed}",
                        partial(rival, setting, kind, ipc, seed, profile.student, profile.steps),
                        fits,
                        student=profile.student,
                        **run,
                    )
    if "cross" in suites:
        for network in profile.cross:
            for kind in LONG_RIVALS:
                add(
                    f"cross/{network}/{kind}",
                    partial(rival, setting, kind, max(profile.ipcs), 0, network, profile.steps),
                    fits,
                    **run,
                )
    if "curve" in suites:
        if profile.longer_epochs:
            epochs = profile.fit_epochs + profile.longer_epochs
            add(
                "curve/longer",
                partial(fit_cell, setting, setting.fitted_longer, epochs, profile.rank),
                ("fit/main",),
                epochs=profile.longer_epochs,
            )
        for rank in profile.ranks:
            make = partial(
                setting.fitted, setting.projector_settings(rank=rank), profile.curve_epochs
            )
            add(
                f"curve/rank{rank}",
                partial(fit_cell, setting, make, profile.curve_epochs, rank),
                ("teacher",),
                epochs=profile.curve_epochs,
                rate=[profile.fit_rate, profile.fit_batch],
            )
    if "continual" in suites:
        for step in range(profile.continual_steps):
            for kind in LONG_RIVALS:
                add(
                    f"continual/step{step}/{kind}",
                    partial(continual_cell, setting, kind, step, 0),
                    fits,
                    of=profile.continual_steps,
                    student=profile.student,
                    **run,
                )
    if "sensitivity" in suites and profile.sensitivity:
        knobs = [("temperature", value) for value in TEMPERATURES]
        knobs += [("beta", value) for value in WEIGHTS]
        for knob, value in knobs:
            for seed in profile.seeds:
                add(
                    f"sensitivity/{knob}-{value:g}/seed{seed}",
                    partial(sensitivity_cell, setting, knob, value, seed),
                    fits,
                    student=profile.student,
                    **run,
                )
    if "rded" in suites and profile.rded_epochs and setting.name.startswith("cifar10"):
        epochs = profile.rded_epochs
        add("rded/teacher", partial(rded_teacher, setting, epochs), epochs=epochs)
        for seed in profile.seeds:
            add(f"rded/seed{seed}", partial(rded_cell, setting, seed), ("rded/teacher",))
    if "cost" in suites:
        add("cost", partial(cost_cell, setting), fits)
    return found


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", default=[], help="folder with train and val")
    parser.add_argument("--base", default="", help="as for `hello fit`")
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"), help="cells and work")
    parser.add_argument("--profile", default="cpu", choices=tuple(PROFILES))
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--only", default="", help="only cells whose name holds this, and needs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a thread each")
    parser.add_argument("--no-digits", action="store_true")
    parser.add_argument("--resume", type=Path, help="take over finished cells of a results file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = set(args.suites.split(",")) - set(SUITES)
    if unknown:
        parser.error(f"--suites: unknown {sorted(unknown)[0]}; expected {', '.join(SUITES)}")
    if args.data and not args.base:
        parser.error("--base: expected one for --data")
    return args


def all_cells(args):
    """The cells of every data set, in the order they are tried."""
    found = []
    for data in [*args.data, *([] if args.no_digits else [None])]:
        setting = read_setting(data, args.base, args.profile, args.out / "work", args.device)
        found += cells_of(setting, args.suites.split(","))
    if args.only:
        by_name = {cell.name: cell for cell in found}
        wanted = [cell.name for cell in found if args.only in cell.name]
        for name in wanted:
            wanted += [need for need in by_name[name].needs if need not in wanted]
        found = [cell for cell in found if cell.name in wanted]
    cells = Cells(args.out / "cells" / args.profile, found, machine(args.device))
    if args.resume is not None:
        cells.adopt(json.loads(args.resume.read_text())["cells"])
    return cells


def main():
    args = arguments()
    if args.worker:
        torch.set_num_threads(1 if args.jobs > 1 else torch.get_num_threads())
        all_cells(args).work(lambda text: print(text, flush=True))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    sys.exit(run_workers(command, args.jobs))


if __name__ == "__main__":
    main()
