"""Write the page of the profile `public`: what was asked, the curve, five tables, the losing cases.

A pure function of the results file, like the pages of ``report.py``, which calls it.
"""

from __future__ import annotations

import textwrap

from found import NAMES, Found, data_sets
from tables import bytes_text, mean_text, paired, table, value_text

from hellofmt.distillation.selection import METHODS

INTRO = """# Results

**What was asked.** Does a label function on a public encoder teach a student as well as the teacher
itself, in how many bytes, from which images? And what is the best student that so many bytes can
train?

The encoder is `efficientnet_lite1` of the package index, the teacher `efficientnet_lite0`, tuned on
each data set; both were trained on ImageNet-1K, so they **have seen** photos of tiny100's classes
(as a CLIP would have), but not CIFAR-10's images. The digits' teacher is a small network and their
encoder random.

Images are PNG files of the data's own size, chosen by `hello distill`'s default unless a table says
otherwise. Runs of one label source share their views and labels. Accuracy is that of the last step
on images that decided nothing, in percent, mean ± standard deviation; intervals are 95 %, paired
over seeds (Student's t; none where a row has one seed). {bfloat16}{count} cells took {hours:.1f}
hours of one thread. {machine} Commands and settings: [benchmarks](../README.md); every number:
[evidence-public.json](evidence-public.json).
"""

PLOT = "accuracy-per-byte-public.png"
BFLOAT16 = "Students train, and our labels are made, in bfloat16; agreement is float32's. "


MORE = """## More pages

- [A thousand real classes](thousand-classes.md): bytes and fidelity, no student.
- [Small networks](small.md) and [a longer run of them](long.md): the paper's ablation, ranks and
  storages, other students, classes that arrive in steps, RDED's recipe, on a base of our own.
- [Bytes: number of images, codec, quality](byte-budget.md) and [images by codec](stored-images.md).
- [A pool of views](pool-cpu.md), [every base of open_clip](bases.md), [the start from
  text](zero-shot.md).
- What it costs in time: [archive](archive-cpu.md), [loading](loading-cpu.md),
  [kernels](kernels-cpu.md), [a step](step-cpu.md), [streaming](streaming-cpu.md),
  [making](making-cpu.md).
"""


def runs(all_found):
    """Return a table of what the runs of each data set have in common."""
    rows = []
    for found in all_found:
        teacher, run = found.get("teacher"), found.first("rivals/ipc10/hello/")
        if teacher is None or run is None:
            continue
        settings = run["settings"]
        rows.append(
            {
                "data": found.name,
                "teacher": teacher["network"],
                "its top-1": f"{teacher['top1']:.1f}",
                "views of teacher and encoder": f"{teacher['side']} px",
                "student": settings["student"],
                "recipe": f"`{settings['recipe']}`",
                "steps": f"{run['steps']:,} of {run['batch']} views",
                "views of an image": settings["views"],
                "CutMix in": f"{100 * float(settings.get('mix_probability', 0.5)):.0f} %",
            }
        )
    return table(rows, 9)


def of(found, ipc, kind):
    """Return top-1 by seed of a label source or of a choice of images."""
    default = found.first(f"rivals/ipc{ipc}/hello/")
    if default is not None and kind == default["method"]:
        kind = "hello"
    return found.seeds(f"rivals/ipc{ipc}/{kind}")


def ipcs_of(found):
    return [ipc for ipc in found.ipcs("rivals") if found.has(f"rivals/ipc{ipc}/hard/")]


def labels(all_found):
    rows = []
    for found in all_found:
        for ipc in ipcs_of(found):
            ours, teacher = of(found, ipc, "hello"), of(found, ipc, "teacher")
            gap, probe = paired(ours, teacher), paired(ours, of(found, ipc, "probe"))
            rows.append(
                {
                    "data": found.name,
                    "per class": ipc,
                    "hard labels": mean_text(of(found, ipc, "hard").values()),
                    "ours": mean_text(ours.values()),
                    "teacher, online": mean_text(teacher.values()),
                    "ours - teacher": gap.text() if gap else "not run",
                    "linear probe": mean_text(of(found, ipc, "probe").values()),
                    "ours - probe": probe.text() if probe else "not run",
                }
            )
    return table(rows, 1)


def sources(all_found):
    rows = []
    kinds = ("hard", "hello", "teacher", "teacher-int8", "stored", "topk", "probe")
    for found in all_found:
        for kind in kinds:
            cell = found.first(f"rivals/ipc10/{kind}/")
            got = found.get(f"fidelity/{kind}")
            if kind == "stored":
                got = {"agreement": 100.0, "kl": 0.0}
            kl = "-" if got is None or got["kl"] is None else f"{max(got['kl'], 0):.4f}"
            rows.append(
                {
                    "data": found.name,
                    "labels": NAMES[kind],
                    "top-1": mean_text(of(found, 10, kind).values()),
                    "bytes of labels": bytes_text(cell and cell["label_bytes"]),
                    "agreement": value_text(got, "agreement", ".1f"),
                    "KL": kl,
                }
            )
    return table(rows, 2)


def choices(all_found):
    rows = []
    for found in all_found:
        for ipc in ipcs_of(found):
            default = (found.first(f"rivals/ipc{ipc}/hello/") or {}).get("method")
            gap = paired(of(found, ipc, "hello"), of(found, ipc, "random"))
            scores = {m: mean_text(of(found, ipc, m).values()) for m in METHODS}
            if default:
                scores[default] = f"**{scores[default]}**"
            difference = gap.text() if gap and default != "random" else "-"
            rows.append(
                {"data": found.name, "per class": ipc}
                | {f"`{method}`": text for method, text in scores.items()}
                | {"default - random": difference}
            )
    return table(rows, 1)


def functions(all_found):
    rows = []
    for found in all_found:
        teacher = found.get("teacher")
        for name, text in (("fit/main", "label function"), ("fit/probe", "linear probe")):
            cell = found.get(name)
            if cell is None or teacher is None:
                continue
            by = {row["storage"]: row for row in cell["storages"]}
            rows.append(
                {
                    "data": found.name,
                    "labels": text,
                    "teacher": f"{teacher['top1']:.1f}",
                    "float32": f"{by['float32']['top1']:.1f}",
                    "int8": f"{by['int8']['top1']:.1f}",
                    "int4": f"{by['int4']['top1']:.1f}",
                    "of the teacher's": f"{100 * by['int8']['top1'] / teacher['top1']:.1f} %",
                    "bytes, int8": f"{by['int8']['bytes']:,}",
                    "int4 ": f"{by['int4']['bytes']:,}",
                }
            )
    return table(rows, 2)


def points(found, kind):
    """Return (bytes of images and labels, top-1 by seed, images per class), fewest bytes first."""
    rows = []
    for ipc in found.ipcs("rivals"):
        cell = found.first(f"rivals/ipc{ipc}/{kind}/")
        if cell is not None:
            size = cell["image_bytes"] + cell["label_bytes"]
            rows.append((size, of(found, ipc, kind), ipc))
    return sorted(rows, key=lambda row: row[0])


def budgets(found):
    """Return (bytes of the file, top-1 by seed, the cell) of `--bytes`, fewest first."""
    names = sorted({k.split("/")[1] for k in found.cells if k.startswith("bytes/")}, key=int)
    cells = [(found.first(f"bytes/{name}/"), found.seeds(f"bytes/{name}")) for name in names]
    return [(cell["archive_bytes"], scores, cell) for cell, scores in cells if cell]


def beside_png(found, size, scores):
    """Compare what a budget bought with the best PNG file that is no larger; None if all are."""
    fitting = [other for least, other, _ in points(found, "hello") if least <= size]
    return paired(scores, max(fitting, key=mean)) if fitting else None


def mean(scores):
    return sum(scores.values()) / len(scores)


def curve(all_found):
    rows = []

    def add(found, file, size, scores, gap):
        rows.append(
            {
                "data": found.name,
                "file": file,
                "bytes": bytes_text(size),
                "top-1": mean_text(scores.values()),
                "beside the best PNG that is no larger": gap,
            }
        )

    for found in all_found:
        for size, scores, ipc in points(found, "hello"):
            add(found, f"PNG, {ipc} per class", size, scores, "-")
        for size, scores, cell in budgets(found):
            file = f"`--bytes {bytes_text(cell['budget'])}`: {cell['chosen']}"
            gap = beside_png(found, size, scores)
            add(found, file, size, scores, gap.text() if gap else "no PNG is as small")
    return table(rows, 2)


def losses(all_found):
    """Name every comparison that ours does not win, and every one that is not finished."""
    lines = []
    for found in all_found:
        for size, scores, cell in budgets(found):
            gap = beside_png(found, size, scores)
            if gap and gap.mean <= (gap.half or 0):
                at = f"{found.name}, `--bytes {bytes_text(cell['budget'])}`"
                lines.append(f"- {at}: is no better than the best PNG, {gap.text()} points.")
        for ipc in ipcs_of(found):
            at = f"{found.name}, {ipc} per class"
            ours = of(found, ipc, "hello")
            for kind in ("teacher", "teacher-int8", "stored", "topk", "probe", "hard"):
                gap = paired(ours, of(found, ipc, kind))
                name = NAMES[kind].replace("**", "")
                if gap and gap.half is not None and gap.mean < -gap.half:
                    lines.append(f"- {at}: loses to *{name}*, {gap.text()} points.")
                elif gap and kind in {"probe", "hard"} and gap.mean <= (gap.half or 0):
                    lines.append(f"- {at}: is no better than *{name}*, {gap.text()} points.")
            for method in METHODS:
                gap = paired(ours, of(found, ipc, method))
                if gap and gap.half is not None and gap.mean <= 0 and gap.mean + gap.half < 0:
                    lines.append(f"- {at}: the default choice loses to `{method}`, {gap.text()}.")
            gap = paired(ours, of(found, ipc, "random"))
            if gap and gap.half is not None and abs(gap.mean) <= gap.half and gap.half:
                lines.append(f"- {at}: the default choice ties with random images, {gap.text()}.")
            smaller = [
                NAMES[kind].replace("**", "")
                for kind in ("teacher", "teacher-int8", "stored", "topk")
                if (cell := found.first(f"rivals/ipc{ipc}/{kind}/"))
                and (mine := found.first(f"rivals/ipc{ipc}/hello/"))
                and cell["label_bytes"] < mine["label_bytes"]
            ]
            if smaller:
                lines.append(f"- {at}: fewer bytes of labels have {', '.join(smaller)}.")
    return "\n".join(lines)


def lengths(all_found):
    rows = []
    for found in all_found:
        names = sorted({k.split("/")[1] for k in found.cells if k.startswith("length/")}, key=int)
        cells = [found.first(f"length/{name}/") for name in names]
        cells = [cell for cell in [*cells, found.first("rivals/ipc10/hello/seed0")] if cell]
        if len(cells) > 1:
            steps = sorted(cells, key=lambda cell: cell["steps"])
            text = "; ".join(f"{cell['steps']:,}: {cell['top1']:.1f}" for cell in steps)
            rows.append({"data": found.name, "steps: top-1 at 10 per class, seed 0": text})
    return table(rows)


TABLES = (
    ("Labels: as good as the teacher's?", labels),
    ("Every way to keep labels, at 10 images per class", sources),
    ("Which images", choices),
    ("The label function itself", functions),
    ("The curve in numbers", curve),
)


def page(document, made_on):
    """Return the text of the page."""
    cells = document["cells"]
    all_found = [Found(name, cells) for name in data_sets(cells)]
    mains = [c for f in all_found if (c := f.first("rivals/ipc10/hello/"))]
    intro = INTRO.format(
        count=len(cells),
        hours=sum(cell["seconds"] for cell in cells.values()) / 3600,
        machine=made_on(cells, document),
        bfloat16=BFLOAT16 if any(c["settings"]["bfloat16"] for c in mains) else "",
    )
    parts = [
        *(textwrap.fill(part, 100, break_on_hyphens=False) + "\n" for part in intro.split("\n\n")),
        f"{runs(all_found)}\n",
        f"![Student accuracy by all bytes, a panel for each data set]({PLOT})\n",
    ]
    parts += [f"## {title}\n\n{make(all_found)}\n" for title, make in TABLES]
    parts.append(f"## Where it loses or ties\n\n{losses(all_found)}\n")
    if text := lengths(all_found):
        parts.append(f"## Is the student starved?\n\n{text}\n")
    parts.append(MORE)
    return "\n".join(parts)
