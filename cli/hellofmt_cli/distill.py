"""``hello distill``: a data set and a teacher into one archive."""

from __future__ import annotations

from typing import Any, Literal

import click

from hellofmt.distillation import RefineSettings, SelectSettings
from hellofmt_cli.making import data_options, fit_options, make_archive
from hellofmt_cli.output import Choice, json_option

__all__ = ["distill"]


@click.command("distill")
@data_options
@fit_options
@click.option("--ipc", type=click.IntRange(1), required=True, help="Images per class.")
@click.option(
    "--factor",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Cells per side of an image; 2 suits images from 128 pixels.",
)
@click.option(
    "--candidates",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Images per class that are looked at.",
)
@click.option(
    "--crops", type=click.IntRange(1), default=5, show_default=True, help="Crops of each."
)
@click.option("--refine", is_flag=True, help="Move pixels towards their crops; needs --factor 2.")
@click.option(
    "--refine-steps", type=click.IntRange(1), default=200, show_default=True, help="Of AdamW."
)
@click.option(
    "--refine-by",
    type=Choice(["features", "labels"]),
    default="features",
    show_default=True,
    help="What a stored cell is to share with its crop; `features` is the paper's.",
)
@click.option("-o", "--output", required=True, metavar="FILE", help="The archive to write.")
@json_option
def distill(
    data: tuple[str, ...],
    output: str,
    as_json: bool,
    ipc: int,
    factor: int,
    candidates: int,
    crops: int,
    refine: bool,
    refine_steps: int,
    refine_by: Literal["features", "labels"],
    **options: Any,
) -> None:
    """Distil DATA into an archive of few images and a label function.

    DATA is as for `hello teach`.

    The teacher is measured, a label function is fitted to it, the images it is surest of are
    chosen, and all of it is written and verified. Finished stages are kept beside the archive while
    it is made (--work keeps them for good, and several --ipc share them): killed anywhere, the same
    command ends in the same file. `torchrun -m hellofmt distill ...` divides fit, choice and
    refinement among processes; a teacher that has to be trained first is rank 0's, and the others
    wait for it.
    """
    make_archive(
        data,
        output,
        ipc=ipc,
        as_json=as_json,
        select=SelectSettings(ipc, factor, candidates, crops, seed=options["seed"]),
        refine=RefineSettings(steps=refine_steps, objective=refine_by) if refine else None,
        **options,
    )
