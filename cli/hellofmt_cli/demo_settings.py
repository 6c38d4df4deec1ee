"""The constants of ``hello demo``: data, networks, views, and how long each part trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hellofmt.archive import Texts, Views
from hellofmt.distillation import DistillSettings, FitSettings, ProjectorSettings, SelectSettings
from hellofmt.sources import ArrayImages, digits, stratified_split
from hellofmt.student import Recipe

if TYPE_CHECKING:
    from pathlib import Path

TEACHER = "cnn"
STUDENT = "cnn"

_CARD = """# Digits, distilled

{ipc} real handwritten digit(s) per class and a function that labels any view of them, made by
`hello demo` from scikit-learn's digits (Alpaydin and Kaynak, UCI, CC BY 4.0), 8 x 8 pixels resized
to 16 x 16. A demonstration of the format, not a benchmark.
"""


def _views() -> Views:
    """Crops and CutMix, no flips (a flipped digit is another one, or none)."""
    return Views(
        antialias=True,
        crop_ratio=["0.75", "1.3333333333333333"],
        crop_scale=["0.5", "1.0"],
        flip="0.0",
        interpolation="bilinear",
        mean=["0.3"] * 3,
        mix="cutmix",
        mix_alpha="1.0",
        mix_probability="0.8",
        shuffle=1,
        size=16,
        std=["0.32"] * 3,
    )


@dataclass(frozen=True)
class DemoSettings:
    """Every number of the demo; the defaults were chosen on validation images.

    Attributes:
        ipcs: images per class, one archive for each.
        seeds: seeds of the students; teacher, fit and selection have seed 0.
        held_out: number of test images, of 1,797 in all.
        teacher_steps: gradient steps of the teacher, of 128 views each.
        fit: how the projector is fitted.
        rank: rank of the deltas.
        temperature: temperature of the labels and the students.
        student: recipe of every column, apart from its loss.
        steps: gradient steps of every student.
        views: views that the archives state.
        processes: how many students train side by side, each on one core; 0 trains them in this
            process.
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
    temperature: float = 4.0
    student: Recipe = field(
        default_factory=lambda: Recipe("demo", "kl", learning_rate=3e-3, batch_size=50)
    )
    steps: int = 300
    views: Views = field(default_factory=_views)
    processes: int = 2
    validate: bool = False

    def distillation(self, ipc: int, *, is_random: bool = False) -> DistillSettings:
        """What ``distill`` makes of the digits: whole images, ``ipc`` of each class."""
        return DistillSettings(
            SelectSettings(ipc, method="random" if is_random else SelectSettings.method),
            ProjectorSettings(rank=self.rank, start="stored", temperature=self.temperature),
            self.fit,
            texts=Texts(license="CC-BY-4.0", card=_CARD.format(ipc=ipc)),
        )


@dataclass(frozen=True)
class Data:
    """The images of a run: those that are trained on, and those that are measured on."""

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


def archive_path(out: Path, ipc: int, *, is_random: bool = False) -> Path:
    """Path of the archive with ``ipc`` images per class, chosen or drawn at random."""
    return out / f"digits-ipc{ipc}{'-random' if is_random else ''}.hello"
