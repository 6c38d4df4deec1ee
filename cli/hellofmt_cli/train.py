"""``hello train``: a student from an archive and nothing else, measured on real images.

Under ``torchrun`` every process trains on its share of each batch; rank 0 alone measures, prints
and writes.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from hellofmt.archive import spread
from hellofmt.errors import UserInputError, shown_path
from hellofmt_cli.console import console
from hellofmt_cli.options import check_steps, command, json_option, limit_option
from hellofmt_cli.output import count, echo_json, echo_page
from hellofmt_cli.train_options import train_options

if TYPE_CHECKING:
    from hellofmt_cli.train_options import TrainOptions


@command("train", has_config=True)
@train_options
@limit_option
@json_option
def train(options: TrainOptions, as_json: bool) -> None:
    """Train a fresh NETWORK on the archive FILE and report its accuracy.

    Reported are the accuracy after the last step and, apart, the best of the measurements on the
    way: the field often publishes the best, which looks at the test images to choose.

    Where FILE records a result of such a run (the same network, recipe, steps, labels and test
    images), the last line holds the new accuracy against it, as mean and standard deviation over
    the recorded seeds. It is reproduced if it lies in the 95 % prediction interval of one more
    seed: mean ± t s sqrt(1 + 1/n); with --seeds k, of the mean of k, with 1/k for 1. A single
    recorded seed has no spread; then two accuracies on as many images may differ by chance, 1.96
    sqrt(2 p (1 - p) / images). --record adds the result to a copy of FILE; with --labels hard and
    with --random DATA, too, it has the baselines.

    \b
    hello train x.hello --student resnet18 --eval val
    hello train x.hello --student cnn --eval val --seeds 3 --record copy.hello
    """  # noqa: D301 - click wants the character
    check_steps(options.steps, options.epochs)
    if options.labels == "hard" and options.recipe is not None:
        raise UserInputError.make("E_OPTION", "`--recipe` with hard labels: expected none")
    for name in ("curve", "output"):
        if options.seeds > 1 and getattr(options, name) is not None:
            raise UserInputError.make("E_OPTION", f"`--{name}` is of one run; expected `--seeds 1`")
    if options.wandb is not None and options.curve is None:
        raise UserInputError.make("E_OPTION", "`--wandb` needs `--curve`, where the run is kept")
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
    if document["trained_on"] == "random":
        run += ", on random images"
    rows: list[tuple[str, str] | None] = [
        ("student", f"{document['student']}, seed {document['seed']}"),
        ("recipe", run),
        ("accuracy, last", f"{accuracy['last']:.2f} % of {document['images']:,} images"),
        ("accuracy, best", f"{best}, at step {accuracy['best_step']:,}"),
    ]
    reached = [run["last"] for run in document["runs"]]
    if len(reached) > 1:
        seeds = ", ".join(
            f"{run['last']:.2f} % with seed {run['seed']}" for run in document["runs"]
        )
        rows = [*rows[:2], ("accuracy, last", f"{spread(reached)}: {seeds}")]
        rows[0] = "student", f"{document['student']}, {count(len(reached), 'seed')}"
    if document["recorded"] is not None:
        rows.append(("verdict", _verdict(document["recorded"], reached)))
    if options.output is not None:
        rows.append(("written", shown_path(options.output)))
    if document["copy"] is not None:
        rows.append(("recorded in", shown_path(document["copy"]["path"])))
        rows.append(("id", document["copy"]["id"]))
    echo_page(rows)


def _verdict(recorded: dict[str, Any], here: list[float]) -> str:
    """``recorded 41.2 ± 1.7 % (3 seeds), here 40.8 %: reproduced``, or what differs."""
    differs = ", ".join(recorded["differs"])
    if recorded["reproduced"] is None:
        return f"no recorded result is of such a run; the nearest differs in {differs}"
    known = recorded["accuracy"]
    text = f"recorded {spread(known)} ({count(len(known), 'seed')}), here {spread(here)}: "
    if recorded["reproduced"]:
        return text + "reproduced"
    apart = statistics.fmean(here) - statistics.fmean(known)
    text += (
        f"not reproduced, {abs(apart):.1f} points {'higher' if apart > 0 else 'lower'}, where 95 %"
        f" of new seeds are within {recorded['tolerance']:.1f}"
    )
    return f"{text}; differs in {differs}" if differs else text
