"""Draw the plots of ``report.py`` from the finished cells of a data set."""

from __future__ import annotations

import numpy as np
from figures import axes, bytes_along, legend_below, save, style, ticks_along
from found import LONG_RIVALS, NAMES, long_bytes, ranks_of
from public_page import budgets, points

from hellofmt_cli.colours import OURS

CURVES = ("hello", "hard", "teacher", "teacher-int8", "stored", "topk")


def plots(found):
    """Return the drawings of a data set by name, those that its cells suffice for."""
    drawings = {}
    if found.ipcs("rivals") and found.get("fidelity/hello"):
        drawings["fidelity-per-byte"] = fidelity_per_byte
    if ranks_of(found):
        drawings["rank-and-storage"] = rank_and_storage
    if len(found.ipcs("rivals")) > 1:
        drawings["images-per-class"] = images_per_class
    return drawings


def draw(all_found, profile):
    """Write every drawing of a profile's page."""
    if profile.startswith("public"):
        save(accuracy_per_byte(all_found), f"accuracy-per-byte-{profile}")
        return
    for found in all_found:
        for name, drawing in plots(found).items():
            save(drawing(found), f"{name}-{found.name}-{profile}")


def accuracy_per_byte(all_found):
    """Draw what a number of bytes teaches, a panel for each data set."""
    drawn = [found for found in all_found if points(found, "hello")]
    figure, panels = axes(len(drawn))
    for found, axis in zip(drawn, np.ravel(panels), strict=True):
        curves = [(plain(NAMES[kind]), points(found, kind), style(kind)) for kind in CURVES]
        bought = style("hello") | {"marker": "*", "ls": "--"}
        curves.append(("label function, --bytes", budgets(found), bought))
        for name, rows, how in curves:
            if rows:
                scores = [list(by_seed.values()) for _, by_seed, _ in rows]
                spread = [np.std(each, ddof=1) if len(each) > 1 else 0 for each in scores]
                means = [np.mean(each) for each in scores]
                axis.errorbar([size for size, *_ in rows], means, spread, label=name, **how)
        bytes_along(axis, "size of images and labels")
        axis.set_ylabel("student top-1, %")
        axis.set_title(f"{found.name}, {found.classes} classes")
    legend_below(figure)
    return figure


def fidelity_per_byte(found):
    few = [i for i in found.ipcs("rivals") if i <= 10] or found.ipcs("rivals")
    # Where most label sources were run, and of these the most images.
    kinds = {i: sum(bool(found.first(f"rivals/ipc{i}/{k}/")) for k in NAMES) for i in few}
    ipc = max(few, key=lambda i: (kinds[i], i))
    figure, (upper, lower) = axes(2)
    measured = [0.0]
    fit, drawn = found.get("fit/main"), ((upper, "kl"), (lower, "agreement"))
    for axis, value in drawn if fit else ():
        rows = [(row["bytes"], row["fidelity"][value]) for row in fit["storages"]]
        label = "label function in int4 to float32"
        axis.plot(*zip(*rows, strict=True), color=OURS, lw=1.5, label=label)
    for kind, name in NAMES.items():
        cell, got = found.first(f"rivals/ipc{ipc}/{kind}/"), found.get(f"fidelity/{kind}")
        if cell is None or got is None or got["kl"] is None:
            continue
        measured.append(got["kl"])
        size = long_bytes(kind, ipc, found.classes, cell["label_bytes"])
        for axis, value in drawn:
            axis.errorbar(size, got[value], ls="", label=plain(name), **style(kind))
    for axis, _ in drawn:
        bytes_along(axis, f"size of the labels ({ipc} per class; stored ones at 300 epochs)")
    # The teacher's own labels are at 0, and rounding may leave others below it.
    upper.set_yscale("symlog", linthresh=1e-5)
    upper.set_ylim(min(measured) - 2e-6, 2 * max(measured))
    upper.text(0.01, 0.03, "linear below 0.00001", transform=upper.transAxes, fontsize=8)
    upper.set_ylabel("KL(teacher ‖ labels), nats, T = 4")
    lower.set_ylabel("top-1 agreement with the teacher, %")
    legend_below(figure)
    figure.suptitle(f"{found.name}: fidelity per byte on views that nothing was fitted on")
    return figure


def plain(name):
    return name.replace("**", "")


def rank_and_storage(found):
    cells = ranks_of(found)
    figure, axis = axes()
    for number, cell in enumerate(cells):
        rows = cell["storages"]
        agreement = [row["fidelity"]["agreement"] for row in rows]
        label = f"rank {cell['rank']}, {cell['epochs']:g} epochs"
        sizes, marker = [row["bytes"] for row in rows], "os^DvP"[number % 6]
        shade = 0.35 + 0.65 * (number + 1) / len(cells)
        axis.plot(sizes, agreement, marker=marker, color=OURS, alpha=shade, label=label)
    bytes_along(axis, "size of the label function (int4, int8, float16, float32)")
    axis.set_ylabel("agreement with the teacher, %")
    legend_below(figure)
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
            label=plain(NAMES[kind]),
            **style(kind),
        )
    ticks_along(axis, counts, "images per class")
    axis.set_ylabel("student top-1, %")
    legend_below(figure)
    return figure
