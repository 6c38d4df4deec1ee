"""``hello demo``: the whole idea on real data, in two minutes, without a download or a GPU.

It does what the field does at scale, on scikit-learn's digits: trains a teacher, fits a label
function to it, keeps 1 or 10 images per class, writes them with the function into one file, and
trains new networks from that file alone. Every column of its table has the same recipe, views and
number of steps; they differ in where labels come from and in nothing else.

What keeps it honest. The test images are split off first and looked at once, at the end; every
constant below was chosen on a part of the *training* images (``validate``), never on them. Seeds
are 0, 1, 2, fixed in advance. Students run in processes of their own that are handed a path, as a
stranger would be, and the label function's column goes through ``HelloDataset`` like any user's
code. The hard-label control gets the same crops and CutMix, its labels mixed by area.
"""

from __future__ import annotations

import platform
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np
import torch
from torch.utils.data import DataLoader

import hellofmt
from hellofmt.archive import Arch, Preprocess, Views, VisionArch, open_archive
from hellofmt.distillation import (
    FitSettings,
    SelectSettings,
    fit_projector,
    select_images,
    write_distilled,
)
from hellofmt.errors import UserInputError
from hellofmt.ledger import Ledger, ledger_of, model_bytes, view_record_bytes
from hellofmt.loading import HelloDataset, normalise
from hellofmt.projector import Projector, seeded_base
from hellofmt.sources import ArrayImages, digits, stratified_split
from hellofmt.student import (
    ArrayBatches,
    PassSampler,
    Recipe,
    build_student,
    evaluate,
    train_from_archive,
    train_student,
)
from hellofmt.teacher import (
    check_teacher,
    load_teacher,
    save_teacher,
    teacher_accuracy,
    train_teacher,
)
from hellofmt_cli.output import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["COLUMNS", "DemoSettings", "Job", "demo", "run_demo", "run_job"]

Column = Literal["hard", "hello", "teacher", "full"]

COLUMNS: dict[Column, str] = {
    "hard": "hard labels",
    "hello": "labels from the .hello file",
    "teacher": "labels from the teacher itself",
    "full": "all data",
}
"""Where a student's labels come from, as the table names it."""

TEACHER = "cnn"
STUDENT = "cnn"


def _views(scale_low: str, mix_probability: str) -> Views:
    """Crops and CutMix, no flips (a flipped digit is another one, or none)."""
    return Views(
        antialias=True,
        crop_ratio=["0.75", "1.3333333333333333"],
        crop_scale=[scale_low, "1.0"],
        flip="0.0",
        interpolation="bilinear",
        mean=["0.3"] * 3,
        mix="cutmix",
        mix_alpha="1.0",
        mix_probability=mix_probability,
        shuffle=1,
        size=16,
        std=["0.32"] * 3,
    )


@dataclass(frozen=True)
class DemoSettings:
    """Every number of the demo; the defaults were chosen on validation images.

    Attributes:
        ipcs: images per class, one archive each.
        seeds: of the students; teacher, fit and selection have seed 0.
        held_out: test images of the 1,797.
        teacher_steps: of 128 views.
        fit: of the projector.
        rank: of the deltas.
        layers: of the seeded base, a vision transformer.
        width: of the same.
        temperature: of the labels and the students.
        student: recipe of every column but for its loss.
        steps: gradient steps of every student.
        views: of the archives.
        processes: that train students side by side, each on one core; 0 trains them here.
        validate: measure on a part of the training images instead of the test images.
    """

    ipcs: tuple[int, ...] = (1, 10)
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: int = 500
    teacher_steps: int = 300
    fit: FitSettings = field(
        # In float32 on every machine, so that its figures are those that are committed.
        default_factory=lambda: FitSettings(
            loss="kl", temperature=4.0, steps=1700, batch_size=32, learning_rate=6e-3
        )
    )
    rank: int = 16
    layers: int = 2
    width: int = 128
    temperature: float = 4.0
    student: Recipe = field(
        default_factory=lambda: Recipe("demo", "kl", learning_rate=3e-3, batch_size=50)
    )
    steps: int = 300
    views: Views = field(default_factory=lambda: _views("0.5", "0.8"))
    processes: int = 2
    validate: bool = False


@dataclass(frozen=True)
class Job:
    """One student: everything that the process which trains it is told.

    Attributes:
        column: where labels come from.
        ipc: images per class; 0 for all data.
        seed: of weights, order and views.
        archive: path of the archive; of "full" it is empty.
        data: path of a .npz with the measured images, and the training images for "full".
        teacher: path of the teacher's tensors.
        settings: of the demo.
    """

    column: Column
    ipc: int
    seed: int
    archive: str
    data: str
    teacher: str
    settings: DemoSettings


def run_job(job: Job) -> float:
    """Train one student and measure it: top-1 in percent.

    Args:
        job: what to do; files are all it shares with anyone.

    Returns:
        Percent, 0 to 100.
    """
    settings, seed = job.settings, job.seed
    with np.load(job.data, allow_pickle=False) as arrays:
        data: dict[str, NDArray[Any]] = dict(arrays)
    views = settings.views
    network = build_student(STUDENT, 10, views.size, seed=seed)
    hard = replace(settings.student, loss="ce")
    if job.column == "full":
        batches = ArrayBatches(
            data["train_pixels"], data["train_labels"], 10, views, hard.batch_size, seed
        )
        stream = ((batch.images, batch.hard) for batch in batches)
        train_student(network, stream, hard, steps=settings.steps)
    elif job.column == "teacher":
        soft = replace(settings.student, temperature=settings.temperature)
        stream = _teacher_batches(job, soft)
        train_student(network, stream, soft, steps=settings.steps)
    else:
        recipe = hard if job.column == "hard" else settings.student
        train_from_archive(network, job.archive, recipe, steps=settings.steps, seed=seed)
    return evaluate(network, data["pixels"], data["labels"], views)


def _teacher_batches(job: Job, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """The archive's views, labelled by the teacher that the file does without."""
    settings = job.settings
    teacher = load_teacher(job.teacher, TEACHER, 10)
    dataset = HelloDataset(job.archive, labels="none", seed=job.seed)
    sampler = PassSampler(len(dataset), recipe.batch_size, batches=settings.steps, seed=job.seed)
    for views in DataLoader(dataset, batch_sampler=sampler):
        with torch.no_grad():
            labels = torch.softmax(teacher(views) / settings.temperature, dim=1)
        yield normalise(views, settings.views), labels


@dataclass(frozen=True)
class Data:
    """The images of a run: what is trained on, and what is measured on."""

    train: ArrayImages
    measured: ArrayImages


def split_data(settings: DemoSettings) -> Data:
    """Real digits, split by class; with ``validate`` the test part is left out altogether."""
    images = digits(settings.views.size)
    rest, test = stratified_split(images.labels, settings.held_out, seed=0)
    train = images.subset(rest)
    if not settings.validate:
        return Data(train, images.subset(test))
    fit, validation = stratified_split(train.labels, 300, seed=1)
    return Data(train.subset(fit), train.subset(validation))


def archive_path(out: Path, ipc: int) -> Path:
    """Where the archive with ``ipc`` images per class lies."""
    return out / f"digits-ipc{ipc}.hello"


CARD = """# Digits, distilled

{ipc} real handwritten digit(s) per class and a function that labels any view of them, made by
`hello demo` from scikit-learn's digits (Alpaydin and Kaynak, UCI, CC BY 4.0), 8 x 8 pixels resized
to 16 x 16. A demonstration of the format, not a benchmark.
"""


def run_demo(
    out: Path, settings: DemoSettings | None = None, *, say: Callable[[str], None] = click.echo
) -> dict[str, Any]:
    """Run the demo and write the archives, ``teacher.safetensors`` and ``data.npz``.

    Args:
        out: an existing folder.
        settings: the constants; None takes the published ones.
        say: called with each sentence.

    Returns:
        The document of ``result.json``.

    Raises:
        HelloError: a file cannot be written or does not verify.
    """
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
    with _executor(settings.processes) as executor:
        # The control with all data needs no archive, so it uses the core that the fit leaves idle.
        jobs = _jobs(out, settings)
        futures = _submit(executor, [job for job in jobs if job.column == "full"])
        facts = _make_archives(out, settings, data, say)
        say(
            f"[5/6] Training {len(jobs)} new networks, {settings.steps} steps each, in processes"
            " that get nothing but a path; only the source of the labels differs."
        )
        futures |= _submit(executor, [job for job in jobs if job.column != "full"])
        scores = _scores(jobs, futures)
    result = _result(out, settings, scores) | facts
    result["measured_on"] = "validation" if settings.validate else "test"
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


def _make_archives(
    out: Path, settings: DemoSettings, data: Data, say: Callable[[str], None]
) -> dict[str, Any]:
    """Teacher, label function and images; what is left of them are files and three numbers."""
    train, measured = data.train, data.measured
    say(
        f"[2/6] Training the teacher on the other {len(train):,} with hard labels: its soft labels"
        " are what usually gets stored."
    )
    with _bar("teacher", settings.teacher_steps) as on_step:
        teacher = train_teacher(
            train,
            settings.views,
            network=TEACHER,
            steps=settings.teacher_steps,
            seed=0,
            on_step=on_step,
        )
    accuracy = check_teacher(teacher, measured, settings.views.size)
    save_teacher(teacher, out / "teacher.safetensors")
    say(f"      The teacher gets {accuracy:.1f} % right.")

    projector = Projector.build(
        _base(settings),
        train.classes,
        targets="all",
        rank=settings.rank,
        start="stored",
        temperature=settings.temperature,
        seed=0,
    )
    say(
        f"[3/6] Fitting the label function: {projector.trained_count():,} numbers that bend a fixed"
        " encoder until it labels views as the teacher does."
    )
    with _bar("projector", settings.fit.steps) as on_step:
        fidelity = fit_projector(
            projector,
            teacher,
            train,
            settings.views,
            settings.fit,
            held_out=measured,
            on_step=on_step,
        )
    own = teacher_accuracy(projector.labeler().logits, measured, settings.views.size)
    say(
        f"      It gets {own:.1f} % right by itself and agrees with the teacher on"
        f" {fidelity.agreement:.0f} % of new views, most of them mixed from two images."
    )

    say("[4/6] Choosing the images the teacher is surest of, and writing each set into one file.")
    for ipc in settings.ipcs:
        chosen = select_images(
            train,
            teacher,
            settings.views,
            SelectSettings(ipc, crops=1, crop_scale=(1.0, 1.0), seed=0),
        )
        path = archive_path(out, ipc)
        write_distilled(
            path,
            chosen,
            projector,
            train,
            settings.views,
            name=f"digits-ipc{ipc}",
            license_name="CC-BY-4.0",
            card=CARD.format(ipc=ipc),
            force=True,
        )
        say(f"      {path}: {len(chosen.labels)} images, {path.stat().st_size:,} bytes.")
    return {
        "teacher": round(accuracy, 2),
        "projector": {
            "accuracy": round(own, 2),
            "agreement": round(fidelity.agreement, 2),
            "kl": round(fidelity.kl, 4),
        },
    }


def _base(settings: DemoSettings) -> Any:
    """A vision transformer of two small layers whose weights are generated from seed 0."""
    views = settings.views
    arch = Arch(
        embed_dim=settings.width,
        quick_gelu=False,
        vision=VisionArch(
            image_size=views.size,
            layers=settings.layers,
            width=settings.width,
            patch_size=4,
            head_width=32,
            mlp_ratio="2.0",
        ),
    )
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=views.mean,
        resize_mode="squash",
        size=views.size,
        std=views.std,
    )
    return seeded_base(arch, preprocess, seed=0, name="demo-vit")


def _jobs(out: Path, settings: DemoSettings) -> list[Job]:
    """Every student; the slow ones first, so that no process is left with one at the end."""
    data, teacher = str(out / "data.npz"), str(out / "teacher.safetensors")
    jobs: list[Job] = []
    for column in ("hello", "teacher", "hard"):
        for ipc in settings.ipcs:
            archive = str(archive_path(out, ipc))
            jobs += [Job(column, ipc, s, archive, data, teacher, settings) for s in settings.seeds]
    jobs += [Job("full", 0, seed, "", data, teacher, settings) for seed in settings.seeds]
    return jobs


def _one_thread() -> None:
    torch.set_num_threads(1)


class _Here(Executor):
    """Runs a job at once, in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _executor(processes: int) -> Executor:
    if processes == 0:
        return _Here()
    # Spawned: a fork would hand over this process's memory, teacher and all.
    return ProcessPoolExecutor(processes, get_context("spawn"), _one_thread)


def _submit(executor: Executor, jobs: list[Job]) -> dict[Future[float], Job]:
    return {executor.submit(run_job, job): job for job in jobs}


def _scores(
    jobs: list[Job], futures: dict[Future[float], Job]
) -> dict[tuple[Column, int], list[float]]:
    """Accuracies by (column, ipc), in the order of the seeds."""
    done: dict[tuple[Column, int, int], float] = {}
    with _bar("students", len(jobs)) as on_step:
        for future in as_completed(futures):
            job = futures[future]
            done[job.column, job.ipc, job.seed] = future.result()
            on_step(len(done), None)
    scores: dict[tuple[Column, int], list[float]] = {}
    for job in jobs:
        scores.setdefault((job.column, job.ipc), []).append(done[job.column, job.ipc, job.seed])
    return scores


@contextmanager
def _bar(label: str, total: int) -> Generator[Callable[[int, object], None]]:
    """A progress bar for ``on_step`` callbacks; nothing where stderr is not a terminal."""
    with progress(label, "step") as update:

        def on_step(done: int, _: object) -> None:
            if update is not None:
                update(done, total)

        yield on_step


def _result(
    out: Path, settings: DemoSettings, scores: dict[tuple[Column, int], list[float]]
) -> dict[str, Any]:
    """The document of ``result.json`` but for what only the run knows."""

    def table(statistic: Callable[[list[float]], float]) -> dict[str, Any]:
        rows: dict[str, Any] = {
            f"ipc{ipc}": {
                column: round(statistic(scores[column, ipc]), 2)
                for column in ("hard", "hello", "teacher")
            }
            for ipc in settings.ipcs
        }
        rows["full"] = round(statistic(scores["full", 0]), 2)
        return rows

    return {
        "schema": "hello.demo/1",
        "accuracy": table(lambda values: float(np.mean(values))),
        "spread": table(lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0),
        "seeds": list(settings.seeds),
        "steps": settings.steps,
        "batch_size": settings.student.batch_size,
        "bytes": {f"ipc{ipc}": _bytes(archive_path(out, ipc), settings) for ipc in settings.ipcs},
        "versions": {
            "hellofmt": hellofmt.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }


def _bytes(path: Path, settings: DemoSettings) -> dict[str, Any]:
    """What the file weighs by part, beside what the same labels would weigh if stored."""
    with open_archive(path) as file:
        ledger: Ledger = ledger_of(file)
    # One row per view that a student saw: what a relabelling run would have written.
    rows = settings.steps * settings.student.batch_size
    labels = rows * ledger.classes * 2
    parameters = sum(p.numel() for p in build_student(TEACHER, ledger.classes, 16).parameters())
    return {
        "total": ledger.total,
        "parts": ledger.parts(),
        "payload": ledger.payload,
        "values": ledger.values,
        "epochs": round(rows / ledger.images, 1),
        "stored_labels": labels,
        "view_records": view_record_bytes(rows, 1),
        "break_even_epochs": ledger.break_even(),
        "teacher_float16": model_bytes(parameters, "float16"),
    }


@click.command("demo")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the archives, report.png and result.json; made if missing.",
)
def demo(out: Path) -> None:
    """Distil real digits, train from the file, and compare; about two minutes on a laptop.

    Needs `pip install 'hellofmt[demo]'` (scikit-learn, matplotlib), no download and no GPU. Writes
    one archive with 1 and one with 10 images per class, result.json and report.png.
    """
    # Fail before two minutes of work, not after.
    try:
        from hellofmt_cli.demo_report import draw_report, report_text, write_json
    except ImportError as error:
        raise UserInputError.make(
            "E_OPTION", f"the demo needs `{error.name}`; `pip install 'hellofmt[demo]'`"
        ) from None
    out.mkdir(parents=True, exist_ok=True)
    settings = DemoSettings()
    result = run_demo(out, settings)
    click.echo("[6/6] The results.\n")
    click.echo(report_text(result))
    draw_report(out, result)
    write_json(out / "result.json", result)
    click.echo(f"\nPicture: {out / 'report.png'}   Numbers: {out / 'result.json'}")
    click.echo(f"Next: hello inspect {out / 'digits-ipc10.hello'}")
