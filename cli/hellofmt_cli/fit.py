"""``hello fit``: a label function for a data set, as an archive without images."""

from __future__ import annotations

from typing import Any

import click

from hellofmt_cli.making import data_options, fit_options, make_archive
from hellofmt_cli.output import json_option

__all__ = ["fit"]


@click.command("fit")
@data_options
@fit_options
@click.option("-o", "--output", required=True, metavar="FILE", help="The archive to write.")
@json_option
def fit(data: tuple[str, ...], output: str, as_json: bool, **options: Any) -> None:
    """Fit a label function to a teacher on DATA and write it as an archive without images.

    DATA is as for `hello teach`.

    `hello pack IMAGES --projector FILE` joins it with images; HelloDataset(FILE, images=...) labels
    a data set that is there already.

    A fit that was killed continues where it was. `torchrun -m hellofmt fit ...` divides each batch
    among processes; a teacher that has to be trained first is rank 0's, and the others wait for it.
    """
    make_archive(data, output, ipc=None, as_json=as_json, **options)
