"""A teacher and how it came to be: one training run, kept at nine evenly spaced moments.

Small distilled sets want *weak* teachers: with one image per class, labels of a half-trained
network teach more than those of the finished one (``sunnytqin/no-distillation`` finds the best
expert for ImageNet-1K at 17.3, 35.8 and 60.9 % for 1, 10 and 50 images per class; Teddy, arXiv
2410.07579, draws its pool from early checkpoints). So a run is kept as a trajectory, and the
teacher for a given number of images per class is the mean of the three checkpoints nearest to a
fraction of the final accuracy.

A folder holds ``teacher.json`` and one safetensors file per checkpoint. The JSON is written last:
where it is, the run is finished. Until then ``state.safetensors`` continues a killed run with the
same bits.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch

from hellofmt.archive.format.manifest import Views
from hellofmt.archive.format.record import Run, SourceRecord
from hellofmt.archive.storage.local_files import read_file
from hellofmt.errors import HelloIOError, UserInputError, printable
from hellofmt.making import HardBatches, ViewBatches
from hellofmt.runs import ranks, resume
from hellofmt.runs.results import digest_of, write_file
from hellofmt.runs.run_record import run_record
from hellofmt.sources.record import source_record
from hellofmt.student.networks import build_student
from hellofmt.student.train import train_student
from hellofmt.teacher.check import teacher_accuracy
from hellofmt.teacher.files import load_teacher, save_teacher
from hellofmt.teacher.network import Teacher, TeacherPool
from hellofmt.teacher.origin import Origin
from hellofmt.teacher.rule import InputRule
from hellofmt.teacher.train import TEACHER_RECIPE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from hellofmt.sources import Source
    from hellofmt.student.recipes import Recipe

__all__ = [
    "CHECKPOINTS",
    "TRAJECTORY_FILE",
    "Checkpoint",
    "Trajectory",
    "maturity",
    "read_trajectory",
    "train_trajectory",
    "weak_checkpoints",
]

CHECKPOINTS: Final = 9
"""Kept moments of a run, as in the paper."""

TRAJECTORY_FILE: Final = "teacher.json"
_STATE_FILE: Final = "state.safetensors"
_SCHEMA: Final = "hello.teacher/1"
_POOL: Final = 3

_MATURITY_MANY: Final = ((100, 1.0), (50, 0.9), (10, 0.5), (1, 0.25))
_MATURITY_FEW: Final = ((100, 1.0), (50, 1.0), (10, 0.9), (1, 0.6))


@dataclass(frozen=True)
class Checkpoint:
    """One kept moment.

    Attributes:
        file: name in the folder.
        step: gradient steps done.
        accuracy: top-1 on held-out images, percent.
    """

    file: str
    step: int
    accuracy: float


@dataclass(frozen=True)
class Trajectory:
    """A finished run.

    Attributes:
        folder: where it lies.
        network: name it was built by.
        classes: keys in label order.
        views: how it saw images; gives size, mean and std.
        checkpoints: by step.
        run: digest of data and settings.
        trained: the run, for the record.
        trained_on: its images.
    """

    folder: Path
    network: str
    classes: tuple[str, ...]
    views: Views
    checkpoints: tuple[Checkpoint, ...]
    run: str
    trained: Run
    trained_on: SourceRecord

    def load(self, number: int, build: Callable[..., nn.Module] = build_student) -> Teacher:
        """The teacher of checkpoint ``number``, 0 the earliest, -1 the final one.

        Raises:
            OSError: its file cannot be read.
            UserInputError: it is not of this network (E_TEACHER).
        """
        kept = self.checkpoints[number]
        teacher = load_teacher(self.folder / kept.file, self.network, len(self.classes), build)
        teacher.origin = Origin(
            "its own training run",
            self.network,
            kept.step,
            kept.accuracy,
            self.trained,
            self.trained_on,
        )
        return teacher

    def pool(self, fraction: float, build: Callable[..., nn.Module] = build_student) -> TeacherPool:
        """The mean of the three checkpoints nearest to a fraction of the final accuracy."""
        return TeacherPool([self.load(number, build) for number in self.weak(fraction)])

    def weak(self, fraction: float) -> list[int]:
        """Numbers of these checkpoints, ascending."""
        return weak_checkpoints([c.accuracy for c in self.checkpoints], fraction)


def maturity(ipc: int, classes: int) -> float:
    """Fraction of its final accuracy at which a teacher suits ``ipc`` images per class.

    0.25, 0.5, 0.9 and 1 from 1, 10, 50 and 100 images per class for a thousand classes or more;
    0.6, 0.9, 1 and 1 below: the fractions of ``sunnytqin/no-distillation``.

    Args:
        ipc: images per class, >= 1.
        classes: number of classes.

    Returns:
        In (0, 1].
    """
    table = _MATURITY_MANY if classes >= 1000 else _MATURITY_FEW
    return next((fraction for least, fraction in table if ipc >= least), table[-1][1])


def weak_checkpoints(accuracies: Sequence[float], fraction: float) -> list[int]:
    """The three checkpoints whose accuracy is nearest to ``fraction`` of the last one's.

    Args:
        accuracies: percent, by step.
        fraction: in (0, 1]; ties go to the later checkpoint.

    Returns:
        Numbers in ascending order; fewer than three of a shorter run.
    """
    wanted = fraction * accuracies[-1]
    order = sorted(range(len(accuracies)), key=lambda k: (abs(accuracies[k] - wanted), -k))
    return sorted(order[:_POOL])


def read_trajectory(folder: str | os.PathLike[str]) -> Trajectory:
    """Read the folder of a finished run.

    Raises:
        UserInputError: ``teacher.json`` is not what ``train_trajectory`` writes (E_TEACHER).
        OSError: it cannot be read; without it, the run is not finished.
    """
    root = Path(folder)
    path = root / TRAJECTORY_FILE
    try:
        document: Any = json.loads(read_file(path))
        checkpoints = tuple(
            Checkpoint(Path(c["file"]).name, int(c["step"]), float(c["accuracy"]))
            for c in document["checkpoints"]
        )
        return Trajectory(
            root,
            str(document["network"]),
            tuple(str(key) for key in document["classes"]),
            msgspec.convert(document["views"], Views),
            checkpoints,
            {_SCHEMA: str(document["run"])}[document["schema"]],
            msgspec.convert(document["trained"], Run),
            msgspec.convert(document["trained_on"], SourceRecord),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserInputError.make(
            "E_TEACHER", f"`{printable(path)}` does not describe a teacher"
        ) from error


def train_trajectory(
    source: Source,
    views: Views,
    folder: str | os.PathLike[str],
    *,
    network: str,
    steps: int,
    held_out: Source,
    checkpoints: int = CHECKPOINTS,
    batch_size: int | None = None,
    seed: int = 0,
    recipe: Recipe = TEACHER_RECIPE,
    device: str | torch.device = "cpu",
    build: Callable[..., nn.Module] = build_student,
    bfloat16: bool = False,
    command: str = "",
    workers: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Train a teacher on real images with hard labels and keep its trajectory.

    A killed run continues from its last checkpoint, or its last minute, on a CPU with the bits of
    an uninterrupted one; a finished run of the same data and settings is read, not repeated. Under
    ``torchrun`` every process must call this and trains on its share of each batch; rank 0 alone
    writes the folder.

    Args:
        source: training images.
        views: how it sees them; mixed views have labels mixed by area.
        folder: created; must be empty, or hold this very run.
        network: name for ``build``.
        steps: gradient steps.
        held_out: images whose accuracy is recorded at each checkpoint.
        checkpoints: kept moments, evenly spaced, the last at the end; at most ``steps``.
        batch_size: views per step; None takes the recipe's.
        seed: of weights, order and views.
        recipe: a ``ce`` recipe.
        device: where it trains.
        build: makes the network from (name, classes, size, seed=seed).
        bfloat16: train in bfloat16 autocast. Accuracies are measured in float32.
        command: what was typed, for the record; see ``runs.run_record``.
        workers: number of processes that decode images ahead.
        on_step: called with the steps done and their number.

    Returns:
        The trajectory.

    Raises:
        HelloIOError: the folder has no name, or holds another run (E_TARGET).
        UserInputError: an unknown network, or a loss that is not finite (E_OPTION).
        OSError: something cannot be written; what is finished stays.
    """
    if steps < 1 or not checkpoints >= 1:
        raise UserInputError.make(
            "E_OPTION",
            f"steps and checkpoints: expected at least 1, got {steps} and {checkpoints}",
        )
    if not os.fspath(folder):
        raise HelloIOError.make("E_TARGET", "the folder of the teacher has an empty name")
    root = Path(folder)
    where, is_ours = torch.device(device), not root.exists()
    try:
        _train(
            source,
            views,
            root,
            network,
            steps,
            held_out,
            checkpoints,
            batch_size,
            seed,
            recipe,
            where,
            build,
            bfloat16,
            command,
            workers,
            on_step,
        )
    except BaseException:
        # A folder in which nothing was kept is not left behind.
        if is_ours:
            with suppress(OSError):
                root.rmdir()
        raise
    return ranks.handed(lambda: read_trajectory(root))


def _train(
    source: Source,
    views: Views,
    root: Path,
    network: str,
    steps: int,
    held_out: Source,
    checkpoints: int,
    batch_size: int | None,
    seed: int,
    recipe: Recipe,
    device: torch.device,
    build: Callable[..., nn.Module],
    bfloat16: bool,
    command: str,
    workers: int,
    on_step: Callable[[int, int], None] | None,
) -> None:
    if batch_size is not None:
        recipe = replace(recipe, batch_size=batch_size)
    checkpoints = min(checkpoints, steps)
    place = ranks.current()
    is_alone = place.world == 1
    data = [source.digest(), held_out.digest(), views]
    run = digest_of([network, steps, checkpoints, recipe, seed, *data, bfloat16])
    if ranks.handed((root / TRAJECTORY_FILE).exists):
        if ranks.handed(lambda: read_trajectory(root).run != run):
            raise HelloIOError.make(
                "E_TARGET",
                f"`{printable(root)}` holds a teacher of other data or settings; expected an empty"
                " folder, or the same run",
            )
        return
    count = len(source.classes)
    model = build(network, count, views.size, seed=seed).to(device)
    ranks.same_(model.state_dict().values())
    if place.rank == 0:
        root.mkdir(parents=True, exist_ok=True)
    ranks.wait()
    marks = {round(steps * (k + 1) / checkpoints): k for k in range(checkpoints)}

    def after(done: int, _: Tensor) -> None:
        if done in marks and place.rank == 0:
            teacher = _frozen_copy(model, build, network, count, views)
            save_teacher(teacher, root / _file(marks[done], done))
        if on_step is not None:
            on_step(done, steps)

    state = root / _STATE_FILE
    train_student(
        model,
        HardBatches(
            ViewBatches(source, views, recipe.batch_size, seed),
            steps,
            share=None if is_alone else ranks.share(recipe.batch_size),
            workers=workers,
            device=device,
        ),
        recipe,
        steps=steps,
        on_step=after,
        bfloat16=bfloat16,
        seed=seed,
        checkpoint=resume.Checkpoint(state, run, every=max(1, steps // checkpoints)),
        is_split=not is_alone,
    )
    ranks.wait()
    trajectory = Trajectory(
        root,
        network,
        tuple(line.key for line in source.classes),
        views,
        tuple(Checkpoint(_file(k, step), step, 0.0) for step, k in sorted(marks.items())),
        run,
        run_record(device, {"teacher": seed}, command),
        source_record(source),
    )
    # Measured from the files, so that what is recorded is what a reader of them gets.
    measured = tuple(
        replace(
            checkpoint,
            accuracy=teacher_accuracy(
                _everywhere(trajectory, number, build).to(device),
                held_out,
                views.size,
                workers=workers,
            ),
        )
        for number, checkpoint in enumerate(trajectory.checkpoints)
    )
    trajectory = replace(trajectory, checkpoints=measured)
    if place.rank == 0:
        write_file(root / TRAJECTORY_FILE, _document(trajectory))
        state.unlink(missing_ok=True)


def _everywhere(trajectory: Trajectory, number: int, build: Callable[..., nn.Module]) -> Teacher:
    """A checkpoint from rank 0's file, in every process."""
    if ranks.current().rank == 0:
        teacher = trajectory.load(number, build)
    else:
        views = trajectory.views
        network = build(trajectory.network, len(trajectory.classes), views.size)
        teacher = Teacher(network, InputRule.of_views(views))
    ranks.same_(teacher.state_dict().values())
    return teacher


def _file(number: int, step: int) -> str:
    return f"checkpoint-{number + 1}-step-{step}.safetensors"


def _document(trajectory: Trajectory) -> bytes:
    document = {
        "schema": _SCHEMA,
        "network": trajectory.network,
        "classes": list(trajectory.classes),
        "views": msgspec.to_builtins(trajectory.views),
        "checkpoints": [
            {"file": c.file, "step": c.step, "accuracy": c.accuracy} for c in trajectory.checkpoints
        ],
        "run": trajectory.run,
        "trained": msgspec.to_builtins(trajectory.trained),
        "trained_on": msgspec.to_builtins(trajectory.trained_on),
    }
    return (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode("ascii")


def _frozen_copy(
    model: nn.Module, build: Callable[..., nn.Module], network: str, count: int, views: Views
) -> Teacher:
    """The network as it is now, as a teacher; wrapping itself would freeze it."""
    copy = build(network, count, views.size)
    copy.load_state_dict(model.state_dict())
    return Teacher(copy, InputRule.of_views(views))
