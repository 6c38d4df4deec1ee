"""``hello distill``: a data set and a teacher into one archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import click

from hellofmt_cli.byte_sizes import ByteSize
from hellofmt_cli.console import console
from hellofmt_cli.fit_options import fit_options
from hellofmt_cli.options import (
    Choice,
    check_steps,
    command,
    data_options,
    grouped,
    json_option,
    option,
)
from hellofmt_cli.text_options import text_options

if TYPE_CHECKING:
    from hellofmt_cli.fit_options import FitOptions
    from hellofmt_cli.options import DataOptions
    from hellofmt_cli.text_options import TextOptions


@dataclass(frozen=True)
class ImageOptions:
    """How images are chosen and stored."""

    HEADING: ClassVar[str] = "Image"

    ipc: int | None = option(
        type=click.IntRange(1), help="Number of images to choose per class; or give --bytes."
    )
    budget: int | None = option(
        "--bytes",
        type=ByteSize(),
        metavar="SIZE",
        help="Size of the whole archive at most, such as 500kB, 2MB or 1.5MiB, instead of --ipc:"
        " number per class, codec and quality are chosen to spend it best (`hello plan --bytes`"
        " says how).",
    )
    select: Literal["random", "rded", "coverage", "balanced"] = option(
        type=Choice(["random", "rded", "coverage", "balanced"]),
        default="coverage",
        help="Which images of a class. `coverage`: those that the others are nearest to, in the"
        " label function's eyes, the best of the four or level with it at 1, 10 and 50 per class"
        " where we measured; `balanced`: half of them such, half hard ones (needs scikit-learn);"
        " `rded`: those that the teacher is surest of; `random`: the baseline.",
    )
    crop: Literal["none", "easiest"] | None = option(
        type=Choice(["none", "easiest"]),
        help="What is stored of an image: all of it, or the one of five random crops that the"
        " teacher is surest of.  [default: easiest for `rded`, else none]",
    )
    factor: int = option(
        type=click.IntRange(1, 8),
        default=1,
        help="Number of images or crops per side of a stored image; 2 may suit from 128 pixels.",
    )
    candidates: int = option(
        type=click.IntRange(1), default=300, help="Number of images per class to choose from."
    )
    codec: Literal["png", "jpeg", "webp"] | None = option(
        type=Choice(["png", "jpeg", "webp"]),
        help="How images are stored. `png` keeps every pixel: 89 kB at 224 pixels, 4.5 GB for"
        " ImageNet-1K at 50 per class; `jpeg` (4:4:4) and `webp` take less than 1 GB and lose"
        " detail, and how far that moves the labels is then measured.  [default: png]",
    )
    quality: int | None = option(
        type=click.IntRange(1, 100),
        help="Quality of JPEG and WebP; 100 keeps every pixel of a WebP.  [default: 85 for JPEG, 90"
        " for WebP]",
    )


@command("distill", has_config=True)
@data_options
@fit_options
@grouped("images", ImageOptions)
@text_options
@json_option
def distill(
    data: DataOptions, fit: FitOptions, images: ImageOptions, texts: TextOptions, as_json: bool
) -> None:
    """Distil DATA into an archive of few images and a label function.

    DATA is as for `hello teach`.

    The teacher is measured, a label function is fitted to it, images are chosen, and all of it is
    written and verified. Finished stages are kept beside the archive while it is made (--work keeps
    them for good, and several --ipc and --bytes share them): killed anywhere, the same command ends
    in the same file. `torchrun -m hellofmt distill ...` divides fit and choice among processes, and
    the training of a teacher that has to be trained first.

    \b
    hello distill photos --teacher resnet18=best.pth --base seeded --ipc 10 -o x.hello
    hello distill photos --teacher resnet18=best.pth --base seeded --bytes 2MB -o x.hello
    hello distill train/ --teacher t/ --base open_clip:RN50-quickgelu:openai --ipc 50 -o x.hello
    """  # noqa: D301 - click wants the character
    check_steps(fit.steps, fit.epochs)
    if (images.ipc is None) == (images.budget is None):
        raise click.UsageError("give one of --ipc and --bytes")
    if images.budget is not None and (images.codec or images.quality):
        raise click.UsageError("--bytes chooses codec and quality; expected neither of them")
    if images.quality is not None and images.codec in {None, "png"}:
        raise click.UsageError("--quality needs --codec jpeg or webp: PNG keeps every pixel")
    with console.stage("loading PyTorch"):
        from hellofmt.distillation import DistillSettings, SelectSettings
        from hellofmt_cli.making import make_archive
    make_archive(
        data,
        fit,
        texts.read(),
        as_json=as_json,
        chosen=DistillSettings(
            SelectSettings(
                images.ipc or 0,
                images.factor,
                images.select,
                images.crop,
                images.candidates,
                seed=data.seed,
            ),
            codec=images.codec or "png",
            quality=images.quality,
            budget=images.budget,
        ),
    )
