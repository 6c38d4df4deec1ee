"""What ``hello demo`` found: one JSON document, and the same as text."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import hellofmt
from hellofmt.archive import open_archive
from hellofmt.ledger import ledger_of, model_bytes, view_record_bytes
from hellofmt.student import build_student
from hellofmt_cli.demo_settings import TEACHER, DemoSettings, archive_path
from hellofmt_cli.demo_students import COLUMNS, Column

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def result_document(
    out: Path, settings: DemoSettings, scores: dict[tuple[Column, int], list[float]]
) -> dict[str, Any]:
    """The document of ``result.json``, apart from what only the run knows.

    ``scores`` are accuracies in percent by (column, ipc), one for each seed.
    """

    def table(statistic: Callable[[list[float]], float]) -> dict[str, Any]:
        rows: dict[str, Any] = {
            f"ipc{ipc}": {
                column: round(statistic(scores[column, ipc]), 2)
                for column in COLUMNS
                if column != "full"
            }
            for ipc in settings.ipcs
        }
        rows["full"] = round(statistic(scores["full", 0]), 2)
        return rows

    return {
        "schema": "hello.demo/1",
        "accuracy": table(lambda values: float(np.mean(values))),
        "spread": table(lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0),
        "seeds": list(settings.seeds),
        "steps": settings.steps,
        "batch_size": settings.student.batch_size,
        "bytes": {
            f"ipc{ipc}": _byte_account(archive_path(out, ipc), settings) for ipc in settings.ipcs
        },
        "versions": {
            "hellofmt": hellofmt.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }


def _byte_account(path: Path, settings: DemoSettings) -> dict[str, Any]:
    """What the file weighs by part, beside what the same labels would weigh if stored."""
    with open_archive(path) as file:
        ledger = ledger_of(file)
    # One row per view that a student saw: what a relabelling run would have written.
    rows = settings.steps * settings.student.batch_size
    labels = rows * ledger.classes * 2
    parameters = sum(p.numel() for p in build_student(TEACHER, ledger.classes, 16).parameters())
    return {
        "total": ledger.total,
        "parts": ledger.parts(),
        "payload": ledger.payload,
        "values": ledger.values,
        "epochs": round(rows / ledger.images, 1),
        "stored_labels": labels,
        "view_records": view_record_bytes(rows, 1),
        "break_even_epochs": ledger.break_even(),
        "teacher_float16": model_bytes(parameters, "float16"),
    }


def ipcs_of(result: dict[str, Any]) -> list[int]:
    """Numbers of images per class, ascending."""
    return sorted(int(key.removeprefix("ipc")) for key in result["bytes"])


def _cell(result: dict[str, Any], ipc: int, column: str) -> str:
    mean, spread = result["accuracy"], result["spread"]
    if column == "full":
        return f"{mean['full']:.1f} ± {spread['full']:.1f}"
    row = f"ipc{ipc}"
    return f"{mean[row][column]:.1f} ± {spread[row][column]:.1f}"


def bytes_sentence(result: dict[str, Any]) -> str:
    """Says which is smaller here, the label function or stored labels, and from when on."""
    first = result["bytes"][f"ipc{ipcs_of(result)[0]}"]
    payload, stored = first["payload"], first["stored_labels"]
    if payload < stored:
        verdict = (
            f"Here the label function ({payload:,} bytes) is smaller than the stored labels of the"
            f" same training ({stored:,} bytes), but only {stored / payload:.1f} times"
        )
    else:
        verdict = (
            f"Here stored labels would be SMALLER: {stored:,} bytes for the same training against"
            f" {payload:,} bytes for the label function"
        )
    return (
        f"{verdict}: with 10 classes a label is 20 bytes, and a shorter training would store less"
        f" still. The teacher itself would be {first['teacher_float16']:,} bytes. Ten classes show"
        " the mechanism, not the saving; with 1,000 classes and 300 epochs stored labels are"
        " 600 MB for every image per class, while a label function does not grow with epochs."
    )


def report_text(result: dict[str, Any]) -> str:
    """The table of accuracies, the bytes, and what they mean; plain text."""
    ipcs = ipcs_of(result)
    header = ["images per class", *COLUMNS.values()]
    rows = [[str(ipc), *(_cell(result, ipc, column) for column in COLUMNS)] for ipc in ipcs]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    table = [line(header), rule, *(line(row) for row in rows)]
    caption = (
        f"Top-1 in percent on the {result['measured_on']} images, mean ± standard deviation over"
        f" {len(result['seeds'])} seeds; {result['steps']} steps of {result['batch_size']} views"
        " in every column."
    )
    lines = [*table, "", caption, "", "Bytes:"]
    for ipc in ipcs:
        account = result["bytes"][f"ipc{ipc}"]
        parts = ", ".join(f"{name} {size:,}" for name, size in account["parts"].items())
        stored = (
            f"  labels stored instead  {account['stored_labels']:,} as float16 for the same"
            f" {account['epochs']:g} epochs, + {account['view_records']:,} to say of which views"
        )
        lines += [f"  digits-ipc{ipc}.hello  {account['total']:,} = {parts}", stored]
    return "\n".join([*lines, "", bytes_sentence(result)])


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write ``result`` as an indented JSON document."""
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
