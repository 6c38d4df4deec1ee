"""Draw the plots of ``report.py`` from the finished cells of a data set."""

from __future__ import annotations

import numpy as np
from found import LONG_RIVALS, NAMES, long_bytes, ranks_of
from public_page import budgets, points
from tables import axes, save

CURVES = ("hello", "hard", "teacher", "teacher-int8", "stored", "topk", "probe")


def plots(found, profile):
    """Return the drawings of a data set by name, those that its cells suffice for."""
    if profile.startswith("public"):
        return {"accuracy-per-byte": accuracy_per_byte} if points(found, "hello") else {}
    drawings = {}
    if found.ipcs("rivals") and found.get("fidelity/hello"):
        drawings["fidelity-per-byte"] = fidelity_per_byte
    if ranks_of(found):
        drawings["rank-and-storage"] = rank_and_storage
    if len(found.ipcs("rivals")) > 1:
        drawings["images-per-class"] = images_per_class
    return drawings


def draw(found, profile):
    for name, drawing in plots(found, profile).items():
        save(drawing(found), f"{name}-{found.name}-{profile}")


def accuracy_per_byte(found):
    figure, axis = axes(width=7.0)
    lines = [(NAMES[kind].replace("**", ""), points(found, kind)) for kind in CURVES]
    lines.append(("ours, `--bytes`", budgets(found)))
    for name, rows in lines:
        if not rows:
            continue
        is_ours = name.startswith(("label function", "ours"))
        axis.errorbar(
            [size for size, *_ in rows],
            [np.mean(list(scores.values())) for _, scores, _ in rows],
            [np.std(list(s.values()), ddof=1) if len(s) > 1 else 0 for _, s, _ in rows],
            marker="o" if is_ours else "s",
            lw=2 if is_ours else 1,
            capsize=3,
            label=name,
        )
    axis.set_xscale("log")
    axis.set_xlabel("bytes of images and labels")
    axis.set_ylabel("student top-1, %")
    axis.set_title(f"{found.name}: what so many bytes teach")
    axis.legend(fontsize=8)
    return figure


def fidelity_per_byte(found):
    from matplotlib.ticker import NullFormatter

    few = [i for i in found.ipcs("rivals") if i <= 10] or found.ipcs("rivals")
    # Where most label sources were run, and of these the most images.
    kinds = {i: sum(bool(found.first(f"rivals/ipc{i}/{k}/")) for k in NAMES) for i in few}
    ipc = max(few, key=lambda i: (kinds[i], i))
    figure, (left, right) = axes(2, 12)
    for kind, name in NAMES.items():
        cell, got = found.first(f"rivals/ipc{ipc}/{kind}/"), found.get(f"fidelity/{kind}")
        if cell is None or got is None or got["kl"] is None:
            continue
        size = long_bytes(kind, ipc, found.classes, cell["label_bytes"])
        for axis, value in ((left, max(got["kl"], 1e-8)), (right, got["agreement"])):
            axis.scatter(size, value, s=46, zorder=3, label=name.replace("**", ""))
    fit = found.get("fit/main")
    for axis, value in ((left, "kl"), (right, "agreement")):
        if fit:
            rows = [(row["bytes"], row["fidelity"][value]) for row in fit["storages"]]
            axis.plot(*zip(*rows, strict=True), color="0.6", lw=1)
        axis.set_xscale("log")
        axis.set_xlabel(f"bytes of the labels ({ipc} per class; stored ones at 300 epochs)")
        axis.xaxis.set_minor_formatter(NullFormatter())
    left.set_yscale("log")
    left.set_ylabel("KL(teacher ‖ labels), nats, T = 4")
    right.set_ylabel("top-1 agreement with the teacher, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"{found.name}: fidelity per byte on views that nothing was fitted on")
    return figure


def rank_and_storage(found):
    figure, axis = axes()
    for cell in ranks_of(found):
        rows = cell["storages"]
        agreement = [row["fidelity"]["agreement"] for row in rows]
        label = f"rank {cell['rank']}, {cell['epochs']:g} epochs"
        axis.plot([row["bytes"] for row in rows], agreement, marker="o", label=label)
    axis.set_xscale("log")
    axis.set_xlabel("bytes of the label function (int4, int8, float16, float32)")
    axis.set_ylabel("agreement with the teacher, %")
    axis.legend()
    return figure


def images_per_class(found):
    counts = found.ipcs("rivals")
    figure, axis = axes()
    for kind in LONG_RIVALS:
        points = [(i, list(found.seeds(f"rivals/ipc{i}/{kind}").values())) for i in counts]
        points = [(i, scores) for i, scores in points if scores]
        axis.errorbar(
            [i for i, _ in points],
            [np.mean(scores) for _, scores in points],
            [np.std(scores, ddof=1) if len(scores) > 1 else 0 for _, scores in points],
            marker="o",
            capsize=3,
            label=NAMES[kind].replace("**", ""),
        )
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(i) for i in counts])
    axis.set_xlabel("images per class")
    axis.set_ylabel("student top-1, %")
    axis.legend()
    return figure
