"""A run of ``hello demo``: the whole idea on real data, without a download or a GPU.

It does what the field does at scale, on scikit-learn's digits: trains a teacher, distils the digits
into one file with 1 and one with 10 images per class, and trains new networks from each file alone.
Every column of its table has the same recipe, views and number of steps; they differ in where
labels come from and in nothing else.

What keeps it honest. The test images are split off first and looked at once, at the end; every
constant of ``demo_settings`` was chosen on a part of the *training* images (``validate``), never on
them. Seeds are 0, 1, 2, fixed in advance. Students run in processes of their own that are handed a
path, as a stranger would be, and the label function's column goes through ``HelloDataset`` like any
user's code. The hard-label control gets the same crops and CutMix, its labels mixed by area.
"""

from __future__ import annotations

import time
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hellofmt.distillation import FitHooks, distill
from hellofmt.runs import Stages
from hellofmt.teacher import save_teacher, train_teacher
from hellofmt_cli.console import console
from hellofmt_cli.demo_report import result_document
from hellofmt_cli.demo_settings import TEACHER, Data, DemoSettings, archive_path, split_data
from hellofmt_cli.demo_students import executor, scores_of, step_bar, student_jobs, submit
from hellofmt_cli.inputs import read_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hellofmt.teacher import Teacher


def run_demo(
    out: Path, settings: DemoSettings | None = None, *, say: Callable[[str], None] = console.write
) -> dict[str, Any]:
    """Run the demo and write the archives, ``teacher.safetensors`` and ``data.npz``."""
    settings = DemoSettings() if settings is None else settings
    start = time.monotonic()
    # One thread: these tensors are too small to share, two threads on a busy machine wait for each
    # other, and the numbers do not depend on how many cores there are.
    torch.set_num_threads(1)
    data = split_data(settings)
    train, measured = data.train, data.measured
    say(
        f"[1/6] The data: {len(train) + len(measured):,} real handwritten digits;"
        f" {len(measured)} of them are set aside to measure on, and nothing is chosen by them."
    )
    np.savez(
        out / "data.npz",
        pixels=measured.pixels,
        labels=measured.labels,
        train_pixels=train.pixels,
        train_labels=train.labels,
    )
    with executor(settings.processes) as pool:
        # The control with all data needs no archive, so it uses the core that the fit leaves idle.
        jobs = student_jobs(out, settings)
        futures = submit(pool, [job for job in jobs if job.column == "full"])
        facts = _make_archives(out, settings, data, say)
        say(
            f"[5/6] Training {len(jobs)} new networks, {settings.steps} steps each, in processes"
            " that get nothing but a path; only the source of the labels differs."
        )
        futures |= submit(pool, [job for job in jobs if job.column != "full"])
        scores = scores_of(jobs, futures)
    result = result_document(out, settings, scores) | facts
    result["measured_on"] = "validation" if settings.validate else "test"
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


def _make_archives(
    out: Path, settings: DemoSettings, data: Data, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train a teacher and distil the digits with it; what was measured on the way."""
    say(
        f"[2/6] Training the teacher on the other {len(data.train):,} with hard labels: its soft"
        " labels are what usually gets stored."
    )
    teacher = _teacher(out, settings, data)
    say(
        "[3/6] Fitting the label function: low-rank changes of a fixed encoder, until it labels"
        " views as the teacher does."
    )
    stages = Stages(out / "work", say=lambda text: say(f"      {text}"))
    base = read_base("seeded", settings.views)
    facts: dict[str, Any] = {}
    for ipc, is_random in product(settings.ipcs, (False, True)):
        path = archive_path(out, ipc, is_random=is_random)
        with step_bar("projector", settings.fit.steps) as on_step:
            report = distill(
                data.train,
                path,
                settings.distillation(ipc, is_random=is_random),
                teacher=teacher,
                base=base,
                views=settings.views,
                held_out=data.measured,
                force=True,
                work=stages,
                hooks=FitHooks(on_step=on_step),
            )
        if not facts:
            facts = {
                "teacher": round(report.teacher_accuracy, 2),
                "projector": {
                    "accuracy": round(report.projector_accuracy, 2),
                    "agreement": round(report.fidelity.agreement, 2),
                    "kl": round(report.fidelity.kl, 4),
                },
            }
            say(
                f"      The teacher gets {report.teacher_accuracy:.1f} % right, the label function"
                f" {report.projector_accuracy:.1f} % by itself, with {report.trained:,} trained"
                f" numbers.\n      They agree on {report.fidelity.agreement:.0f} % of new views,"
                " most of them mixed from two images."
            )
            say("[4/6] Writing the label function with chosen images, and with random ones.")
        images = ipc * len(data.train.classes)
        say(f"      {path}: {images} images, {path.stat().st_size:,} bytes.")
    stages.remove()
    return facts


def _teacher(out: Path, settings: DemoSettings, data: Data) -> Teacher:
    """Train the teacher, and keep it for the column that asks it for labels."""
    with step_bar("teacher", settings.teacher_steps) as on_step:
        teacher = train_teacher(
            data.train,
            settings.views,
            network=TEACHER,
            steps=settings.teacher_steps,
            on_step=on_step,
        )
    save_teacher(teacher, out / "teacher.safetensors")
    return teacher
