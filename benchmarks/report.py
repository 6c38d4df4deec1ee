"""Write tables and plots from the finished cells of ``evidence.py``.

    python benchmarks/report.py --out .cache/bench [--profile cpu]

Writes ``results/evidence-PROFILE.json`` (every cell, with versions and device), the plots in the
same folder and the profile's page: ``results/README.md`` for ``cpu``, ``results/PROFILE.md`` for
others. Computes only means, spreads and differences; a cell that failed or was not run is named,
never left out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cells import PLAN, machine

RESULTS = Path(__file__).parent / "results"

NAMES = {
    "hard": "hard labels",
    "hello": "**label function (ours)**",
    "teacher": "teacher, online (RDED)",
    "teacher-int8": "teacher, online, int8",
    "stored": "stored, float16 (SRe2L, FKD)",
    "topk": "stored, top 10 (TinyViT)",
    "pruned": "stored, top 10 of a tenth (LPQLD)",
    "probe": "linear probe on the base",
    "random": "ours on random images",
}
ROWS = {
    "hard": "(control) hard labels",
    "probe": "linear probe",
    "weak": "+ weak teachers",
    "low-rank": "+ low-rank encoder",
    "text": "+ text start",
    "refined": "+ image update",
    "teacher": "(control) labels of the weak teachers",
}
# Two-sided 95 % of Student's t by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
STORED_EPOCHS = 300
LONG_RIVALS = ("hard", "hello", "teacher")
NONE = "-"


@dataclass(frozen=True)
class Mean:
    """Mean and spread (standard deviation, n - 1) over seeds."""

    values: tuple[float, ...]

    def __str__(self):
        if not self.values:
            return "not run"
        mean = f"{np.mean(self.values):.1f}"
        return f"{mean} ± {np.std(self.values, ddof=1):.1f}" if len(self.values) > 1 else mean


def paired(ours, theirs):
    """Return the mean difference over seeds and half its 95 % interval (None with one seed)."""
    difference = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not difference:
        return None
    n = len(difference)
    half = None
    if n > 1:
        half = _T95[n - 1] * float(np.std(difference, ddof=1)) / math.sqrt(n)
    return float(np.mean(difference)), half


def bytes_text(count):
    """Format bytes in decimal units with three digits."""
    if count is None:
        return NONE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def table(head, rows, texts=None):
    """Format a Markdown table; columns after the first ``texts`` are right-aligned."""
    left = len(head) if texts is None else texts
    sides = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, sides, *rows))


class Found:
    """Documents of one data set's cells, by name without the data set."""

    def __init__(self, name, cells):
        self.name = name
        head = f"{name}/"
        self.cells = {k[len(head) :]: v for k, v in cells.items() if k.startswith(head)}

    def get(self, name):
        document = self.cells.get(name)
        return None if document is None or "error" in document else document

    def seeds(self, prefix):
        """Return top-1 by seed from the cells ``prefix/seedN``."""
        found = {}
        for name, document in self.cells.items():
            if name.startswith(f"{prefix}/seed") and "error" not in document:
                found[document["seed"]] = document["top1"]
        return found

    def first(self, prefix):
        """Return any finished cell below a prefix."""
        return next(
            (d for k, d in sorted(self.cells.items()) if k.startswith(prefix) and "error" not in d),
            None,
        )

    def ipcs(self, suite):
        parts = {k.split("/")[1] for k in self.cells if k.startswith(f"{suite}/ipc")}
        return sorted(int(part.removeprefix("ipc")) for part in parts)


# --- sections ------------------------------------------------------------------------------------


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


def label_row(found, ipc, kind, classes):
    prefix = f"rivals/ipc{ipc}/{kind}"
    scores, any_cell = found.seeds(prefix), found.first(f"{prefix}/")
    fit = found.get("fit/main") or {}
    fidelity = found.get(f"fidelity/{'hello' if kind == 'random' else kind}") or {}
    count = None if any_cell is None else any_cell["label_bytes"]
    charged = count
    if count is not None and kind in {"hello", "probe", "random"}:
        charged = count + fit.get("base_bytes", 0)
    long = {"stored": 2 * classes, "topk": 44, "pruned": None}.get(kind)
    at_300 = None
    if kind == "stored":
        at_300 = stored_bytes(ipc, classes)
    elif long:
        at_300 = STORED_EPOCHS * ipc * classes * long
    elif kind != "pruned":
        at_300 = count
    seconds = [
        found.get(f"{prefix}/seed{seed}")["train_seconds"]
        for seed in scores
        if found.get(f"{prefix}/seed{seed}")
    ]
    kl = fidelity.get("kl")
    return (
        NAMES[kind],
        Mean(tuple(scores[s] for s in sorted(scores))),
        len(scores),
        bytes_text(count),
        bytes_text(charged),
        bytes_text(at_300),
        f"{fidelity['agreement']:.1f}" if fidelity else NONE,
        # Rows of float16 do not sum to one exactly, and the sum may fall below zero.
        NONE if kl is None else f"{max(kl, 0.0):.4f}",
        f"{np.mean(seconds):.0f}" if seconds else NONE,
    )


def verdict(found, ipc, kinds, classes):
    """Say in sentences where ours wins, ties or loses."""
    ours = found.seeds(f"rivals/ipc{ipc}/hello")
    cell = found.first(f"rivals/ipc{ipc}/hello/")
    if not ours or cell is None:
        return ""
    lines = []
    for kind in kinds:
        if kind == "hello":
            continue
        got = paired(ours, found.seeds(f"rivals/ipc{ipc}/{kind}"))
        other = found.first(f"rivals/ipc{ipc}/{kind}/")
        if got is None or other is None:
            continue
        mean, half = got
        interval, seen = "one seed, so no interval", "beside"
        if half is not None:
            seen = "ties with"
            interval = f"95 % interval {mean - half:+.1f} to {mean + half:+.1f}"
            if abs(mean) > half:
                seen = "wins over" if mean > 0 else "loses to"
        size = ""
        if kind not in {"hard", "probe", "random"}:
            smaller = other["label_bytes"] < cell["label_bytes"]
            ratio = max(other["label_bytes"], cell["label_bytes"]) / max(
                1, min(other["label_bytes"], cell["label_bytes"])
            )
            size = (
                f"; these labels are **{ratio:.1f} times smaller** than the label function"
                if smaller
                else f"; ours is {ratio:.1f} times smaller"
            )
        name = NAMES[kind].replace("**", "")
        lines.append(f"- {seen} *{name}*: {mean:+.1f} points ({interval}){size}.")
    return "\n".join(lines)


def claims(cells):
    """Find settings where hard labels, ours and the teacher's are all present.

    Yields:
        Data set, images per class, top-1 by seed of the three, label bytes of the last two.
    """
    for name in data_sets(cells):
        found = Found(name, cells)
        for ipc in found.ipcs("rivals"):
            scores = [found.seeds(f"rivals/ipc{ipc}/{kind}") for kind in LONG_RIVALS]
            if all(scores):
                sources = (found.first(f"rivals/ipc{ipc}/{kind}/") for kind in LONG_RIVALS[1:])
                yield name, ipc, scores, [source["label_bytes"] for source in sources]


def summary(cells):
    """Put all data sets and images per class in one table, and say where labels are smaller."""
    rows, longest = [], []
    for name, ipc, scores, (ours, teacher) in claims(cells):
        mean, half = paired(*scores[1:])
        spread = f" ({mean - half:+.1f} to {mean + half:+.1f})" if half is not None else ""
        stored = stored_bytes(ipc, _classes(cells, name))
        texts = [Mean(tuple(each.values())) for each in scores]
        sizes = [bytes_text(size) for size in (ours, teacher, stored)]
        rows.append((name, ipc, *texts, f"{mean:+.1f}{spread}", *sizes))
        longest.append(f"{ours * STORED_EPOCHS // stored} ({name}, {ipc})")
    if not rows:
        return ""
    head = (
        "data",
        "per class",
        "hard labels",
        "ours",
        "teacher, online",
        "ours - teacher (95 %)",
        "bytes of ours",
        "of the teacher",
        "stored, 300 epochs",
    )
    return (
        f"## In one table\n\n{table(head, rows)}\n\n"
        "Stored float16 labels are **smaller** than the label function for trainings of up to this "
        f"many epochs (data, images per class): {', '.join(longest)}.\n"
    )


def stored_bytes(ipc, classes):
    """Return the bytes of float16 labels for the field's usual schedule."""
    return STORED_EPOCHS * ipc * classes * classes * 2


def rivals(found, classes):
    parts = []
    for ipc in found.ipcs("rivals"):
        kinds = [
            k for k in NAMES if any(c.startswith(f"rivals/ipc{ipc}/{k}/") for c in found.cells)
        ]
        cell = found.first(f"rivals/ipc{ipc}/hello/")
        run = f"{cell['student']}, {cell['steps']} steps of {cell['batch']}" if cell else ""
        head = (
            "labels",
            "top-1 %",
            "seeds",
            "label bytes",
            "with base",
            "at 300 epochs",
            "agreement %",
            "KL",
            "train s",
        )
        parts.append(f"### {ipc} per class ({run})\n")
        parts.append(table(head, [label_row(found, ipc, kind, classes) for kind in kinds]))
        text = verdict(found, ipc, kinds, classes)
        if text:
            parts.append(f"\nOurs:\n\n{text}\n")
    return "\n".join(parts)


def ablation(found):
    parts = []
    for ipc in found.ipcs("ablation"):
        rows, cells = [], {row: found.get(f"ablation/ipc{ipc}/{row}") for row in ROWS}
        for row, name in ROWS.items():
            scores, cell = found.seeds(f"ablation/ipc{ipc}/{row}"), cells[row] or {}
            loss = cell.get("refine_loss")
            rows.append(
                (
                    name,
                    Mean(tuple(scores[s] for s in sorted(scores))),
                    len(scores),
                    f"{cell['own_top1']:.1f}" if cell else NONE,
                    f"{cell['agreement']:.1f}" if cell else NONE,
                    f"{cell['kl']:.4f}" if cell else NONE,
                    bytes_text(cell.get("label_bytes")),
                    f"{loss[0]:.3g} → {loss[1]:.3g} ({100 * (loss[1] / loss[0] - 1):+.0f} %)"
                    if loss
                    else NONE,
                )
            )
        any_cell = found.first(f"ablation/ipc{ipc}/text/seed")
        run = f"{any_cell['student']}, {any_cell['steps']} steps" if any_cell else ""
        teacher = next((c["teacher_top1"] for k, c in cells.items() if c and k != "probe"), None)
        parts.append(f"### {ipc} per class ({run}; weak teachers {teacher} %)\n")
        head = (
            "row",
            "student top-1 %",
            "seeds",
            "own top-1 %",
            "agreement %",
            "KL",
            "bytes",
            "loss of the update",
        )
        parts.append(table(head, rows) + "\n")
        scores = [found.seeds(f"ablation/ipc{ipc}/{row}") for row in ("text", "teacher")]
        if got := paired(*scores):
            mean, half = got
            spread = f" (95 % interval {mean - half:+.1f} to {mean + half:+.1f})" if half else ""
            parts.append(
                f"The label function (+ text start) against its teachers' own labels: {mean:+.1f} "
                f"points{spread}.\n"
            )
    if parts:
        # To go when it is measured again.
        text = (
            "Measured when every mosaic of a class had one of its best crops, as RDED's have; the "
        )
        parts.insert(
            0, f"{text}best crops now\nlie in the first, which is the same at 1 per class.\n"
        )
    return "\n".join(parts)


def ranks_of(found):
    """Return cells of the curve's finished ranks, then those of the main label function."""
    names = [name for name in found.cells if name.startswith("curve/rank") and found.get(name)]
    cells = sorted((found.get(name) for name in names), key=lambda cell: cell["rank"])
    main = found.get("fit/main")
    return [*cells, main] if cells and main else cells


def curve(found):
    teacher = found.get("teacher")
    rows = [
        (
            cell["rank"],
            f"{cell['epochs']:g}",
            f"{cell['trained']:,}",
            row["storage"],
            f"{row['bytes']:,}",
            f"{row['top1']:.1f}",
            f"{100 * row['top1'] / teacher['top1']:.0f}",
            f"{row['fidelity']['agreement']:.1f}",
            f"{row['fidelity']['kl']:.4f}",
        )
        for cell in ranks_of(found)
        for row in cell["storages"]
    ]
    head = (
        "rank",
        "epochs",
        "trained values",
        "storage",
        "bytes",
        "own top-1 %",
        "% of the teacher's",
        "agreement %",
        "KL",
    )
    return table(head, rows) if rows else ""


def cross(found):
    networks = sorted({k.split("/")[1] for k in found.cells if k.startswith("cross/")})
    if not networks:
        return ""
    ipc = max(i for i in found.ipcs("rivals") if found.first(f"rivals/ipc{i}/probe") or i <= 10)
    rows = []
    for network in networks:
        cells = [found.get(f"cross/{network}/{kind}") for kind in LONG_RIVALS]
        rows.append((network, *(f"{c['top1']:.1f}" if c else NONE for c in cells)))
    main = [found.get(f"rivals/ipc{ipc}/{k}/seed0") for k in LONG_RIVALS]
    if all(main):
        rows.insert(0, (main[0]["student"], *(f"{c['top1']:.1f}" for c in main)))
    head = ("student", "hard labels", "ours", "teacher, online")
    return f"{ipc} per class, seed 0.\n\n" + table(head, rows)


def continual(found):
    steps = sorted({int(k.split("/")[1][4:]) for k in found.cells if k.startswith("continual/")})
    if not steps:
        return ""
    rows = []
    for kind in LONG_RIVALS:
        cells = [found.get(f"continual/step{step}/{kind}") for step in steps]
        rows.append((NAMES[kind], *(f"{c['top1']:.1f}" if c else NONE for c in cells)))
    first = [found.get(f"continual/step{step}/hard") for step in steps]
    pairs = zip(steps, first, strict=True)
    heads = [f"{c['classes']} classes" if c else f"step {s}" for s, c in pairs]
    return table(("labels", *heads), rows)


def sensitivity(found):
    values = {}
    for name, cell in found.cells.items():
        if name.startswith("sensitivity/") and "error" not in cell:
            values.setdefault((cell["knob"], cell["value"]), []).append(cell["top1"])
    rows = [
        (knob, f"{value:g}", Mean(tuple(scores)))
        for (knob, value), scores in sorted(values.items())
    ]
    return table(("knob", "value", "top-1 %"), rows) if rows else ""


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
        f"measurements in the last fifth: **{Mean(tuple(best))} %** over {len(best)} seeds "
        f"(the last step: {Mean(tuple(scores.values()))} %); published {cell['published']} %, "
        f"difference {difference:+.1f} points."
    )


def cost(found):
    document = found.get("cost")
    if document is None:
        return ""
    rows = [(name, f"{value:.4f}") for name, value in document["gflop_per_view"].items()]
    times = []
    for name in ("teacher", "select", "fit/probe", "fit/main"):
        cell = found.get(name)
        if cell:
            label = f"{name} ({cell['note']})" if "note" in cell else name
            times.append((label, f"{cell['seconds']:.0f}", f"{cell['peak_mb']:,}"))
    student = found.first("rivals/")
    if student:
        times.append(("a student", f"{student['seconds']:.0f}", f"{student['peak_mb']:,}"))
    return (
        table(("stage", "seconds, one thread", "peak MB of the process so far"), times)
        + "\n\n"
        + table(("GFLOP per view", "counted by torch, 2 per multiply-add"), rows)
    )


# --- plots ---------------------------------------------------------------------------------------


def plots(found, classes, profile):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    def save(figure, name):
        path = RESULTS / f"{name}-{found.name}-{profile}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)

    if PLOTS["fidelity-per-byte"](found):
        few = [i for i in found.ipcs("rivals") if i <= 10] or found.ipcs("rivals")
        # Where most label sources were run, and of these the most images.
        kinds = {i: sum(bool(found.first(f"rivals/ipc{i}/{k}/")) for k in NAMES) for i in few}
        ipc = max(few, key=lambda i: (kinds[i], i))
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
        fit = found.get("fit/main")
        for kind in NAMES:
            cell, got = found.first(f"rivals/ipc{ipc}/{kind}/"), found.get(f"fidelity/{kind}")
            if cell is None or got is None or got["kl"] is None:
                continue
            name = NAMES[kind].replace("**", "")
            size = cell["label_bytes"]
            if kind == "stored":
                size = stored_bytes(ipc, classes)
            elif kind == "topk":
                size = STORED_EPOCHS * ipc * classes * 44
            for axis, value in ((axes[0], max(got["kl"], 1e-8)), (axes[1], got["agreement"])):
                axis.scatter(size, value, s=46, zorder=3, label=name)
        if fit:
            sizes = [row["bytes"] for row in fit["storages"]]
            axes[0].plot(sizes, [r["fidelity"]["kl"] for r in fit["storages"]], color="0.6", lw=1)
            axes[1].plot(
                sizes, [r["fidelity"]["agreement"] for r in fit["storages"]], color="0.6", lw=1
            )
        for axis in axes:
            axis.set_xscale("log")
            axis.set_xlabel(f"bytes of the labels ({ipc} per class; stored ones at 300 epochs)")
            axis.grid(alpha=0.3)
            axis.xaxis.set_minor_formatter(NullFormatter())
        axes[0].set_yscale("log")
        axes[0].set_ylabel("KL(teacher ‖ labels), nats, T = 4")
        axes[1].set_ylabel("top-1 agreement with the teacher, %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(f"{found.name}: fidelity per byte on views that nothing was fitted on")
        save(figure, "fidelity-per-byte")
    if PLOTS["rank-and-storage"](found):
        figure, axis = plt.subplots(figsize=(6, 4.2))
        for cell in ranks_of(found):
            rows = cell["storages"]
            agreement = [row["fidelity"]["agreement"] for row in rows]
            label = f"rank {cell['rank']}, {cell['epochs']:g} epochs"
            axis.plot([r["bytes"] for r in rows], agreement, marker="o", label=label)
        axis.set_xscale("log")
        axis.set_xlabel("bytes of the label function (int4, int8, float16, float32)")
        axis.set_ylabel("agreement with the teacher, %")
        axis.grid(alpha=0.3)
        axis.legend()
        save(figure, "rank-and-storage")
    if PLOTS["images-per-class"](found):
        counts = found.ipcs("rivals")
        figure, axis = plt.subplots(figsize=(6, 4.2))
        for kind in LONG_RIVALS:
            points = [(i, list(found.seeds(f"rivals/ipc{i}/{kind}").values())) for i in counts]
            points = [(i, scores) for i, scores in points if scores]
            spread = [np.std(s, ddof=1) if len(s) > 1 else 0 for _, s in points]
            axis.errorbar(
                [i for i, _ in points],
                [np.mean(s) for _, s in points],
                spread,
                marker="o",
                capsize=3,
                label=NAMES[kind].replace("**", ""),
            )
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(i) for i in counts])
        axis.set_xlabel("images per class")
        axis.set_ylabel("student top-1, %")
        axis.grid(alpha=0.3)
        axis.legend()
        save(figure, "images-per-class")


PLOTS = {
    "fidelity-per-byte": lambda found: bool(found.ipcs("rivals") and found.get("fidelity/hello")),
    "rank-and-storage": lambda found: bool(ranks_of(found)),
    "images-per-class": lambda found: len(found.ipcs("rivals")) > 1,
}

SECTIONS = (
    ("The paper's ablation, on mosaics of factor 2", ablation),
    ("Rank and storage", curve),
    ("Students of other families", cross),
    ("Classes that arrive in steps", continual),
    ("Temperature and weight of the cross-entropy", sensitivity),
    ("RDED's CIFAR-10 recipe", rded),
    ("Cost", cost),
)

INTRO = """# Results

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
    parser.add_argument("--profile", default="cpu")
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
    for name in data_sets(cells):
        plots(Found(name, cells), _classes(cells, name), args.profile)


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
    return "README.md" if profile == "cpu" else f"{profile}.md"


def made_on(cells, document):
    """Say on which machine the cells of a data set ran."""
    lines = {
        f"{m['device']}, {m['cores']} cores, torch {m['torch']}, Python {m['python']}"
        for m in (cell.get("machine", document["machine"]) for cell in cells.values())
    }
    return "Run on: " + "; ".join(sorted(lines)) + "."


def data_sets(cells):
    """Return names of data sets, most classes first."""
    names = {name.split("/")[0] for name in cells}
    return sorted(names, key=lambda name: (-_classes(cells, name), name))


def page(document, profile):
    """Return the text of a profile's page, a pure function of the results file."""
    cells = document["cells"]
    seconds = sum(cell["seconds"] for cell in cells.values()) / 60
    others = OTHERS if profile == "cpu" else ""
    parts = [INTRO.format(profile=profile, count=len(cells), seconds=seconds, others=others)]
    parts.append(summary(cells))
    for name in data_sets(cells):
        found, classes = Found(name, cells), _classes(cells, name)
        parts.append(f"\n## {name} ({classes} classes)\n\n{facts(found)}\n")
        parts.append(f"{made_on(found.cells, document)}\n")
        parts.append(rivals(found, classes))
        for title, section in SECTIONS:
            text = section(found)
            if text:
                parts.append(f"\n### {title}\n\n{text}\n")
        parts += [
            f"\n![{plot} of {name}]({plot}-{name}-{profile}.png)\n"
            for plot, is_there in PLOTS.items()
            if is_there(found)
        ]
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
    return "\n".join(parts).rstrip() + "\n"


def _classes(cells, name):
    fit = cells.get(f"{name}/teacher", {})
    return fit.get("classes", 0)


if __name__ == "__main__":
    main()
