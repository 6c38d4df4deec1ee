"""Measure what students lose with a pool of K views per image, and what their labels cost then.

    python benchmarks/pool.py --data DIR [--data DIR ...] --base BASE [--images 100]

One student, recipe and order, 300 epochs of some distilled images. Columns: hard labels; the label
function with a pool of K views per image, each labelled once (the largest by a tower in bfloat16),
and with a new view every time; the teacher's float16 labels stored for all epochs (FKD), and its
ten largest for a tenth of them (LPQLD). Students are measured on validation images cut from the
training part, which choose K, and on test images, which choose nothing.

One process and one thread train all of them in turn, seed by seed, so that each seed's run on hard
labels stands beside the others. Seconds are processor time of the whole training, that of building
the labeler included, but not of storing labels. A run can be killed and goes on with the next cell;
without ``--data`` the page is written again from ``results/pool-cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from cells import MALLOC, Cell, Cells, machine, run_workers
from found import STORED_EPOCHS
from pool_page import ARMS, BFLOAT16, POOLS, RESULT, write_page
from setting import read_setting
from sources import archive, label_bytes, labels_for
from students import train_one

from hellofmt.loading import HelloDataset
from hellofmt.sources import stratified_split
from hellofmt.teacher import teacher_accuracy

VALIDATION = 5000
SEEDS = range(5)
# What all seeds try first, and then the others.
ORDER = (("hard", "unlimited", "k16", "k32"), ("stored", "pruned", "k4", "k1"), ("k64-bfloat16",))


def pool_setting(data, base, out, images):
    """Return a setting of 300 epochs, and images that choose K, which nothing else has seen."""
    setting = read_setting(data, base, "cpu", out / "pool")
    heavy = len(setting.train.classes) >= 50
    profile = replace(
        setting.profile,
        teacher="resnet10w16",
        teacher_epochs=4 if heavy else 3,
        fit_epochs=1 if heavy else 0.5,
        steps=STORED_EPOCHS * images // setting.profile.student_batch,
        ipcs=(images // len(setting.train.classes),),
        long_ipcs=(),
    )
    count = min(VALIDATION, len(setting.train) // 6)
    rest, held_out = stratified_split(setting.train.labels, count, seed=0)
    validation = setting.train.subset(held_out)
    return replace(setting, train=setting.train.subset(rest), profile=profile), validation


def functions_cell(setting, validation, _):
    """Train the teacher, fit the label function and write the archive; measure both networks."""
    archive(setting, "hello", setting.profile.ipcs[0])
    projector = setting.fitted_main()[0].eval()
    return {
        "classes": len(setting.train.classes),
        "validation": len(validation),
        "teacher": round(teacher_accuracy(setting.teacher, setting.test, setting.size), 2),
        "function": round(teacher_accuracy(projector, setting.test, setting.size), 2),
    }


@contextmanager
def label_clock():
    """Add up the processor seconds of everything that a data set does for its soft labels."""
    spent = [0.0]

    def timed(method):
        def work(*given, **more):
            start = time.process_time()
            result = method(*given, **more)
            spent[0] += time.process_time() - start
            return result

        return work

    with patch.object(HelloDataset, "labels_of", timed(HelloDataset.labels_of)):
        yield spent


def student_cell(setting, validation, arm, seed, warm, _):
    profile, ipc = setting.profile, setting.profile.ipcs[0]
    given = labels_for(setting, arm, ipc, seed, profile.steps)
    if arm in POOLS:
        given["views_per_image"] = ARMS[arm][1]
    if arm in BFLOAT16:
        given["dtype"] = torch.bfloat16
    train = partial(
        train_one, setting, arm, archive(setting, "hello", ipc), network=profile.student, seed=seed
    )
    if not warm:
        # What a process does only once belongs to no cell.
        train(steps=2)
        warm.append(True)
    with label_clock() as spent:
        result = train(steps=profile.steps, also=validation, **given)
    is_stored = arm in {"stored", "pruned"}
    return {
        **result,
        "label_seconds": round(spent[0], 2),
        "label_bytes": label_bytes(setting, arm, ipc, seed, profile.steps) if is_stored else None,
    }


def cells_of(setting, validation, number, warm):
    profile = setting.profile
    fit = {"data": setting.digest, "teacher": profile.teacher_epochs, "fit": profile.fit_epochs}
    run = {"student": profile.student, "steps": profile.steps, "rate": profile.student_rate}
    need = f"{setting.name}/functions"
    found = [Cell(need, fit, partial(functions_cell, setting, validation), order=number)]
    for arms in ORDER:
        for seed in SEEDS:
            for arm in arms:
                name, settings = f"{setting.name}/{arm}/seed{seed}", {**run, "views": ARMS[arm][1]}
                make = partial(student_cell, setting, validation, arm, seed, warm)
                found.append(Cell(name, settings, make, (need,), number))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", default=[], help="folder with train and val")
    parser.add_argument("--base", default="", help="as for `hello fit`")
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"), help="cells and work")
    parser.add_argument("--images", type=int, default=100, help="distilled images, of all classes")
    args = parser.parse_args()
    if args.data and MALLOC.items() > os.environ.items():
        sys.exit(run_workers([sys.executable, *sys.argv], 1))
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {"cells": {}, "planned": []}
    if args.data:
        torch.set_num_threads(1)
        warm, planned = [], []
        for k, data in enumerate(args.data):
            setting, validation = pool_setting(data, args.base, args.out, args.images)
            planned += cells_of(setting, validation, k, warm)
        cells = Cells(args.out / "cells" / "pool", planned)
        cells.adopt(document["cells"])

        def finished(text):
            print(text, flush=True)
            write_document(document, cells, args.images)

        cells.work(finished)
        write_document(document, cells, args.images)
    write_page(json.loads(RESULT.read_text()))


def write_document(earlier, cells, images):
    """Put the finished cells in the place of the earlier ones of their data sets."""
    names = {cell.name.split("/")[0] for cell in cells.cells}

    def others(listed):
        return [name for name in listed if name.split("/")[0] not in names]

    found = {name: earlier["cells"][name] for name in others(earlier["cells"])} | cells.finished()
    document = {
        "schema": "hello.bench.pool/1",
        "command": f"python benchmarks/pool.py --data DIR --base BASE --images {images}",
        "machine": machine(),
        "planned": [*others(earlier["planned"]), *(cell.name for cell in cells.cells)],
        "cells": dict(sorted(found.items())),
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
