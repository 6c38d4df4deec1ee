"""Write tables and plots from the finished cells of ``evidence.py``.

    python benchmarks/report.py --out .cache/bench [--profile small]

Writes ``results/evidence-PROFILE.json`` (every cell, with versions and device), the plots in the
same folder and the profile's page: ``results/README.md`` for ``public``, ``results/PROFILE.md`` for
others. Computes only means, spreads and differences; a cell that failed or was not run is named,
never left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import public_page
from cells import PLAN, machine
from found import LONG_RIVALS, NAMES, STORED_EPOCHS, Found, claims, data_sets, long_bytes, ranks_of
from plots import draw, plots
from tables import NONE, RESULTS, bytes_text, mean_text, paired, table, value_text

ROWS = {
    "hard": "(control) hard labels",
    "probe": "linear probe",
    "weak": "+ weak teachers",
    "low-rank": "+ low-rank encoder",
    "text": "+ text start",
    "refined": "+ image update",
    "teacher": "(control) labels of the weak teachers",
}


def facts(found):
    teacher, fit, probe = (found.get(k) for k in ("teacher", "fit/main", "fit/probe"))
    if teacher is None:
        return "The teacher is not finished."
    text = (
        f"Teacher: {teacher['network']}, {teacher['parameters']:,} parameters, "
        f"{teacher['epochs']:g} epochs, **{teacher['top1']:.1f} %** on the measured images."
    )
    if fit is None:
        return text
    ratio = 100 * fit["top1"] / teacher["top1"]
    int8 = next(row for row in fit["storages"] if row["storage"] == "int8")
    full = next(row for row in fit["storages"] if row["storage"] == "float32")
    text += (
        f" Label function: {fit['trained']:,} trained values, {fit['epochs']:g} epochs of fitting, "
        f"{int8['bytes']:,} bytes in int8; its own top-1 is **{int8['top1']:.1f} %**, "
        f"{100 * int8['top1'] / teacher['top1']:.0f} % of the teacher's "
        f"({full['top1']:.1f} % in float32, {ratio:.0f} %)."
    )
    if probe is not None:
        text += f" Linear probe on the same base: {probe['top1']:.1f} %."
    return text


def label_row(found, ipc, kind):
    prefix = f"rivals/ipc{ipc}/{kind}"
    scores, any_cell = found.seeds(prefix), found.first(f"{prefix}/")
    fit = found.get("fit/main") or {}
    fidelity = found.get(f"fidelity/{'hello' if kind == 'random' else kind}") or {}
    count = charged = None if any_cell is None else any_cell["label_bytes"]
    if count is not None and kind in {"hello", "probe", "random"}:
        charged = count + fit.get("base_bytes", 0)
    seconds = list(found.seeds(prefix, "train_seconds").values())
    kl = fidelity.get("kl")
    return {
        "labels": NAMES[kind],
        "top-1 %": mean_text(scores.values()),
        "seeds": len(scores),
        "label bytes": bytes_text(count),
        "with base": bytes_text(charged),
        "at 300 epochs": NONE
        if kind == "pruned"
        else bytes_text(long_bytes(kind, ipc, found.classes, count)),
        "agreement %": value_text(fidelity, "agreement", ".1f"),
        # Rows of float16 do not sum to one exactly, and the sum may fall below zero.
        "KL": NONE if kl is None else f"{max(kl, 0.0):.4f}",
        "train s": f"{np.mean(seconds):.0f}" if seconds else NONE,
    }


def verdict(found, ipc, kinds):
    """Say in sentences where ours wins, ties or loses."""
    ours = found.seeds(f"rivals/ipc{ipc}/hello")
    cell = found.first(f"rivals/ipc{ipc}/hello/")
    lines = []
    for kind in kinds:
        got = paired(ours, found.seeds(f"rivals/ipc{ipc}/{kind}"))
        if kind == "hello" or got is None:
            continue
        interval, seen = "one seed, so no interval", "beside"
        if got.half is not None:
            seen = "ties with"
            interval = f"95 % interval {got.interval()}"
            if abs(got.mean) > got.half:
                seen = "wins over" if got.mean > 0 else "loses to"
        size = ""
        if kind not in {"hard", "probe", "random"}:
            other = found.first(f"rivals/ipc{ipc}/{kind}/")["label_bytes"]
            small, large = sorted((other, cell["label_bytes"]))
            size = f"; ours is {large / max(1, small):.1f} times smaller"
            if small == other != large:
                times = f"**{large / max(1, small):.1f} times smaller**"
                size = f"; these labels are {times} than the label function"
        name = NAMES[kind].replace("**", "")
        lines.append(f"- {seen} *{name}*: {got.mean:+.1f} points ({interval}){size}.")
    return "\n".join(lines)


def summary(cells):
    """Put all data sets and images per class in one table, and say where labels are smaller."""
    rows, longest = [], []
    for name, ipc, scores, (ours, teacher) in claims(cells):
        stored = long_bytes("stored", ipc, Found(name, cells).classes)
        hard, ours_text, teacher_text = (mean_text(each.values()) for each in scores)
        rows.append(
            {
                "data": name,
                "per class": ipc,
                "hard labels": hard,
                "ours": ours_text,
                "teacher, online": teacher_text,
                "ours - teacher (95 %)": paired(*scores[1:]).text(),
                "bytes of ours": bytes_text(ours),
                "of the teacher": bytes_text(teacher),
                "stored, 300 epochs": bytes_text(stored),
            }
        )
        longest.append(f"{ours * STORED_EPOCHS // stored} ({name}, {ipc})")
    if not rows:
        return ""
    return (
        f"## In one table\n\n{table(rows)}\n\n"
        "Stored float16 labels are **smaller** than the label function for trainings of up to this "
        f"many epochs (data, images per class): {', '.join(longest)}.\n"
    )


def rivals(found):
    parts = []
    for ipc in found.ipcs("rivals"):
        kinds = [kind for kind in NAMES if found.has(f"rivals/ipc{ipc}/{kind}/")]
        cell = found.first(f"rivals/ipc{ipc}/hello/")
        run = f"{cell['student']}, {cell['steps']} steps of {cell['batch']}" if cell else ""
        parts.append(f"### {ipc} per class ({run})\n")
        parts.append(table([label_row(found, ipc, kind) for kind in kinds]))
        text = verdict(found, ipc, kinds)
        if text:
            parts.append(f"\nOurs:\n\n{text}\n")
    return "\n".join(parts)


def ablation(found):
    parts = []
    for ipc in found.ipcs("ablation"):
        rows, cells = [], {row: found.get(f"ablation/ipc{ipc}/{row}") for row in ROWS}
        for row, name in ROWS.items():
            scores, cell = found.seeds(f"ablation/ipc{ipc}/{row}"), cells[row] or {}
            update = NONE
            if loss := cell.get("refine_loss"):
                change = 100 * (loss[1] / loss[0] - 1)
                update = f"{loss[0]:.3g} → {loss[1]:.3g} ({change:+.0f} %)"
            rows.append(
                {
                    "row": name,
                    "student top-1 %": mean_text(scores.values()),
                    "seeds": len(scores),
                    "own top-1 %": value_text(cell, "own_top1", ".1f"),
                    "agreement %": value_text(cell, "agreement", ".1f"),
                    "KL": value_text(cell, "kl", ".4f"),
                    "bytes": bytes_text(cell.get("label_bytes")),
                    "loss of the update": update,
                }
            )
        any_cell = found.first(f"ablation/ipc{ipc}/text/seed")
        run = f"{any_cell['student']}, {any_cell['steps']} steps" if any_cell else ""
        teacher = next((c["teacher_top1"] for k, c in cells.items() if c and k != "probe"), None)
        parts.append(f"### {ipc} per class ({run}; weak teachers {teacher} %)\n")
        parts.append(table(rows) + "\n")
        scores = [found.seeds(f"ablation/ipc{ipc}/{row}") for row in ("text", "teacher")]
        if got := paired(*scores):
            spread = f" (95 % interval {got.interval()})" if got.half else ""
            parts.append(
                "The label function (+ text start) against its teachers' own labels: "
                f"{got.mean:+.1f} points{spread}.\n"
            )
    if parts:
        # To go when it is measured again.
        parts.insert(
            0,
            "Measured when every mosaic of a class had one of its best crops, as RDED's have; the "
            "best crops now\nlie in the first, which is the same at 1 per class.\n",
        )
    return "\n".join(parts)


def curve(found):
    teacher = found.get("teacher")
    rows = [
        {
            "rank": cell["rank"],
            "epochs": f"{cell['epochs']:g}",
            "trained values": f"{cell['trained']:,}",
            "storage": row["storage"],
            "bytes": f"{row['bytes']:,}",
            "own top-1 %": f"{row['top1']:.1f}",
            "% of the teacher's": f"{100 * row['top1'] / teacher['top1']:.0f}",
            "agreement %": f"{row['fidelity']['agreement']:.1f}",
            "KL": f"{row['fidelity']['kl']:.4f}",
        }
        for cell in ranks_of(found)
        for row in cell["storages"]
    ]
    return table(rows)


def cross(found):
    networks = sorted({k.split("/")[1] for k in found.cells if k.startswith("cross/")})
    if not networks:
        return ""
    ipc = max(i for i in found.ipcs("rivals") if found.first(f"rivals/ipc{i}/probe") or i <= 10)
    runs = {network: [f"cross/{network}/{kind}" for kind in LONG_RIVALS] for network in networks}
    main = [f"rivals/ipc{ipc}/{kind}/seed0" for kind in LONG_RIVALS]
    if all(found.get(name) for name in main):
        runs = {found.get(main[0])["student"]: main} | runs
    heads = ("hard labels", "ours", "teacher, online")
    rows = [
        {"student": network}
        | {h: value_text(found.get(n), "top1", ".1f") for h, n in zip(heads, names, strict=True)}
        for network, names in runs.items()
    ]
    return f"{ipc} per class, seed 0.\n\n{table(rows)}"


def continual(found):
    steps = sorted({int(k.split("/")[1][4:]) for k in found.cells if k.startswith("continual/")})
    rows = []
    for kind in LONG_RIVALS if steps else ():
        row = {"labels": NAMES[kind]}
        for step in steps:
            hard = found.get(f"continual/step{step}/hard")
            head = f"{hard['classes']} classes" if hard else f"step {step}"
            row[head] = value_text(found.get(f"continual/step{step}/{kind}"), "top1", ".1f")
        rows.append(row)
    return table(rows)


def sensitivity(found):
    values = {}
    for name, cell in found.cells.items():
        if name.startswith("sensitivity/") and "error" not in cell:
            values.setdefault((cell["knob"], cell["value"]), []).append(cell["top1"])
    return table(
        [
            {"knob": knob, "value": f"{value:g}", "top-1 %": mean_text(scores)}
            for (knob, value), scores in sorted(values.items())
        ]
    )


def rded(found):
    teacher = found.get("rded/teacher")
    scores = found.seeds("rded")
    if teacher is None or not scores:
        return ""
    cell = found.first("rded/seed")
    best = [found.get(f"rded/seed{seed}")["best"] for seed in scores]
    difference = float(np.mean(best)) - cell["published"]
    return (
        f"ConvNet-3 with batch normalisation, 10 images per class, {cell['steps']} steps of "
        f"{cell['batch']}, the labels of our own ConvNet-3 teacher ({teacher['epochs']:g} epochs, "
        f"{teacher['top1']:.1f} %; theirs is trained longer). As they do, the best of six "
        f"measurements in the last fifth: **{mean_text(best)} %** over {len(best)} seeds "
        f"(the last step: {mean_text(scores.values())} %); published {cell['published']} %, "
        f"difference {difference:+.1f} points."
    )


def cost(found):
    document = found.get("cost")
    if document is None:
        return ""
    counted = document["gflop_per_view"].items()
    arithmetic = [
        {"GFLOP per view": stage, "counted by torch, 2 per multiply-add": f"{value:.4f}"}
        for stage, value in counted
    ]
    cells = {name: found.get(name) for name in ("teacher", "select", "fit/probe", "fit/main")}
    cells["a student"] = found.first("rivals/")
    times = [
        {
            "stage": f"{name} ({cell['note']})" if "note" in cell else name,
            "seconds, one thread": f"{cell['seconds']:.0f}",
            "peak MB of the process so far": f"{cell['peak_mb']:,}",
        }
        for name, cell in cells.items()
        if cell
    ]
    return f"{table(times)}\n\n{table(arithmetic)}"


SECTIONS = (
    ("The paper's ablation, on mosaics of factor 2", ablation),
    ("Rank and storage", curve),
    ("Students of other families", cross),
    ("Classes that arrive in steps", continual),
    ("Temperature and weight of the cross-entropy", sensitivity),
    ("RDED's CIFAR-10 recipe", rded),
    ("Cost", cost),
)

INTRO = """# Results of the profile `{profile}`

Written by `benchmarks/report.py` from `evidence-{profile}.json`; the command and the settings of
every number are there. {count} cells, {seconds:.0f} minutes of one thread in all; other programs
were running at times and a few cells were paused, so seconds are upper bounds.{others}

Every arm of a table has the same student, images (but for "random images"), views (crops of a
quarter to all of the image, flips but for digits, CutMix in half of the batch), learning rate,
batch size and number of steps; hard labels of mixed views are mixed by area. Accuracy is that of
the last step, as mean ± standard deviation over seeds 0, 1, 2 (and 3, 4 where five are counted).
"Label bytes" are those of the files that this run read, "with base" charges the public encoder to
one data set, and "at 300 epochs" says what the stored forms grow to in the field's usual schedule.
Agreement and KL compare labels with the teacher's at T = 4 on augmented views of images that
nothing was fitted on. A difference is called a tie where its 95 % interval (paired over seeds,
Student's t) holds zero: with so few seeds that interval is wide. On digits teacher and student are
one architecture, and the students of seed 0 start from the weights that the teacher started from.
"""

OTHERS = """

A longer run with another teacher, a stronger student (ConvNet-3, 400 steps) and fewer of the cells
stands on a page of its own: [long.md](long.md)."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--profile", default="small")
    args = parser.parse_args()
    folder = args.out / "cells" / args.profile
    stored = RESULTS / f"evidence-{args.profile}.json"
    if not folder.is_dir() and not stored.exists():
        parser.error(f"--profile: no cells in {folder} and no {stored.name}")
    earlier = json.loads(stored.read_text()) if stored.exists() else {"cells": {}, "planned": []}
    # Without a folder of cells the page is written again from what is stored.
    plan = (folder / PLAN).read_text().split() if folder.is_dir() else []
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    new = {cell["cell"]: cell for cell in found}
    cells = joined(earlier["cells"], new)
    before = without(dict.fromkeys(earlier["planned"]), trained_again(earlier["cells"], new))
    document = {
        "schema": "hello.evidence/1",
        # Of cells that do not name their own.
        "machine": earlier.get("machine", machine()),
        "command": f"make bench PROFILE={args.profile}",
        "planned": sorted({*before, *plan}),
        "cells": dict(sorted(cells.items())),
    }
    stored.write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / page_name(args.profile)).write_text(page(document, args.profile))
    draw([Found(name, cells) for name in data_sets(cells)], args.profile)


def trained_again(earlier, new):
    """Return data sets whose teacher has changed."""
    teachers = {name.split("/")[0]: f"{name.split('/')[0]}/teacher" for name in new}
    return {n for n, cell in teachers.items() if cell in new and new[cell] != earlier.get(cell)}


def joined(earlier, new):
    """Merge cells; a data set whose teacher was retrained keeps none of the earlier ones."""
    return without(earlier, trained_again(earlier, new)) | new


def without(named, data_sets):
    """Return cells by name, without those of some data sets."""
    return {k: v for k, v in named.items() if k.split("/")[0] not in data_sets}


def page_name(profile):
    """Return the file name of a profile's page."""
    return "README.md" if profile == "public" else f"{profile}.md"


def made_on(cells, document):
    """Say on which machine the cells of a data set ran."""
    lines = {
        f"{m['device']}, {m['cores']} cores, torch {m['torch']}, Python {m['python']}"
        for m in (cell.get("machine", document["machine"]) for cell in cells.values())
    }
    return "Run on: " + "; ".join(sorted(lines)) + "."


def page(document, profile):
    """Return the text of a profile's page, a pure function of the results file."""
    if profile.startswith("public"):
        parts = [public_page.page(document, made_on)]
        return "\n".join(parts + gaps(document)).rstrip() + "\n"
    cells = document["cells"]
    seconds = sum(cell["seconds"] for cell in cells.values()) / 60
    others = OTHERS if profile == "small" else ""
    parts = [INTRO.format(profile=profile, count=len(cells), seconds=seconds, others=others)]
    parts.append(summary(cells))
    for name in data_sets(cells):
        found = Found(name, cells)
        parts.append(f"\n## {name} ({found.classes} classes)\n\n{facts(found)}\n")
        parts.append(f"{made_on(found.cells, document)}\n")
        parts.append(rivals(found))
        for title, section in SECTIONS:
            text = section(found)
            if text:
                parts.append(f"\n### {title}\n\n{text}\n")
        parts += [f"\n![{plot} of {name}]({plot}-{name}-{profile}.png)\n" for plot in plots(found)]
    return "\n".join(parts + gaps(document)).rstrip() + "\n"


def gaps(document):
    """Say which cells are missing and which failed."""
    cells, parts = document["cells"], []
    missing = Counter("/".join(n.split("/")[:2]) for n in document["planned"] if n not in cells)
    if missing:
        parts.append("\n## Not run yet\n")
        parts.append(
            "The time of the run ended before them; `make bench` with `--resume` goes on. "
            + ", ".join(f"{group}: {count} cells" for group, count in sorted(missing.items()))
            + "."
        )
    failed = {k: c["error"] for k, c in cells.items() if "error" in c}
    if failed:
        parts.append("\n## Cells that failed\n")
        parts += [f"- `{name}`: {error}" for name, error in failed.items()]
    return parts


if __name__ == "__main__":
    main()
