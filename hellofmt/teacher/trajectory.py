"""A teacher's training run, kept at nine evenly spaced moments.

Small distilled sets want *weak* teachers: with one image per class, labels of a half-trained
network teach more than those of the finished one (``sunnytqin/no-distillation`` finds the best
expert for ImageNet-1K at 17.3, 35.8 and 60.9 % for 1, 10 and 50 images per class; Teddy, arXiv
2410.07579, draws its pool from early checkpoints). The teacher for a given number of images per
class is therefore the mean of the three checkpoints nearest to a fraction of the final accuracy.

A folder holds ``teacher.json`` and one safetensors file per checkpoint. The JSON is written last:
where it exists, the run has finished. Until then ``state.safetensors`` continues a killed run with
the same bits.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import torch

from hellofmt.archive.format.record import Run, SourceRecord  # noqa: TC001 - read by msgspec
from hellofmt.archive.format.views import Views  # noqa: TC001 - read by msgspec
from hellofmt.archive.storage.local_files import read_file, write_small_file
from hellofmt.errors import HelloIOError, UserInputError, printable
from hellofmt.making import HardBatches, ViewBatches
from hellofmt.runs import ranks, resume
from hellofmt.runs.results import digest_of
from hellofmt.runs.run_record import run_record
from hellofmt.sources.record import source_record
from hellofmt.student.networks import build_student
from hellofmt.student.train import train_student
from hellofmt.teacher.check import teacher_accuracy
from hellofmt.teacher.files import load_teacher, save_network
from hellofmt.teacher.network import Origin, Teacher, TeacherPool
from hellofmt.teacher.rule import InputRule
from hellofmt.teacher.train import TEACHER_RECIPE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import Tensor, nn

    from hellofmt.sources import Source
    from hellofmt.student.recipes import Recipe

CHECKPOINTS: Final = 9
"""Checkpoints kept of a run, as in the paper."""

TRAJECTORY_FILE: Final = "teacher.json"
_STATE_FILE: Final = "state.safetensors"
_POOL: Final = 3

_MATURITY_MANY: Final = ((100, 1.0), (50, 0.9), (10, 0.5), (1, 0.25))
_MATURITY_FEW: Final = ((100, 1.0), (50, 1.0), (10, 0.9), (1, 0.6))


class Checkpoint(msgspec.Struct, frozen=True):
    """One kept moment of a run: its file, steps done, top-1 of held-out images in percent."""

    file: Annotated[str, msgspec.Meta(pattern=r"^[^/\\]+$")]
    step: int
    accuracy: float


class Trajectory(msgspec.Struct, frozen=True):
    """A finished run of ``train_trajectory``.

    Attributes:
        folder: path of its folder.
        network: name it was built by.
        classes: keys in label order.
        views: how it saw images; gives size, mean and std.
        checkpoints: by step.
        run: digest of data and settings.
        trained: the run, for the record.
        trained_on: its images.
        schema: of ``teacher.json``.
    """

    folder: str
    network: str
    classes: tuple[str, ...]
    views: Views
    checkpoints: tuple[Checkpoint, ...]
    run: str
    trained: Run
    trained_on: SourceRecord
    schema: Literal["hello.teacher/1"] = "hello.teacher/1"

    def load(self, number: int, build: Callable[..., nn.Module] = build_student) -> Teacher:
        """Read the teacher of checkpoint ``number``: 0 is the earliest, -1 the final one.

        Raises:
            OSError: its file cannot be read.
            UserInputError: it does not hold this network (E_TEACHER).
        """
        kept = self.checkpoints[number]
        path = Path(self.folder, kept.file)
        teacher = load_teacher(path, self.network, len(self.classes), build)
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
        """Read the three checkpoints nearest to a fraction of the final accuracy, as one."""
        return TeacherPool([self.load(number, build) for number in self.weak(fraction)])

    def weak(self, fraction: float) -> list[int]:
        """Return the numbers of these checkpoints, ascending."""
        return weak_checkpoints([c.accuracy for c in self.checkpoints], fraction)


def maturity(ipc: int, classes: int) -> float:
    """Return the fraction of its final accuracy at which a teacher suits ``ipc`` images per class.

    From 1, 10, 50 and 100 images per class: 0.25, 0.5, 0.9 and 1 for a thousand classes or more,
    0.6, 0.9, 1 and 1 for fewer; the fractions of ``sunnytqin/no-distillation``.
    """
    table = _MATURITY_MANY if classes >= 1000 else _MATURITY_FEW
    return next((fraction for least, fraction in table if ipc >= least), table[-1][1])


def weak_checkpoints(accuracies: Sequence[float], fraction: float) -> list[int]:
    """Find the three checkpoints whose accuracy is nearest to ``fraction`` of the last one's.

    Their numbers ascend; all of them if a run has fewer. Ties go to the later checkpoint.
    """
    target = fraction * accuracies[-1]
    order = sorted(range(len(accuracies)), key=lambda k: (abs(accuracies[k] - target), -k))
    return sorted(order[:_POOL])


def read_trajectory(folder: str | os.PathLike[str]) -> Trajectory:
    """Read the folder of a finished run of ``train_trajectory``.

    Raises:
        UserInputError: ``teacher.json`` is not what ``train_trajectory`` writes (E_TEACHER).
        OSError: it cannot be read; without it, the run has not finished.
    """
    path = Path(folder) / TRAJECTORY_FILE
    try:
        document: Any = json.loads(read_file(path))
        return msgspec.convert({**document, "folder": os.fspath(folder)}, Trajectory)
    except (ValueError, TypeError) as error:
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
        views: how the network sees them; mixed views have labels mixed by area.
        folder: created; must be empty, or hold this very run.
        network: name for ``build``.
        steps: number of gradient steps.
        held_out: images whose accuracy is recorded at each checkpoint.
        checkpoints: number to keep, evenly spaced, the last at the end; at most ``steps``.
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

    Example:
        >>> from hellofmt.archive import default_views
        >>> from hellofmt.sources import open_source
        >>> from hellofmt.teacher import read_trajectory
        >>> source, how = open_source("photos"), {"network": "cnn", "steps": 2, "checkpoints": 2}
        >>> run = train_trajectory(source, default_views(16), "run", held_out=source, **how)
        >>> read_trajectory("run") == run
        True
    """
    if steps < 1 or not checkpoints >= 1:
        raise UserInputError.make(
            "E_OPTION",
            f"steps and checkpoints: expected at least 1, got {steps} and {checkpoints}",
        )
    if not os.fspath(folder):
        raise HelloIOError.make("E_TARGET", "the folder of the teacher has an empty name")
    root, place, where = Path(folder), ranks.current(), torch.device(device)
    if batch_size is not None:
        recipe = replace(recipe, batch_size=batch_size)
    checkpoints = min(checkpoints, steps)
    data = [source.digest(), held_out.digest(), views]
    run = digest_of([network, steps, checkpoints, recipe, seed, *data, bfloat16])
    if ranks.handed((root / TRAJECTORY_FILE).exists):
        done = ranks.handed(lambda: read_trajectory(root))
        if done.run != run:
            raise HelloIOError.make(
                "E_TARGET",
                f"`{printable(root)}` holds a teacher of other data or settings; expected an empty"
                " folder, or the same run",
            )
        return done
    model = build(network, len(source.classes), views.size, seed=seed).to(where)
    ranks.same_(model.state_dict().values())
    kept = {
        step: f"checkpoint-{k + 1}-step-{step}.safetensors"
        for k, step in enumerate(round(steps * k / checkpoints) for k in range(1, checkpoints + 1))
    }

    def after(done: int, _: Tensor) -> None:
        if done in kept and place.rank == 0:
            save_network(model, InputRule.of_views(views), root / kept[done])
        if on_step is not None:
            on_step(done, steps)

    with _kept_if_used(root):
        if place.rank == 0:
            root.mkdir(parents=True, exist_ok=True)
        ranks.wait()
        train_student(
            model,
            HardBatches(
                ViewBatches(source, views, recipe.batch_size, seed),
                steps,
                share=None if place.world == 1 else ranks.share(recipe.batch_size),
                workers=workers,
                device=where,
            ),
            recipe,
            steps=steps,
            on_step=after,
            bfloat16=bfloat16,
            seed=seed,
            checkpoint=resume.Checkpoint(
                root / _STATE_FILE, run, every=max(1, steps // checkpoints)
            ),
            is_split=place.world > 1,
        )
        ranks.wait()
        trajectory = Trajectory(
            os.fspath(folder),
            network,
            tuple(line.key for line in source.classes),
            views,
            tuple(Checkpoint(file, step, 0.0) for step, file in kept.items()),
            run,
            run_record(where, {"teacher": seed}, command),
            source_record(source),
        )
        measured: list[Checkpoint] = []
        for number, each in enumerate(trajectory.checkpoints):
            teacher = _from_file(trajectory, number, build).to(where)
            accuracy = teacher_accuracy(teacher, held_out, views.size, workers=workers)
            measured.append(msgspec.structs.replace(each, accuracy=accuracy))
        if place.rank == 0:
            trajectory = msgspec.structs.replace(trajectory, checkpoints=tuple(measured))
            document = msgspec.to_builtins(trajectory)
            del document["folder"]
            text = json.dumps(document, indent=2, ensure_ascii=True) + "\n"
            write_small_file(root / TRAJECTORY_FILE, text.encode("ascii"), force=True)
            (root / _STATE_FILE).unlink(missing_ok=True)
    return ranks.handed(lambda: read_trajectory(root))


@contextmanager
def _kept_if_used(root: Path) -> Generator[None]:
    """Remove a new folder, if the block fails before it has kept anything there."""
    is_new = not root.exists()
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                root.rmdir()
        raise


def _from_file(trajectory: Trajectory, number: int, build: Callable[..., nn.Module]) -> Teacher:
    """A checkpoint from rank 0's file, as a reader gets it, in every process."""
    if ranks.current().rank == 0:
        teacher = trajectory.load(number, build)
    else:
        views = trajectory.views
        network = build(trajectory.network, len(trajectory.classes), views.size)
        teacher = Teacher(network, InputRule.of_views(views))
    ranks.same_(teacher.state_dict().values())
    return teacher
