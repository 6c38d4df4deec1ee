"""``hello train``: a student from an archive and nothing else, measured on real images.

Under ``torchrun`` every process trains on its share of each batch; rank 0 alone measures, prints
and writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hellofmt.errors import UserInputError
from hellofmt_cli.console import console
from hellofmt_cli.options import check_steps, json_option, limit_option
from hellofmt_cli.output import echo_json, echo_page
from hellofmt_cli.train_options import train_options

if TYPE_CHECKING:
    from hellofmt_cli.train_options import TrainOptions

__all__ = ["train"]


@click.command("train")
@train_options
@limit_option
@json_option
def train(options: TrainOptions, as_json: bool) -> None:
    """Train a fresh NETWORK on the archive FILE and report its accuracy.

    Reported are the accuracy after the last step and, apart, the best of the measurements on the
    way: the field often publishes the best, which looks at the test images to choose.
    """
    check_steps(options.steps, options.epochs)
    if options.labels == "hard" and options.recipe is not None:
        raise UserInputError.make("E_OPTION", "`--recipe` with hard labels: expected none")
    with console.stage("loading PyTorch"):
        from hellofmt_cli.training import train_student
    document = train_student(options)
    if not console.is_speaking:
        return
    if as_json:
        echo_json(document)
        return
    accuracy = document["accuracy"]
    run = f"{document['recipe']}, {document['steps']:,} steps of {document['batch_size']} views"
    best = f"{accuracy['best']:.2f} % of {len(document['measured'])} measurements on the way"
    echo_page(
        [
            ("student", f"{document['student']}, seed {document['seed']}"),
            ("recipe", run),
            ("accuracy, last", f"{accuracy['last']:.2f} % of {document['images']:,} images"),
            ("accuracy, best", f"{best}, at step {accuracy['best_step']:,}"),
        ]
    )
