"""``hello plan``: what labels of a data set would cost, stored or made online.

Arithmetic only: nothing is downloaded or run, no image is read but of DATA, and torch is not
imported. The page names every assumption behind it, and says plainly where stored labels, or the
teacher itself, would be smaller.
One document is built first; ``--json`` prints it, the page shows the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from hellofmt.errors import UserInputError, printable
from hellofmt.ledger import DATASETS, PRECISIONS, TOWERS
from hellofmt.ledger import plan as make_plan
from hellofmt_cli.byte_sizes import ByteSize
from hellofmt_cli.inspect_rows import percent
from hellofmt_cli.options import (
    Choice,
    argument,
    command,
    grouped,
    json_option,
    option,
    view_size_option,
)
from hellofmt_cli.output import count, echo_json, echo_page, echo_table, echo_text, size
from hellofmt_cli.plan_budget import describe_spending, pictures_of, spending_of
from hellofmt_cli.terminal import heading, width_of, wrapped

if TYPE_CHECKING:
    from typing import Literal

    from hellofmt.archive import Storage
    from hellofmt.ledger import Plan

DEFAULT_EPOCHS = 300


@dataclass(frozen=True)
class PlanOptions:
    """What is planned, and for which device."""

    data: tuple[str, ...] = argument(nargs=-1)
    budget: int | None = option(
        "--bytes",
        type=ByteSize(),
        metavar="SIZE",
        help="Size of a whole archive, such as 2MB, instead of --ipc: say what `hello distill"
        " --bytes` would choose. Images of DATA are weighed, if it is given.",
    )
    view_size: int | None = view_size_option("that of DATA, else 224; for --bytes", 1024)
    dataset: str | None = option(
        type=Choice(list(DATASETS)), help="Take the sizes of a known data set."
    )
    classes: int | None = option(type=click.IntRange(1), help="Number of classes.")
    ipc: int | None = option(type=click.IntRange(1), help="Number of images per class.")
    images: int | None = option(
        type=click.IntRange(1), help="Number of all images, instead of --ipc."
    )
    epochs: int | None = option(
        type=click.IntRange(1), help="Number of passes over the images.  [default: 300]"
    )
    base: str = option(default="RN50", help=f"Base encoder: {', '.join(TOWERS)}.")
    precision: Storage = option(
        type=Choice(PRECISIONS),
        default="int8",
        help="How the numbers of the label function that is compared are stored.",
    )
    rank: int = option(type=click.IntRange(1), default=8, help="Rank of the low-rank deltas.")
    head_rank: str | None = option(
        metavar="RANK", help="Rank of the head's delta, or `full`.  [default: the paper's]"
    )
    teacher_parameters: int | None = option(
        type=click.IntRange(1),
        help="Number of parameters of the teacher.  [default: those of a ResNet-18]",
    )
    device_tflops: float = option(
        default=989.0,
        help="Peak of the device in TFLOP/s; the default is an H100's in bfloat16 by its data"
        " sheet.",
    )
    utilisation: float = option(default=0.4, help="Share of the peak that is reached.")
    bandwidth: float = option(default=3.0, help="GB/s at which stored labels are read.")


@command("plan")
@grouped("options", PlanOptions)
@json_option
def plan(options: PlanOptions, as_json: bool) -> None:
    """Say what labels of a data set cost, before anything is run.

    Bytes stored and moved, GFLOP and device-hours, break-even, for stored labels of every form, a
    shipped teacher and a label function, with the base encoder charged and public. Every assumption
    is printed.

    \b
    hello plan --dataset imagenet-1k --ipc 50
    hello plan --classes 500 --images 1000000 --epochs 90 --base ViT-B-16
    hello plan --bytes 2MB photos/train
    """  # noqa: D301 - click wants the character
    spent = None
    if options.budget is not None:
        options, spent = _spent(options, options.budget)
    elif options.data:
        raise click.UsageError("DATA is read for --bytes only; expected none")
    classes, images, epochs, note = _sizes(options)
    made = _made(options, classes, images, epochs)
    document = describe_plan(made, options.dataset, note, spent)
    if as_json:
        echo_json(document)
    else:
        _echo_plan(document)


def _spent(options: PlanOptions, budget: int) -> tuple[PlanOptions, dict[str, Any]]:
    """The options with the numbers of classes and images that a budget buys, and what it buys."""
    if options.ipc is not None or options.images is not None:
        raise click.UsageError("--bytes chooses the number of images; expected no --ipc, --images")
    classes = options.classes
    if options.dataset and classes is None:
        classes = DATASETS[options.dataset].classes
    pictures = pictures_of(options.data, classes, options.view_size)
    function = _made(options, pictures.classes, pictures.classes, 1).function.public
    best = spending_of(budget, function, pictures)
    found = replace(options, classes=pictures.classes, ipc=best.ipc)
    return found, describe_spending(budget, best, pictures)


def _made(options: PlanOptions, classes: int, images: int, epochs: int) -> Plan:
    return make_plan(
        classes,
        images,
        epochs,
        options.base,
        precision=options.precision,
        rank=options.rank,
        head_rank=_head_rank(options.head_rank),
        teacher_parameters=options.teacher_parameters,
        device_tflops=options.device_tflops,
        utilisation=options.utilisation,
        bandwidth=options.bandwidth,
    )


def _sizes(options: PlanOptions) -> tuple[int, int, int, str]:
    """Classes, images, epochs and the preset's note; options win over the preset."""
    preset = DATASETS[options.dataset] if options.dataset else None
    classes, epochs, ipc, images = options.classes, options.epochs, options.ipc, options.images
    if preset is not None:
        classes = preset.classes if classes is None else classes
        epochs = preset.epochs if epochs is None else epochs
        if ipc is None and images is None:
            ipc, images = preset.ipc or None, preset.images or None
    if classes is None:
        raise UserInputError.make("E_OPTION", "give --dataset, or --classes with --ipc or --images")
    if (ipc is None) == (images is None):
        raise UserInputError.make("E_OPTION", "give one of --ipc and --images")
    number = images if images is not None else classes * (ipc or 0)
    note = preset.note if preset is not None else ""
    return classes, number, DEFAULT_EPOCHS if epochs is None else epochs, note


def _head_rank(text: str | None) -> int | Literal["full"] | None:
    if text is None:
        return None
    if text == "full":
        return "full"
    if not (text.isascii() and text.isdigit()):
        raise UserInputError.make(
            "E_OPTION", f"head-rank: expected full or a number, got {printable(text, 40)}"
        )
    return int(text)


def describe_plan(
    made: Plan, dataset: str | None, note: str, budget: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The document ``hello.plan/1``; sizes are bytes, ratios dimensionless."""
    ours = made.function
    return {
        "schema": "hello.plan/1",
        "dataset": dataset,
        "classes": made.classes,
        "images": made.images,
        "epochs": made.epochs,
        "budget": budget,
        "labels": made.labels,
        "base": {
            "name": made.tower.name,
            "size": made.tower.size,
            "embed_dim": made.tower.dim,
            "parameters": made.tower.parameters,
            "buffers": made.tower.buffers,
            "text_parameters": made.tower.text_parameters,
            "gflop_per_label": made.tower.gflop,
        },
        "precision": made.precision,
        "rank": made.rank,
        "head_rank": made.head_rank,
        "values": made.values,
        "label_functions": [
            {
                "precision": f.precision,
                "values_bytes": f.values_bytes,
                "adapter": f.adapter,
                "head": f.head,
                "probes": f.probes,
                "base_public": f.public,
                "base_charged": f.charged,
            }
            for f in made.functions
        ],
        "rivals": [
            {
                "name": rival.name,
                "bytes": rival.size_bytes,
                "bytes_per_epoch": rival.epoch_bytes,
                "ratio_public": rival.public,
                "ratio_charged": rival.charged,
                "break_even_public": rival.break_even_public,
                "break_even_charged": rival.break_even_charged,
            }
            for rival in made.rivals
        ],
        "smaller": list(made.smaller),
        "teacher_parameters": made.teacher_parameters,
        "data_sets_per_base": dict(made.data_sets),
        "moved": {
            "stored_per_epoch": made.stored // made.epochs,
            "stored": made.stored,
            "function_once": ours.public,
            "base_once": ours.base,
        },
        "work": {
            "gflop": made.gflop_total,
            "device_tflops": made.device_tflops,
            "utilisation": made.utilisation,
            "device_hours": made.device_hours,
            "bandwidth": made.bandwidth,
            "read_hours": made.read_hours,
        },
        "assumptions": [*([note] if note else []), *made.assumptions],
    }


def _short(number: int) -> str:
    """``5.59 GiB``: the unit without the exact count, which the JSON document has."""
    return size(number).partition(" (")[0]


def _hours(hours: float) -> str:
    """A time in the unit that suits it: ``0.4 s``, ``12 min``, ``110 h``, ``3,200 h``."""
    if hours < 1 / 60:
        return f"{3600 * hours:.2g} s"
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.2g} h"


def _gflop(number: float) -> str:
    """GFLOP in the unit that suits it: ``12.2 GFLOP``, ``183 PFLOP``."""
    for unit in ("GFLOP", "TFLOP", "PFLOP"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} EFLOP" if number < 999.5 else f"{number:,.0f} EFLOP"


def _epoch(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _echo_plan(document: dict[str, Any]) -> None:
    """The page: the question, both sides, the verdict, the work, the assumptions."""
    base, work, moved = document["base"], document["work"], document["moved"]
    name = f"{document['dataset']}: " if document["dataset"] else ""
    images = (
        f"{count(document['classes'], 'class', 'classes')}, {count(document['images'], 'image')}"
    )
    epochs = count(document["epochs"], "epoch")
    spent = document["budget"]
    if spent is not None:
        at = f" at quality {spent['quality']}" if spent["quality"] else ""
        each = f"{spent['codec']}{at}, {spent['bytes_per_image']:,} bytes each"
        bought = f"{count(spent['ipc'], 'image')} per class, {each}, beside the label function"
        assumed = [("assumed", sentence) for sentence in spent["assumptions"]]
        echo_page([(f"{spent['bytes']:,} bytes buy", bought), *assumed, None])
    head = "full head" if document["head_rank"] is None else f"head rank {document['head_rank']}"
    echo_page(
        [
            ("data set", f"{name}{images}, {epochs}: {count(document['labels'], 'label')}"),
            ("base", f"{base['name']}, {base['gflop_per_label']:.2f} GFLOP per label"),
            (
                "label function",
                f"{count(document['values'], 'value')}, rank {document['rank']}, {head}",
            ),
        ]
    )
    click.echo()
    rows = [("", "values", "base public", "base charged")]
    rows += [
        (
            f["precision"],
            f"{f['values_bytes']:,}",
            f"{f['base_public']:,}",
            f"{f['base_charged']:,}",
        )
        for f in document["label_functions"]
    ]
    echo_table(rows, "bytes of the label function")
    click.echo()
    rows = [("", "size", "base public", "from epoch", "base charged", "from epoch")]
    rows += [
        (
            rival["name"],
            _short(rival["bytes"]),
            percent(rival["ratio_public"]),
            _epoch(rival["break_even_public"]),
            percent(rival["ratio_charged"]),
            _epoch(rival["break_even_charged"]),
        )
        for rival in document["rivals"]
    ]
    echo_table(rows, f"other ways, and what the {document['precision']} label function is of them")
    click.echo()
    echo_text(_verdict(document))
    click.echo()
    each = document["data_sets_per_base"]
    echo_page(
        [(key, "never" if n is None else f"{n:.1f}") for key, n in each.items()],
        "data sets that must share one base before label functions beat a teacher in each",
    )
    click.echo()
    stored = f"{_short(moved['stored_per_epoch'])} in each epoch, {_short(moved['stored'])} in all"
    once = f"{_short(moved['function_once'])} once, and {_short(moved['base_once'])} for the base"
    made = f"{_gflop(work['gflop'])}, {_hours(work['device_hours'])} of one device"
    echo_page(
        [
            ("stored labels", f"{stored}, {_hours(work['read_hours'])} to read"),
            ("label function", f"{once} where it is not at hand"),
            ("labels online", made),
        ],
        "moved and computed",
    )
    click.echo()
    click.echo(heading("assumptions"))
    for sentence in document["assumptions"]:
        click.echo(wrapped(sentence, width_of(), "  - "))


def _verdict(document: dict[str, Any]) -> str:
    """Which rivals are smaller, said plainly."""
    public = document["smaller"]
    charged = [r["name"] for r in document["rivals"] if r["ratio_charged"] >= 1]
    more = [name for name in charged if name not in public]
    dense = document["rivals"][0]
    lines: list[str] = []
    if dense["ratio_public"] >= 1:
        lines.append(
            f"Stored {dense['name']} are smaller here, up to {dense['break_even_public'] - 1:,} "
            "epochs: few images or classes."
        )
    if public:
        lines += ["Smaller than the label function:", *(f"  {name}" for name in public)]
    else:
        lines.append("With a public base the label function is the smallest.")
    if more:
        lines += ["Smaller once the base is charged:", *(f"  {name}" for name in more)]
    elif not public:
        lines.append("So it is with the base charged.")
    return "\n".join(lines)
