"""Make the label sources of the comparisons, all real files: archives, teachers, stored labels.

Everything is made once, kept in the work folder of its ``Setting``, and read afterwards.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import torch

import hellofmt
from hellofmt.archive import Draft, ImageItem, ImageSet, Texts, write_archive
from hellofmt.archive.format.manifest import Dataset
from hellofmt.distillation import (
    DistillSettings,
    Selection,
    SelectSettings,
    StoredImages,
    select_images,
    write_distilled,
)
from hellofmt.distillation.selection import METHODS
from hellofmt.ledger import ledger_of
from hellofmt.loading import HelloDataset, write_labels
from hellofmt.runs import Stages
from hellofmt.runs.results import Result
from hellofmt.teacher import label_source, write_teacher

TOP_K = 10
PRUNED_TO = 10
STORAGE = "int8"
# Forms of ``write_labels`` by label source.
FORMS = {"stored": "safetensors", "topk": "topk", "pruned": "pruned"}


def kept(path, make):
    """Return a file or folder that ``make`` writes to a path, once.

    Two workers may make it at the same time: both make the same, and the first result stays.
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
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def taken(chosen, rows):
    """Return some of the chosen images."""
    found = {n: None if v is None else v[rows] for n, v in vars(chosen).items()}
    return Selection(**found)


def first_of_each(chosen, count):
    """Take the first ``count`` images of each class: the choice for fewer images."""
    ipc = int(np.bincount(chosen.labels)[0])
    return taken(chosen, np.flatnonzero(np.arange(len(chosen.labels)) % ipc < count))


def select(setting, ipc, *, method="rded", factor=1):
    """Select images by a method; the first of each class are the choice for fewer."""
    profile = setting.profile
    most = max((10, *profile.ipcs, *profile.long_ipcs, *profile.curve_ipcs))
    if factor == 1 and ipc < most:
        return first_of_each(select(setting, most, method=method), ipc)
    candidates = max(profile.candidates, ipc)
    settings = SelectSettings(ipc, factor, method=method, candidates=candidates)
    return setting.once(settings, lambda: _selected(setting, settings))


def _selected(setting, settings):
    inputs = {"data": setting.digest, "teacher": setting.teacher, "select": settings}
    labeler = None
    if settings.is_embedded:
        projector = setting.fitted_main()[0]
        inputs["projector"], labeler = projector, projector.labeler()

    def make(_path):
        chosen = select_images(
            setting.train, setting.teacher, setting.views, settings, labeler=labeler
        )
        return Result({n: v for n, v in vars(chosen).items() if v is not None}, {})

    return Selection(**Stages(setting.work / "selections").run("select", inputs, make).tensors)


def method_of(setting, kind, ipc):
    """Return how the images of a label source are chosen: by its name, else as the profile does."""
    if kind in METHODS:
        return kind
    return SelectSettings(ipc).method if setting.profile.views_per_image else "rded"


def probe(setting):
    """Fit a linear probe on the base: no deltas, a full head."""
    settings = setting.projector_settings(targets=(), start="stored")
    epochs = setting.profile.probe_epochs
    return setting.once("probe", lambda: setting.fitted(settings, epochs))


def archive_of(setting, name, projector, selection):
    """Write an archive of chosen images and a fitted projector (or none)."""
    return kept(
        setting.folder / "archives" / f"{name}.hello",
        lambda path: write_distilled(
            path,
            selection,
            projector,
            setting.train,
            setting.student_views,
            DistillSettings(None, storage=STORAGE, texts=Texts(name=name, card="")),
        ),
    )


def archive_for(setting, budget):
    """Return the archive that a number of bytes buys, and what was bought."""
    from hellofmt.distillation.budget import affordable, filled

    projector = setting.fitted_main()[0].cpu()
    texts = Texts(name=f"bytes-{budget}", card="")
    plan = DistillSettings(SelectSettings(0), storage=STORAGE, texts=texts, budget=budget)
    plan = affordable(setting.train, setting.student_views, plan, projector)
    chosen = select(setting, plan.select.ipc, method=plan.select.method)
    rest = (setting.train, setting.student_views)
    plan = filled(chosen, *rest, plan, projector)
    path = kept(
        setting.folder / "archives" / f"bytes-{budget}.hello",
        lambda to: write_distilled(to, chosen, projector, *rest, plan),
    )
    quality = "" if plan.quality is None else f" {plan.quality}"
    return path, f"{plan.select.ipc} per class, {plan.codec.upper()}{quality}"


def archive(setting, kind, ipc):
    """Return the archive of a label source for a number of images per class."""
    projector = probe(setting)[0] if kind == "probe" else setting.fitted_main()[0]
    method = method_of(setting, kind, ipc)
    chosen = select(setting, ipc, method=method)
    name = "probe" if kind == "probe" else "hello"
    return archive_of(setting, f"{name}-{method}-ipc{ipc}", projector, chosen)


def epochs_of(setting, ipc, steps):
    """Return how many views of each image a run shows, where all of them are new."""
    profile, images = setting.profile, len(setting.train.classes) * ipc
    epochs = -(-steps * min(profile.student_batch, images) // images)
    return min(epochs, profile.views_per_image or epochs)


def label_files(setting, kind, ipc, seed, steps):
    """Write the teacher's labels to disk in a rival's form; None if the source stores none."""
    path = archive(setting, kind, ipc)
    profile = setting.profile
    if kind in {"teacher", "teacher-int8"}:
        storage = "int8" if kind == "teacher-int8" else "float32"
        return kept(
            setting.folder / "labels" / kind,
            lambda folder: write_teacher(
                folder,
                profile.teacher,
                setting.teacher,
                classes=[line.key for line in setting.train.classes],
                views=setting.views,
                storage=storage,
            ),
        )
    if kind not in FORMS:
        return None
    epochs = epochs_of(setting, ipc, steps)
    if profile.views_per_image:
        # Every seed shows the same views, so one file serves all.
        seed = 0
    if kind == "pruned":
        epochs = -(-epochs // PRUNED_TO)

    def make(folder):
        dataset = HelloDataset(
            path,
            seed=seed,
            label_function=setting.teacher,
            temperature=setting.profile.temperature,
            device=setting.device,
        )
        write_labels(
            dataset,
            folder,
            epochs=epochs,
            form=FORMS[kind],
            k=min(TOP_K, len(setting.train.classes)),
        )

    return kept(setting.folder / "labels" / f"{kind}-ipc{ipc}-seed{seed}-{epochs}", make)


def label_bytes(setting, kind, ipc, seed, steps):
    """Return the bytes of the labels alone, on disk, for this run."""
    if kind == "hard":
        return 0
    files = label_files(setting, kind, ipc, seed, steps)
    if files is not None:
        return size_of(files)
    with hellofmt.open(archive(setting, kind, ipc)) as file:
        return ledger_of(file).payload


def labels_for(setting, kind, ipc, seed, steps):
    """Return keyword arguments of ``train_from_archive`` that select the label source."""
    files = label_files(setting, kind, ipc, seed, steps)
    if files is None:
        return {}
    source = label_source(files)
    if isinstance(source, torch.nn.Module):
        return {"label_function": source.to(setting.device)}
    if setting.profile.views_per_image:
        return {"stored": files, "views_per_image": epochs_of(setting, ipc, steps)}
    return {"stored": files}


def image_bytes(path):
    """Return the bytes of an archive but for its label function."""
    with hellofmt.open(path) as file:
        ledger = ledger_of(file)
    return ledger.total - ledger.payload


def write_images(path, selection, source, classes, views):
    """Write an archive of images chosen from a source, with hard labels only."""
    files = StoredImages(selection, source, views).files()
    items = [
        ImageItem(int(label), data) for data, label in zip(files, selection.labels, strict=True)
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
