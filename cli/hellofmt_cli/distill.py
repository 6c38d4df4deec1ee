"""``hello distill``: a data set and a teacher into one archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from hellofmt_cli.console import console
from hellofmt_cli.fit_options import fit_options
from hellofmt_cli.options import Choice, check_steps, data_options, grouped, json_option
from hellofmt_cli.text_options import text_options

if TYPE_CHECKING:
    from hellofmt.archive import Texts
    from hellofmt_cli.fit_options import FitOptions
    from hellofmt_cli.options import DataOptions

__all__ = ["distill"]


@dataclass(frozen=True)
class ImageOptions:
    """How images are chosen and refined.

    Attributes:
        ipc: images per class.
        factor: cells per side of an image.
        candidates: images per class that are looked at.
        crops: crops of each.
        refine: whether pixels are moved.
        refine_steps: gradient steps of that.
        refine_by: what a cell shares with its crop.
        codec: how images are stored.
        quality: of JPEG and WebP; None is the codec's own.
    """

    ipc: int
    factor: int
    candidates: int
    crops: int
    refine: bool
    refine_steps: int
    refine_by: Literal["features", "labels"]
    codec: Literal["png", "jpeg", "webp"]
    quality: int | None


@click.command("distill")
@data_options
@fit_options
@grouped(
    "images",
    ImageOptions,
    click.option("--ipc", type=click.IntRange(1), required=True, help="Images per class."),
    click.option(
        "--factor",
        type=click.IntRange(1, 8),
        default=1,
        show_default=True,
        help="Cells per side of an image; 2 suits images from 128 pixels.",
    ),
    click.option(
        "--candidates",
        type=click.IntRange(1),
        default=300,
        show_default=True,
        help="Images per class that are looked at.",
    ),
    click.option(
        "--crops",
        type=click.IntRange(1),
        default=5,
        show_default=True,
        help="Crops that are tried of each candidate.",
    ),
    click.option(
        "--refine", is_flag=True, help="Move pixels towards their crops; needs --factor 2."
    ),
    click.option(
        "--refine-steps",
        type=click.IntRange(1),
        default=200,
        show_default=True,
        help="Steps of AdamW that move the pixels.",
    ),
    click.option(
        "--refine-by",
        type=Choice(["features", "labels"]),
        default="features",
        show_default=True,
        help="What a stored cell is to share with its crop; `features` is the paper's.",
    ),
    click.option(
        "--codec",
        type=Choice(["png", "jpeg", "webp"]),
        default="png",
        show_default=True,
        help="How images are stored. `png` keeps every pixel: 89 kB at 224 pixels, 4.5 GB for"
        " ImageNet-1K at 50 per class; `jpeg` (4:4:4) and `webp` take less than 1 GB and lose"
        " detail, and how well labels of what is left follow the teacher is then measured.",
    ),
    click.option(
        "--quality",
        type=click.IntRange(1, 100),
        help="Quality of JPEG and WebP; 100 keeps every pixel of a WebP.  [default: 85 for JPEG, 90"
        " for WebP]",
    ),
)
@text_options("DATA")
@json_option
def distill(
    data: DataOptions, fit: FitOptions, images: ImageOptions, texts: Texts, as_json: bool
) -> None:
    """Distil DATA into an archive of few images and a label function.

    DATA is as for `hello teach`.

    The teacher is measured, a label function is fitted to it, the images it is surest of are
    chosen, and all of it is written and verified. Finished stages are kept beside the archive while
    it is made (--work keeps them for good, and several --ipc share them): killed anywhere, the same
    command ends in the same file. `torchrun -m hellofmt distill ...` divides fit, choice and
    refinement among processes, and the training of a teacher that has to be trained first.
    """
    check_steps(fit.steps, fit.epochs)
    if images.quality is not None and images.codec == "png":
        raise click.UsageError("--quality needs --codec jpeg or webp: PNG keeps every pixel")
    with console.stage("loading PyTorch"):
        from hellofmt.distillation import DistillSettings, RefineSettings, SelectSettings
        from hellofmt_cli.making import make_archive
    refine = None
    if images.refine:
        refine = RefineSettings(steps=images.refine_steps, objective=images.refine_by)
    make_archive(
        data,
        fit,
        texts,
        as_json=as_json,
        chosen=DistillSettings(
            SelectSettings(
                images.ipc, images.factor, images.candidates, images.crops, seed=data.seed
            ),
            refine=refine,
            codec=images.codec,
            quality=images.quality,
        ),
    )
