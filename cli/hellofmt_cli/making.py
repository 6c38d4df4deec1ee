"""What ``hello fit`` and ``hello distill`` do: from DATA, a teacher and a base to an archive.

Everything said while working goes to stderr; stdout holds the result alone.
"""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hellofmt.archive import check_target, open_archive
from hellofmt.distillation import (
    DistillSettings,
    FitHooks,
    check_settings,
    distill,
    fidelity_table,
    planned,
    quality_of,
    split_validation,
)
from hellofmt.errors import HelloError, HelloIOError, shown_path
from hellofmt.ledger import ledger_of
from hellofmt.runs import Stages, handed, joined, leads_machine, without_paths
from hellofmt.sources import KEPT_PATTERN
from hellofmt.teacher import is_network
from hellofmt_cli.command_line import recorded_command
from hellofmt_cli.console import console
from hellofmt_cli.costs import cost_documents, cost_lines, duration
from hellofmt_cli.data import read_data, share_findings
from hellofmt_cli.inputs import (
    HELD_OUT,
    fit_settings,
    measured_kind,
    projector_settings,
    read_base,
    read_teachers,
)
from hellofmt_cli.inspect_document import DEFAULT_EPOCHS
from hellofmt_cli.options import chosen_device
from hellofmt_cli.output import echo_json, echo_page, echo_table, echo_text, size
from hellofmt_cli.workers import worker_ends_in_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hellofmt.archive import Storage, Texts
    from hellofmt.distillation import DistillReport, Fidelity, FitSettings, Precision
    from hellofmt.projector import LoadedBase, Projector
    from hellofmt.sources import Source
    from hellofmt_cli.fit_options import FitOptions
    from hellofmt_cli.options import DataOptions

_DOING: Final = {
    "teacher": "training the teacher",
    "check": "checking the teacher",
    "check-held-out": "measuring the teacher",
    "budget": "choosing how to spend the bytes",
    "select": "choosing images",
    "write": "writing the archive",
}
"""What is shown while a stage runs, instead of its name."""

_EVALUATIONS: Final = 10
_STEPS_PER_EVALUATION: Final = 20
_PREDICTED_AFTER: Final = 5.0
"""Seconds of steps from which the time of the others is told."""


def make_archive(
    data: DataOptions,
    fit: FitOptions,
    texts: Texts,
    *,
    as_json: bool,
    chosen: DistillSettings,
) -> None:
    """Run ``hello fit`` (without ``select``) or ``hello distill`` and print what came of it."""
    data = replace(data, device=chosen_device(data.device))
    # The last word before the error, after what was converted on the way.
    kept: list[str] = []
    work = _work(fit)
    is_ours = fit.work is None or not work.exists()
    click.get_current_context().call_on_close(lambda: [console.say(text) for text in kept])
    with joined(data.device):
        try:
            # Inside, since what became of a worker decides what is said of going on.
            with worker_ends_in_one_line():
                _make_archive(data, fit, texts, chosen, as_json=as_json)
        except BaseException as error:
            if any(path.is_file() for path in work.rglob("*")):
                how = "; the same command continues" if _can_succeed(error) else ""
                kept.append(f"kept: what is finished, in {shown_path(work)}{how}")
            elif is_ours:
                with suppress(OSError):
                    work.rmdir()
            raise


def _work(fit: FitOptions) -> Path:
    return Path(fit.work or f"{fit.output}.work")


def _can_succeed(error: BaseException) -> bool:
    """Whether the same command may succeed: it was interrupted, or a disk or server failed."""
    if isinstance(error, HelloError):
        return isinstance(error, HelloIOError) and error.code != "E_TARGET"
    lasting = FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
    return not isinstance(error, Exception) or (
        isinstance(error, OSError) and not isinstance(error, lasting | PermissionError)
    )


def _make_archive(
    run: DataOptions,
    options: FitOptions,
    texts: Texts,
    chosen: DistillSettings,
    *,
    as_json: bool,
) -> None:
    work = _work(options)
    data = read_data(run, work)
    stages = Stages(work, say=console.say, show=lambda name: console.stage(_DOING.get(name, name)))
    base = read_base(options.base, data.views)
    train, held_out = split_validation(data.images, seed=run.seed)
    kind = measured_kind(data.images, held_out)
    if kind != HELD_OUT:
        console.warn(f"a class has too few images to hold one out: accuracies are of {kind}")
    plan = fit_settings(options, len(train), run)
    # `distill` splits again; until then a million rows need not be kept.
    del train, held_out
    handed(partial(check_target, options.output, force=options.force))
    settings = replace(
        chosen,
        projector=projector_settings(options, run.seed),
        fit=plan,
        storage=options.precision,
        texts=texts,
        command=recorded_command(without_paths),
        seed=run.seed,
    )
    check_settings(data.images, data.views, settings)
    for chosen_part in (settings.select, settings.projector, settings.fit, data.views):
        console.detail(f"settings: {chosen_part}")
    for note in settings.projector.notes(base, data.images) if console.is_speaking else ():
        console.warn(note)
    ipc = None if settings.select is None else settings.select.ipc
    if settings.budget is not None or any(map(is_network, options.teachers)):
        # What the fit would refuse is refused before a teacher is trained for it.
        with console.stage("building the label function"):
            start = settings.projector.build(base, data.images)
            if settings.budget is not None:
                ipc = planned(data.images, data.views, settings, start).ipc
    teacher = read_teachers(data, work, run, options, ipc, stages.meter)
    rows: list[Precision] = []

    def after(projector: Projector, measured: Source) -> None:
        views, workers = data.views, data.workers
        with console.stage("measuring every precision"):
            rows.extend(
                fidelity_table(
                    projector, teacher, measured, views, workers=workers, device=run.device
                )
            )

    # Shown between the stages, which show themselves.
    with console.stage("building the label function"):
        report = distill(
            data.images,
            options.output,
            settings,
            teacher=teacher,
            base=base,
            views=data.views,
            force=options.force,
            work=stages,
            hooks=replace(_spoken(plan, kind), after=after if options.table else None),
            workers=data.workers,
        )
    settings = report.settings or settings
    share_findings()
    if options.work is None and leads_machine():
        _remove_inputs(work)
        stages.remove()
    if not console.is_speaking:
        return
    if as_json:
        echo_json(_document(report, run, options, settings, rows))
        return
    echo_page(_lines(report, run, options, settings, kind))
    if rows:
        _print_precisions(rows, options.precision)
    if ipc is not None:
        smaller = _smaller_labels(options.output)
        if smaller:
            echo_text(f"\nNote: {smaller}")
        click.echo(_next(options, base))


def _spoken(plan: FitSettings, kind: str) -> FitHooks:
    """Say how a fit goes on; ``kind`` names the images that the teacher's accuracy is of."""
    first: list[tuple[int, float]] = []

    def before(projector: Projector) -> None:
        console.say(
            f"fit: {projector.trained_count():,} values, {plan.steps:,} steps of"
            f" {plan.batch_size} views{', compiled first' if plan.compile else ''}"
        )

    def on_step(done: int, _: Tensor) -> None:
        console.step(done, plan.steps)
        now = time.monotonic()
        if not first:
            first.append((done, now))
        # The first step waits for the workers to start. Said once.
        elif len(first) == 1 and now - first[0][1] > _PREDICTED_AFTER:
            first.append((done, now))
            seconds = (plan.steps - done) * (now - first[0][1]) / (done - first[0][0])
            console.say(f"fit: about {duration(seconds)} left")

    def on_fidelity(done: int, got: Fidelity) -> None:
        console.say(f"fit: step {done:,}: agreement {got.agreement:.1f} %, KL {got.kl:.3f}")

    return FitHooks(
        before,
        on_step,
        on_fidelity,
        # Each takes as long as a few steps.
        evaluations=min(_EVALUATIONS, plan.steps // _STEPS_PER_EVALUATION),
        on_teacher=lambda accuracy: console.say(f"teacher: {accuracy:.1f} % of {kind}"),
    )


def _remove_inputs(work: Path) -> None:
    """Delete teachers that were trained, and listings, in the work folder; nothing else in it."""
    for file in work.glob(KEPT_PATTERN):
        file.unlink()
    for file in work.glob("teacher-*/*"):
        if file.name == "teacher.json" or file.suffix == ".safetensors":
            file.unlink()
    for folder in work.glob("teacher-*"):
        with suppress(OSError):
            folder.rmdir()


def _document(
    report: DistillReport,
    run: DataOptions,
    options: FitOptions,
    settings: DistillSettings,
    rows: Sequence[Precision],
) -> dict[str, Any]:
    """What ``--json`` prints."""
    ipc = None if settings.select is None else settings.select.ipc
    stored = report.stored
    return {
        "schema": "hello.fit/1" if ipc is None else "hello.distill/1",
        "path": options.output,
        "id": report.id,
        "bytes": Path(options.output).stat().st_size,
        "teacher": round(report.teacher_accuracy, 2),
        "projector": {
            "accuracy": round(report.projector_accuracy, 2),
            "agreement": round(report.fidelity.agreement, 2),
            "kl": round(report.fidelity.kl, 4),
            "trained": report.trained,
        },
        "ipc": ipc,
        "budget": settings.budget,
        "bfloat16": run.bfloat16,
        "cost": cost_documents(report.costs),
        "codec": None if ipc is None else settings.codec,
        "quality": None if ipc is None else quality_of(settings.codec, settings.quality),
        "stored": None
        if stored is None
        else {"agreement": round(stored.agreement, 2), "kl": round(stored.kl, 4)},
        "precisions": [
            {
                "storage": row.storage,
                "bytes": row.size_bytes,
                "agreement": round(row.fidelity.agreement, 2),
                "kl": round(row.fidelity.kl, 4),
            }
            for row in rows
        ],
    }


def _lines(
    report: DistillReport,
    run: DataOptions,
    options: FitOptions,
    settings: DistillSettings,
    kind: str,
) -> list[tuple[str, str] | None]:
    """The page of the result."""
    size_bytes = Path(options.output).stat().st_size
    got = report.fidelity
    fidelity = f"agreement {got.agreement:.1f} %, KL {got.kl:.4f} on {got.views:,} new views"
    lines: list[tuple[str, str] | None] = [
        ("written", f"{shown_path(options.output)}, {size(size_bytes)}"),
    ]
    if settings.budget is not None and settings.select is not None:
        each = settings.codec + (f" at quality {settings.quality}" if settings.quality else "")
        share = f"{100 * size_bytes / settings.budget:.1f} % of {settings.budget:,} bytes"
        lines.append(("budget", f"{share}: {settings.select.ipc:,} images per class, {each}"))
    lines += [
        ("teacher", f"{report.teacher_accuracy:.1f} % of {kind}"),
        ("label function", f"{report.projector_accuracy:.1f} %, {report.trained:,} values"),
        ("fidelity", fidelity),
    ]
    if report.stored is not None:
        at = quality_of(settings.codec, settings.quality)
        moved = f"agreement {report.stored.agreement:.1f} %, KL {report.stored.kl:.4f}"
        how = f"with the labels of the images before encoding: {settings.codec}, quality {at}"
        lines.append(("as stored", f"{moved} {how}"))
    return [*lines, ("trained in", run.arithmetic), *cost_lines(report.costs), ("id", report.id)]


def _smaller_labels(path: str) -> str:
    """Say so if stored labels of as many epochs as are usual weigh less than the label function."""
    with open_archive(path) as archive:
        ledger = ledger_of(archive)
    stored = ledger.labels(DEFAULT_EPOCHS)
    if stored >= ledger.payload:
        return ""
    return (
        f"{DEFAULT_EPOCHS} epochs of stored labels would be smaller, {size(stored)};"
        " `hello labels` writes them, `hello inspect` has the sums"
    )


def _next(options: FitOptions, base: LoadedBase) -> str:
    """The command that trains from the archive, with NAME and DIR left to fill in."""
    words = ["hello", "train", options.output, "--student", "NAME", "--eval", "DIR"]
    if base.spec.kind != "seeded":
        words += ["--base", options.base]
    return f"\nNext: {shown_path(shlex.join(words))}"


def _print_precisions(rows: Sequence[Precision], written: Storage) -> None:
    """Bytes against fidelity, one precision a line, after an empty line."""
    table = [("", "bytes", "agreement", "KL", "")]
    table += [
        (
            row.storage,
            f"{row.size_bytes:,}",
            f"{row.fidelity.agreement:.2f} %",
            f"{row.fidelity.kl:.4f}",
            "written" if row.storage == written else "",
        )
        for row in rows
    ]
    click.echo()
    echo_table(table, f"precisions, on {rows[0].fidelity.views:,} new views")
