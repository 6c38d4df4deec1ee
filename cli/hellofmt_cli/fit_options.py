"""The options of a fit and of its teacher, shared by ``fit``, ``distill`` and ``labels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import click

from hellofmt_cli.options import (
    Choice,
    batch_size_option,
    force_option,
    grouped,
    option,
    output_option,
    precision_option,
    shared,
)

if TYPE_CHECKING:
    from hellofmt.archive import Storage


@dataclass(frozen=True)
class TeacherOptions:
    """How a teacher sees images and what its outputs mean; None is the teacher's own rule."""

    HEADING: ClassVar[str] = "Teacher"

    teacher_mean: tuple[float, float, float] | None = option(
        nargs=3,
        type=float,
        help="Mean of each channel that the teacher's network expects, in [0, 1]; 0 0 0 with"
        " --teacher-std 1 1 1 for a network that normalises inside.  [default: its library's, else"
        " ImageNet's]",
    )
    teacher_std: tuple[float, float, float] | None = option(
        nargs=3,
        type=click.FloatRange(0, min_open=True),
        help="Standard deviation of each channel that the teacher's network expects.",
    )
    teacher_size: int | None = option(
        type=click.IntRange(4, 1024),
        help="Side in pixels that views are resized to for the teacher.  [default: its library's,"
        " else that of the views]",
    )
    teacher_classes: str | None = option(
        metavar="FILE",
        help="Class list in the order of the teacher's outputs, whose keys pick those of DATA."
        "  [default: WordNet ids for a teacher of ImageNet, else the classes of DATA]",
    )


teacher_options = grouped("teacher_input", TeacherOptions)


@dataclass(frozen=True)
class FitOptions(TeacherOptions):
    """Teacher, base, fit and archive of ``hello fit`` and ``hello distill``."""

    HEADING: ClassVar[str] = "Label function"

    teachers: tuple[str, ...] = option(
        "--teacher",
        heading="Teacher",
        multiple=True,
        required=True,
        metavar="TEACHER",
        help="Teacher to imitate: a folder of `hello teach`; NETWORK=FILE, where FILE holds weights"
        " as safetensors or as torch.save writes them, and NETWORK is a name of torchvision or"
        " timm, torchvision:NAME, timm:NAME or MODULE:FACTORY; timm:NAME=pretrained or"
        " torchvision:NAME=pretrained, which downloads; MODULE:FACTORY alone, a function of yours"
        " that returns it. A bare NETWORK is trained first. Several teachers give their mean.",
    )
    teacher_epochs: int = option(
        heading="Teacher",
        type=click.IntRange(1),
        default=20,
        help="Number of passes over DATA for a teacher that is trained first.",
    )
    maturity: float | None = option(
        heading="Teacher",
        type=click.FloatRange(0, 1, min_open=True),
        help="Fraction of its final accuracy at which a teacher of `hello teach` is taken."
        "  [default: by --ipc, else 1]",
    )
    base: str = option(
        required=True,
        metavar="BASE",
        help="Base encoder to adapt: open_clip:NAME:PRETRAINED, timm:NAME=FILE, timm:NAME, which"
        " downloads, local-dir:PATH, hf-hub:ORG/NAME, or seeded[:SEED].",
    )
    rank: int = option(type=click.IntRange(1), default=8, help="Rank of the low-rank deltas.")
    head_rank: int | None = option(
        type=click.IntRange(1),
        help="Rank of the delta of a head that starts from class names, or of the two factors that"
        " a stored head is the product of.  [default: the paper's from class names, else the whole"
        " matrix]",
    )
    targets: tuple[str, ...] = option(
        "--target",
        multiple=True,
        metavar="RULE",
        help="Weights to adapt: `paper`, `transformer`, `all`, or PATTERN[:RANK[:SCALE]]."
        "  [default: all]",
    )
    start: str | None = option(
        "--head-start",
        type=Choice(["text", "stored"]),
        help="Start the head from the text of class names, or store it: a whole matrix, with"
        " --head-rank two factors."
        "  [default: whichever is smaller]",
    )
    prompts: tuple[str, ...] = option(
        "--prompt",
        multiple=True,
        metavar="TEXT",
        help="Text for a class, where `{}` stands for its name.  [default: a photo of a {}.]",
    )
    temperature: float = option(
        type=click.FloatRange(0.001, 100_000),
        default=4.0,
        help="Default temperature of the labels.",
    )
    loss: Literal["kl", "mse_ce"] = option(
        heading="Fit",
        type=Choice(["kl", "mse_ce"]),
        default="kl",
        help="Minimise KL at T = 2, or the paper's MSE of logits + 0.1 cross-entropy.",
    )
    steps: int | None = option(
        heading="Fit", type=click.IntRange(1), help="Number of gradient steps of the fit."
    )
    epochs: int | None = option(
        heading="Fit",
        type=click.IntRange(1),
        help="Number of passes over DATA, instead of --steps."
        "  [default: 50, but at most 4,000 steps]",
    )
    batch_size: int = shared(batch_size_option, "Fit")
    lr: float = option(
        heading="Fit",
        type=click.FloatRange(0, min_open=True),
        default=3e-3,
        help="Learning rate of the fit.",
    )
    compile: bool = option(
        heading="Fit",
        is_flag=True,
        help="Compile the networks of the fit by torch.compile; its first step then takes minutes.",
    )
    precision: Storage = shared(precision_option())
    table: bool = option(
        "--precision-table/--no-precision-table",
        heading="Output",
        default=True,
        help="Print bytes and fidelity of every precision, measured on 512 new views.",
    )
    work: str | None = option(
        heading="Output", metavar="DIR", help="Keep finished stages here, also when all is done."
    )
    force: bool = shared(force_option(), "Output")
    output: str = shared(output_option("FILE", "Write this archive."), "Output")


fit_options = grouped("fit", FitOptions)
