"""Base, teacher and settings as the options of ``fit`` and ``distill`` name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hellofmt.archive import Arch, Preprocess, VisionArch, read_class_lines
from hellofmt.distillation import FitSettings, ProjectorSettings, default_steps, split_validation
from hellofmt.errors import UserInputError, shown_path
from hellofmt.projector import load_base, seeded_base
from hellofmt.runs import digest_of, hand_folder, network_gflop, without_paths
from hellofmt.student import small_image_advice
from hellofmt.teacher import (
    TRAJECTORY_FILE,
    RuleChange,
    TeacherPool,
    build_network,
    is_network,
    load_named_teacher,
    maturity,
    read_trajectory,
    train_trajectory,
)
from hellofmt_cli.command_line import recorded_command
from hellofmt_cli.console import console
from hellofmt_cli.data import steps_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from hellofmt.archive import Views
    from hellofmt.projector import LoadedBase
    from hellofmt.runs import Meter
    from hellofmt.sources import Source
    from hellofmt_cli.data import Data
    from hellofmt_cli.fit_options import FitOptions, TeacherOptions
    from hellofmt_cli.options import DataOptions

HELD_OUT: Final = "held-out images"
_SEEDED: Final = "seeded"


def advise(network: str, side: int) -> None:
    """Say it where another name suits small images better than the network that is trained."""
    advice = small_image_advice(network, side)
    if advice is not None:
        console.say(advice)


def measured_kind(images: Source, held_out: Source) -> str:
    """Name what ``split_validation`` measures on: with few images it gives the same ones twice."""
    return "the training images" if held_out is images else HELD_OUT


def read_base(text: str, views: Views) -> LoadedBase:
    """The base that the user names; ``seeded`` is a small transformer with generated weights."""
    kind, _, seed = text.partition(":")
    if kind != _SEEDED:
        with console.stage("loading the base"):
            return load_base(text, say=console.say)
    if not (seed == "" or (seed.isascii() and seed.isdigit() and len(seed) < 19)):
        raise UserInputError.make(
            "E_OPTION", f"base `{shown_path(text)}`: expected `seeded` or `seeded:NUMBER`"
        )
    side = views.size
    # About sixteen patches: cheap, and enough for images this small.
    patch = next(p for p in range(max(2, side // 4), side + 1) if side % p == 0)
    arch = Arch(
        embed_dim=128,
        quick_gelu=False,
        vision=VisionArch(
            image_size=side, layers=2, width=128, patch_size=patch, head_width=32, mlp_ratio="2.0"
        ),
    )
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=views.mean,
        size=side,
        std=views.std,
    )
    return seeded_base(arch, preprocess, seed=int(seed or 0), name=f"seeded-vit-{side}")


def _change(options: TeacherOptions) -> RuleChange:
    """What the user says of the teachers' input."""
    return RuleChange(
        options.teacher_mean or None, options.teacher_std or None, options.teacher_size
    )


def load_teacher(
    text: str, keys: Sequence[str], side: int, options: TeacherOptions, fraction: float = 1.0
) -> torch.nn.Module:
    """The teacher that the user names, with what it takes said on stderr.

    ``fraction`` is what a trajectory's weak teachers should have of its final accuracy.
    """
    named = None
    if options.teacher_classes is not None:
        lines = read_class_lines(options.teacher_classes, say=console.say)
        named = [line.key for line in lines]
    with console.stage("loading the teacher"):
        return load_named_teacher(
            text,
            keys,
            side,
            fraction=fraction,
            change=_change(options),
            teacher_classes=named,
            say=console.say,
        )


def read_teachers(
    data: Data, work: Path, run: DataOptions, options: FitOptions, ipc: int | None, meter: Meter
) -> torch.nn.Module:
    """The mean of the teachers that the user names; a bare network name is trained first.

    A checkpoint is chosen by ``ipc``, images per class; None takes the last.
    """
    keys = [line.key for line in data.images.classes]
    fraction = options.maturity
    if fraction is None:
        fraction = 1.0 if ipc is None else maturity(ipc, len(keys))
    # What can be refused is refused before anything is trained.
    trained = [text for text in options.teachers if is_network(text)]
    if trained and _change(options):
        raise UserInputError.make(
            "E_OPTION",
            f"--teacher-mean, --teacher-std, --teacher-size: teacher `{trained[0]}` is trained here"
            " on the views as they are; expected none of them",
        )
    side = data.views.size
    loaded = {
        text: load_teacher(text, keys, side, options, fraction)
        for text in options.teachers
        if text not in trained
    }
    for text in dict.fromkeys(trained):
        folder = _train_teacher(text, data, work, run, options, meter)
        loaded[text] = load_teacher(str(folder), keys, side, options, fraction)
    teachers = [loaded[text] for text in options.teachers]
    pool = teachers[0] if len(teachers) == 1 else TeacherPool(teachers)
    return pool.to(run.device)


def _train_teacher(
    name: str, data: Data, work: Path, run: DataOptions, options: FitOptions, meter: Meter
) -> Path:
    """Train a network on the data, or continue; the folder of its trajectory."""
    views = data.views
    advise(name, views.size)
    train, held_out = split_validation(data.images, seed=run.seed)
    batch_size = min(options.batch_size, len(train))
    steps = steps_of(options.teacher_epochs, len(train), batch_size)
    facts = [
        digest_of(data.images),
        views,
        name,
        options.teacher_epochs,
        batch_size,
        run.bfloat16,
        run.seed,
    ]
    folder = work / f"teacher-{digest_of(facts)[:20]}"
    hand_folder(folder, TRAJECTORY_FILE)
    with meter.stage("teacher"):
        console.say(f"teacher {name}: {steps:,} steps of {batch_size} views")
        # Named by its inputs; one that another machine trained knows other times of the same files.
        if not (folder / TRAJECTORY_FILE).exists():
            train_trajectory(
                train,
                views,
                folder,
                network=name,
                steps=steps,
                held_out=held_out,
                batch_size=batch_size,
                seed=run.seed,
                device=run.device,
                build=build_network,
                bfloat16=run.bfloat16,
                command=recorded_command(without_paths),
                workers=data.workers,
                on_step=console.step,
            )
            hand_folder(folder, TRAJECTORY_FILE)
    network = build_network(name, len(train.classes), views.size)
    meter.set_gflop(network_gflop(network, views.size, steps * batch_size, backward=True))
    last = read_trajectory(folder).checkpoints[-1].accuracy
    kind = measured_kind(data.images, held_out)
    console.say(f"teacher {name}: {last:.1f} % of {kind}, trained on {len(train):,}")
    return folder


def projector_settings(options: FitOptions, seed: int) -> ProjectorSettings:
    """What is adapted."""
    targets = options.targets
    is_preset = len(targets) == 1 and targets[0] in {"paper", "transformer", "all"}
    return ProjectorSettings(
        targets=targets[0] if is_preset else targets or "all",
        rank=options.rank,
        head_rank=options.head_rank,
        start=options.start,
        prompts=options.prompts or ("a photo of a {}.",),
        temperature=options.temperature,
        seed=seed,
    )


def fit_settings(options: FitOptions, images: int, run: DataOptions) -> FitSettings:
    """How the projector is fitted to so many training images."""
    if options.epochs is not None:
        steps = steps_of(options.epochs, images, options.batch_size)
    else:
        steps = options.steps or default_steps(images, options.batch_size)
    return FitSettings(
        loss=options.loss,
        # The paper's preset is the paper's throughout.
        raw_logits=options.targets == ("paper",),
        steps=steps,
        batch_size=options.batch_size,
        learning_rate=options.lr,
        seed=run.seed,
        bfloat16=run.bfloat16,
        compile=options.compile,
    )
