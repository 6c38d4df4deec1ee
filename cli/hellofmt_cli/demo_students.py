"""The students of ``hello demo``: new networks that train in processes which are handed a path."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from hellofmt.archive import ClassLine
from hellofmt.making import HardBatches, ViewBatches
from hellofmt.sources import ArrayImages
from hellofmt.student import build_student, evaluate, train_from_archive, train_student
from hellofmt.teacher import load_teacher
from hellofmt_cli.console import console
from hellofmt_cli.demo_settings import STUDENT, TEACHER, DemoSettings, archive_path

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from numpy.typing import NDArray

Column = Literal["hard", "random", "hello", "teacher", "full"]

COLUMNS: dict[Column, str] = {
    "hard": "hard labels",
    "random": "random images, labels from their .hello file",
    "hello": "labels from the .hello file",
    "teacher": "labels from the teacher itself",
    "full": "all data",
}
"""Where a student's labels come from, as the table names it; images are chosen but for one."""


@dataclass(frozen=True)
class Job:
    """One student: everything that the process which trains it is told.

    Attributes:
        column: where labels come from.
        ipc: images per class; 0 for all data.
        seed: seed of weights, order and views.
        archive: path of the archive; empty for "full".
        data: path of a .npz with the measured images, and the training images for "full".
        teacher: path of the teacher's tensors.
        settings: settings of the demo.
    """

    column: Column
    ipc: int
    seed: int
    archive: str
    data: str
    teacher: str
    settings: DemoSettings


def student_jobs(out: Path, settings: DemoSettings) -> list[Job]:
    """Every student; the slow ones first, so that no process is left with one at the end."""
    data, teacher = str(out / "data.npz"), str(out / "teacher.safetensors")
    jobs: list[Job] = []
    for column in ("hello", "random", "teacher", "hard"):
        for ipc in settings.ipcs:
            archive = str(archive_path(out, ipc, is_random=column == "random"))
            jobs += [Job(column, ipc, s, archive, data, teacher, settings) for s in settings.seeds]
    jobs += [Job("full", 0, seed, "", data, teacher, settings) for seed in settings.seeds]
    return jobs


def run_job(job: Job) -> float:
    """Train one student and measure it: top-1 in percent."""
    settings, seed = job.settings, job.seed
    with np.load(job.data, allow_pickle=False) as arrays:
        data: dict[str, NDArray[Any]] = dict(arrays)
    views = settings.views
    network = build_student(STUDENT, 10, views.size, seed=seed)
    hard = replace(settings.student, loss="ce")
    lines = tuple(ClassLine(str(digit), (str(digit),)) for digit in range(10))
    if job.column == "full":
        images = ArrayImages(data["train_pixels"], data["train_labels"], lines)
        batches = ViewBatches(images, views, hard.batch_size, seed)
        train_student(network, HardBatches(batches), hard, steps=settings.steps)
    else:
        soft = replace(settings.student, temperature=settings.temperature)
        recipe = hard if job.column == "hard" else soft
        # None takes the archive's.
        teacher = load_teacher(job.teacher, TEACHER, 10) if job.column == "teacher" else None
        train_from_archive(
            network,
            job.archive,
            recipe,
            steps=settings.steps,
            seed=seed,
            label_function=teacher,
        )
    return evaluate(network, ArrayImages(data["pixels"], data["labels"], lines), views)


def _one_thread() -> None:
    torch.set_num_threads(1)


class _Here(Executor):
    """Runs a job at once, in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def executor(processes: int) -> Executor:
    """Where jobs run: in so many processes, or here if there are none."""
    if processes == 0:
        return _Here()
    # Spawned: a fork would hand over this process's memory, teacher and all.
    return ProcessPoolExecutor(processes, get_context("spawn"), _one_thread)


def submit(pool: Executor, jobs: list[Job]) -> dict[Future[float], Job]:
    """Start jobs; the accuracy that each promises, and the job it is of."""
    return {pool.submit(run_job, job): job for job in jobs}


def scores_of(
    jobs: list[Job], futures: dict[Future[float], Job]
) -> dict[tuple[Column, int], list[float]]:
    """Wait for the accuracies: by (column, ipc), in the order of the seeds."""
    done: dict[tuple[Column, int, int], float] = {}
    with step_bar("students", len(jobs)) as on_step:
        for future in as_completed(futures):
            job = futures[future]
            done[job.column, job.ipc, job.seed] = future.result()
            on_step(len(done), None)
    scores: dict[tuple[Column, int], list[float]] = {}
    for job in jobs:
        scores.setdefault((job.column, job.ipc), []).append(done[job.column, job.ipc, job.seed])
    return scores


@contextmanager
def step_bar(label: str, total: int) -> Generator[Callable[[int, object], None]]:
    """A progress bar for ``on_step`` callbacks."""
    with console.stage(label) as update:

        def on_step(done: int, _: object) -> None:
            update(done, total)

        yield on_step
