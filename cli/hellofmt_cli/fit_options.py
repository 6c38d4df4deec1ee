"""The options of a fit and of its teacher, shared by ``fit``, ``distill`` and ``labels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import click

from hellofmt_cli.options import (
    Choice,
    batch_size_option,
    force_option,
    grouped,
    output_option,
    precision_option,
)

if TYPE_CHECKING:
    from hellofmt.archive import Storage

__all__ = ["FitOptions", "TeacherOptions", "fit_options", "teacher_options"]


@dataclass(frozen=True)
class TeacherOptions:
    """How a teacher sees images and what its outputs mean; None is the teacher's own rule.

    Attributes:
        teacher_mean: mean of each channel, in [0, 1].
        teacher_std: standard deviation of each channel.
        teacher_size: side in pixels that views are resized to.
        teacher_classes: file of the class list in the order of its outputs.
    """

    teacher_mean: tuple[float, float, float] | None
    teacher_std: tuple[float, float, float] | None
    teacher_size: int | None
    teacher_classes: str | None


_TEACHER_OPTIONS: Final = (
    click.option(
        "--teacher-mean",
        nargs=3,
        type=float,
        help="Mean of each channel that the teacher's network expects, in [0, 1]; 0 0 0 with"
        " --teacher-std 1 1 1 for a network that normalises inside.  [default: its library's, else"
        " ImageNet's]",
    ),
    click.option(
        "--teacher-std",
        nargs=3,
        type=click.FloatRange(0, min_open=True),
        help="Standard deviation of each channel that the teacher's network expects.",
    ),
    click.option(
        "--teacher-size",
        type=click.IntRange(4, 1024),
        help="Side in pixels that views are resized to for the teacher.  [default: its library's,"
        " else that of the views]",
    ),
    click.option(
        "--teacher-classes",
        metavar="FILE",
        help="Class list in the order of the teacher's outputs, whose keys pick those of DATA."
        "  [default: WordNet ids for a teacher of ImageNet, else the classes of DATA]",
    ),
)

teacher_options = grouped("teacher_input", TeacherOptions, *_TEACHER_OPTIONS)


@dataclass(frozen=True)
class FitOptions(TeacherOptions):
    """Teacher, base, fit and archive of ``hello fit`` and ``hello distill``.

    Attributes:
        teachers: as the user names them.
        teacher_epochs: passes of a teacher that is trained first.
        maturity: fraction of its final accuracy at which a teacher is taken; None decides by IPC.
        base: encoder, as the user names it.
        rank: of the low-rank deltas.
        head_rank: rank of the head's delta.
        targets: rules of what is adapted; empty adapts all.
        start: of the head, ``text`` or ``stored``.
        prompts: templates with ``{}``.
        temperature: default T of the labels.
        loss: of the fit.
        steps: gradient steps; None goes by ``epochs``.
        epochs: passes over the training images.
        batch_size: views in a batch.
        lr: learning rate.
        precision: of the stored numbers.
        table: whether every precision is measured.
        work: folder of finished stages.
        force: replace an existing archive.
        output: path of the archive.
    """

    teachers: tuple[str, ...]
    teacher_epochs: int
    maturity: float | None
    base: str
    rank: int
    head_rank: int | None
    targets: tuple[str, ...]
    start: str | None
    prompts: tuple[str, ...]
    temperature: float
    loss: Literal["kl", "mse_ce"]
    steps: int | None
    epochs: int | None
    batch_size: int
    lr: float
    precision: Storage
    table: bool
    work: str | None
    force: bool
    output: str


fit_options = grouped(
    "fit",
    FitOptions,
    click.option(
        "--teacher",
        "teachers",
        multiple=True,
        required=True,
        metavar="TEACHER",
        help="Teacher to imitate: a folder of `hello teach`; NETWORK=FILE, where FILE holds weights"
        " as safetensors or as torch.save writes them, and NETWORK is a name of torchvision or"
        " timm, torchvision:NAME, timm:NAME or MODULE:FACTORY; timm:NAME=pretrained or"
        " torchvision:NAME=pretrained, which downloads; MODULE:FACTORY alone, a function of yours"
        " that returns it. A bare NETWORK is trained first. Several teachers give their mean.",
    ),
    *_TEACHER_OPTIONS,
    click.option(
        "--teacher-epochs",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Passes over DATA of a teacher that is trained first.",
    ),
    click.option(
        "--maturity",
        type=click.FloatRange(0, 1, min_open=True),
        help="Fraction of its final accuracy at which a teacher of `hello teach` is taken."
        "  [default: by --ipc, else 1]",
    ),
    click.option(
        "--base",
        required=True,
        metavar="BASE",
        help="Base encoder to adapt: open_clip:NAME:PRETRAINED, local-dir:PATH, hf-hub:ORG/NAME, or"
        " seeded[:SEED].",
    ),
    click.option(
        "--rank",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Rank of the low-rank deltas.",
    ),
    click.option(
        "--head-rank",
        type=click.IntRange(1),
        help="Rank of the delta of a head that starts from class names.  [default: the paper's]",
    ),
    click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="RULE",
        help="Weights to adapt: `paper`, `transformer`, `all`, or PATTERN[:RANK[:SCALE]]."
        "  [default: all]",
    ),
    click.option(
        "--head-start",
        "start",
        type=Choice(["text", "stored"]),
        help="Start the head from the text of class names, or store it as a whole matrix."
        "  [default: whichever is smaller]",
    ),
    click.option(
        "--prompt",
        "prompts",
        multiple=True,
        metavar="TEXT",
        help="Text for a class, where `{}` stands for its name.  [default: a photo of a {}.]",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0.001, 100_000),
        default=4.0,
        show_default=True,
        help="Default temperature of the labels.",
    ),
    click.option(
        "--loss",
        type=Choice(["kl", "mse_ce"]),
        default="kl",
        show_default=True,
        help="Minimise KL at T = 2, or the paper's MSE of logits + 0.1 cross-entropy.",
    ),
    click.option("--steps", type=click.IntRange(1), help="Gradient steps of the fit."),
    click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Passes over DATA, instead of --steps.  [default: 50, but at most 4,000 steps]",
    ),
    batch_size_option,
    click.option(
        "--lr",
        type=click.FloatRange(0, min_open=True),
        default=3e-3,
        show_default=True,
        help="Learning rate of the fit.",
    ),
    precision_option(),
    click.option(
        "--precision-table/--no-precision-table",
        "table",
        default=True,
        show_default=True,
        help="Print bytes and fidelity of every precision, measured on 512 new views.",
    ),
    click.option("--work", metavar="DIR", help="Keep finished stages here, also when all is done."),
    force_option(),
    output_option("FILE", "Write this archive."),
)
