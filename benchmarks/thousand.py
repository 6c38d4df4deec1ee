"""A thousand real classes: one public network's labels from another public network's features.

    python benchmarks/public_weights.py SITE WEIGHTS      # once, see there
    python benchmarks/thousand.py --tiny data/tiny100 --sample data/in1k-sample --weights WEIGHTS

The teacher is EfficientNet-Lite0 as it is, 1,000 outputs at 224 px; the base is Lite1's features
of views of 128 px. Label functions are fitted to the teacher's labels alone and measured on images
that no fit has seen, by agreement and KL. Both networks were trained on ImageNet-1K, so they may
have seen all of these images. One process and one thread; a run that is killed goes on with the
next cell. Without ``--tiny`` the page is written again from ``results/thousand-classes.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import textwrap
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from cells import Cell, Cells, machine
from tables import NONE, RESULTS, bytes_text, table

from hellofmt.archive import (
    Draft,
    changed_views,
    default_views,
    open_archive,
    read_class_lines,
    write_archive,
)
from hellofmt.archive.format.manifest import Dataset
from hellofmt.distillation import FitSettings, ProjectorSettings, fidelity, fitted_projector
from hellofmt.projector import load_base, stored_labelers
from hellofmt.runs import Stages
from hellofmt.sources import ArrayImages, decode_centre, open_source
from hellofmt.teacher import load_named_teacher

RESULT = RESULTS / "thousand-classes.json"
SIDE, EPOCHS, TEMPERATURE = 128, 300, 4.0
# Images of each class of Tiny-ImageNet, and how many of them are held out.
TINY, TINY_HELD_OUT = 20, 4
# Every so many classes the sample's image is held out.
SAMPLE_HELD_OUT = 5
# Name: weights that are adapted, and rank of the head.
ARMS = {
    "head alone": ((), None),
    "paper": ("paper", None),
    "paper, rank 64 head": ("paper", 64),
    "all": ("all", None),
    "all, rank 64 head": ("all", 64),
}
STORAGES = ("float32", "int8", "int4")


class Kept(torch.nn.Module):
    """A teacher whose logits of a batch of views are computed once for all fits."""

    def __init__(self, teacher, path):
        super().__init__()
        self.teacher, self.path = teacher, path
        self.logits = dict(np.load(path)) if path.exists() else {}

    def forward(self, views):
        key = hashlib.sha256(views.contiguous().numpy()).hexdigest()
        if key not in self.logits:
            self.logits[key] = self.teacher(views).numpy()
        return torch.from_numpy(self.logits[key])

    def keep(self):
        temporary = self.path.with_suffix(".part.npz")
        np.savez(temporary, **self.logits)
        temporary.replace(self.path)


class Thousand:
    """Data, networks and folder of a run."""

    def __init__(self, options):
        self.options = options
        self.work = options.out
        self.work.mkdir(parents=True, exist_ok=True)
        self.views = changed_views(
            default_views(SIDE),
            {"crop_scale": ["0.25", "1.0"], "mix": "cutmix", "mix_alpha": "1.0"}
            | {"mix_probability": "0.5"},
        )

    @cached_property
    def classes(self):
        lines = {line.key: line for line in read_class_lines(self.options.sample / "classes.tsv")}
        return tuple(lines[key] for key in sorted(lines))

    def images(self, folder, most):
        """Read centre squares of a folder: pixels, labels among all classes, place in the class."""
        known = {line.key: label for label, line in enumerate(self.classes)}
        found = [known[path.name] for path in sorted(folder.iterdir()) if path.is_dir()]
        source = open_source(folder, classes=[self.classes[label] for label in found])
        places = np.arange(len(source)) - np.searchsorted(source.labels, source.labels)
        rows = np.flatnonzero(places < most)
        pixels = np.stack([decode_centre(source, int(row), SIDE) for row in rows])
        return pixels, np.array(found)[source.labels[rows]], places[rows]

    @cached_property
    def parts(self):
        """Return images to fit on and, by name, images held out."""
        kept = self.work / f"images-{self.options.images}.npz"
        if not kept.exists():
            tiny = self.images(self.options.tiny / "train", self.options.images)
            sample = self.images(self.options.sample, 1)
            arrays = [np.concatenate(pair) for pair in zip(tiny, sample, strict=True)]
            is_sample = np.arange(len(arrays[1])) >= len(tiny[1])
            np.savez(kept.with_suffix(".part.npz"), *arrays, is_sample)
            kept.with_suffix(".part.npz").replace(kept)
        with np.load(kept) as arrays:
            pixels, labels, places, is_sample = arrays.values()
        images = ArrayImages(pixels, labels.astype(np.int64), self.classes, "ImageNet")
        held_out = {
            "in1k-sample": is_sample & (labels % SAMPLE_HELD_OUT == 0),
            "tiny100": ~is_sample & (places < TINY_HELD_OUT),
        }
        fit = ~np.logical_or.reduce(list(held_out.values()))
        parts = {name: images.subset(np.flatnonzero(rows)) for name, rows in held_out.items()}
        return images.subset(np.flatnonzero(fit)), parts

    @cached_property
    def teacher(self):
        keys = [line.key for line in self.classes]
        file = self.options.weights / "efficientnet_lite0.safetensors"
        teacher = load_named_teacher(f"timm:efficientnet_lite0={file}", keys, SIDE, say=print)
        return Kept(teacher, self.work / f"logits-{self.options.steps}.npz")

    @cached_property
    def base(self):
        text = f"timm:efficientnet_lite1={self.options.weights / 'efficientnet_lite1.safetensors'}"
        own = load_base(text, say=print)
        return load_base(text, preprocess=msgspec.structs.replace(own.spec.preprocess, size=SIDE))

    def fidelities(self, logits):
        """Measure on both parts that are held out."""
        found = {}
        for name, images in self.parts[1].items():
            got = fidelity(
                logits,
                self.teacher,
                images,
                self.views,
                count=self.options.measured,
                batch_size=50,
            )
            found[name] = {"agreement": round(got.agreement, 2), "kl": round(got.kl, 4)}
        return found


NAMES = ("in1k-sample", "tiny100")


def fit_cell(run, targets, head_rank, _):
    """Fit one label function; its fidelity and its bytes in an archive, by storage."""
    projector, _ = fitted_projector(
        run.parts[0],
        run.views,
        teacher=run.teacher,
        base=run.base,
        projector=ProjectorSettings(
            targets=targets, start="stored", head_rank=head_rank, temperature=TEMPERATURE
        ),
        fit=FitSettings(steps=run.options.steps, batch_size=run.options.batch),
        held_out=run.parts[1]["in1k-sample"],
        stages=Stages(run.work / "fits"),
    )
    run.teacher.keep()
    rows = [
        {"storage": storage, **sections_of(run, projector, storage)}
        | {"fidelity": run.fidelities(labeler.logits)}
        for storage, _, labeler in stored_labelers(projector, STORAGES)
    ]
    run.teacher.keep()
    return {"trained": projector.trained_count(), "storages": rows}


def sections_of(run, projector, storage):
    """Return bytes as they lie in a file without images."""
    dataset = Dataset(
        name="thousand", version="1", license="NOASSERTION", method="hello", sources=["ImageNet"]
    )
    draft = Draft(dataset, classes=run.classes, views=run.views, projector=projector.part(storage))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.hello"
        write_archive(path, draft)
        with open_archive(path) as archive:
            sizes = archive.section_sizes()
    return {name: sizes[name] for name in ("adapter", "head", "probes") if name in sizes}


def own_cell(run, _):
    """Measure the classifier that the base was published with, which costs no bytes."""
    file = run.options.weights / "efficientnet_lite1.safetensors"
    keys = [line.key for line in run.classes]
    network = load_named_teacher(f"timm:efficientnet_lite1={file}", keys, SIDE)
    network.rule = replace(network.rule, size=SIDE)
    return {"fidelity": run.fidelities(network)}


def cells_of(run):
    options = run.options
    facts = {"steps": options.steps, "batch": options.batch, "images": options.images}
    facts |= {"measured": options.measured, "side": SIDE}
    yield Cell("thousand/own", facts, partial(own_cell, run), order=9)
    for place, (name, (targets, rank)) in enumerate(ARMS.items()):
        settings = {**facts, "targets": targets, "head_rank": rank}
        yield Cell(f"thousand/{name}", settings, partial(fit_cell, run, targets, rank), order=place)


def page(document):
    """Write the table: what a label function of a thousand classes weighs and keeps."""
    cells = document["cells"]
    options = document["options"]
    lines = ["# A thousand real classes", ""]
    for paragraph in INTRODUCTION.format(**options).split("\n\n"):
        lines += [textwrap.fill(paragraph, 100, break_on_hyphens=False), ""]
    rows = []
    for name in ARMS:
        cell = cells.get(f"thousand/{name}", {"error": "not run"})
        if "error" in cell:
            lines += [f"{name}: {cell['error']}", ""]
            continue
        for row in cell["storages"]:
            parts = {f"{part}, bytes": row.get(part, 0) for part in ("adapter", "head", "probes")}
            total = sum(parts.values())
            rows.append(
                {"adapted": name, "storage": row["storage"]}
                | {part: f"{size:,}" for part, size in parts.items()}
                | {"in all": bytes_text(total)}
                | {f"of {ipc} per class": _share(total, ipc) for ipc in (1, 50)}
                | {part: _fidelity(row["fidelity"][part]) for part in NAMES}
            )
    own = cells.get("thousand/own", {}).get("fidelity")
    if own is not None:
        parts = {part: _fidelity(own[part]) for part in NAMES}
        rows.append(dict.fromkeys(rows[0] if rows else parts, NONE) | parts)
        rows[-1]["adapted"] = "the base's own classifier"
    return "\n".join([*lines, table(rows, 2), ""])


def _share(total, ipc):
    return f"1 / {2 * EPOCHS * (1000 * ipc) * 1000 / total:,.0f}"


def _fidelity(found):
    return f"{found['agreement']:.1f} %, {found['kl']:.3f}"


INTRODUCTION = """\
Written by `{command}`. The teacher is EfficientNet-Lite0 as published, with its 1,000 outputs; the
base is EfficientNet-Lite1's features of views of 128 px, public and not counted. Each label
function was fitted for {steps} steps of {batch} views of {fit:,} images (80 % of `in1k-sample`,
one image a class; the rest of 100 classes, from Tiny-ImageNet) to the teacher's labels alone.
Agreement (same first class) and KL(teacher, labels) at T = 1 are of {measured} views each of images
that no fit has seen: {held}. Teacher and base were both trained on ImageNet-1K and may have seen
all of them. No accuracy of a student is claimed.

Stored labels of 300 epochs, float16, weigh 572 MiB at 1 image per class and 30 GB at 50; the last
columns but two are the label function's share of these. A *rank 64 head* is the product of two
factors. Bytes are those of the sections in a file."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", type=Path, help="folder of tiny100, with train/")
    parser.add_argument("--sample", type=Path, help="folder of in1k-sample, with classes.tsv")
    parser.add_argument("--weights", type=Path, help="folder of public_weights.py")
    parser.add_argument("--out", type=Path, default=Path(".cache/thousand"))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--images", type=int, default=TINY, help="of each class of tiny100")
    parser.add_argument("--measured", type=int, default=500, help="views held out, of each part")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.tiny:
        torch.set_num_threads(1)
        run = Thousand(options)
        cells = Cells(options.out / "cells", list(cells_of(run)))

        def finished(text):
            print(text, flush=True)
            write_document(run, cells)

        cells.work(finished)
        write_document(run, cells)
    document = json.loads(options.result.read_text())
    options.result.with_suffix(".md").write_text(page(document))


def write_document(run, cells):
    options = run.options
    held_out = [f"{len(images)} of {name}" for name, images in run.parts[1].items()]
    facts = {name: getattr(options, name) for name in ("steps", "batch", "images", "measured")}
    command = "python benchmarks/thousand.py --tiny DIR --sample DIR --weights DIR"
    document = {
        "schema": "hello.bench.thousand/1",
        "options": facts
        | {"command": command, "fit": len(run.parts[0]), "held": " and ".join(held_out)},
        "machine": machine(),
        "cells": dict(sorted(cells.finished().items())),
    }
    options.result.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
