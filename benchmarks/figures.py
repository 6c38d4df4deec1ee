"""Figures of the results pages: axes, bytes along them, a colour and mark for each label source."""

from __future__ import annotations

import numpy as np
from tables import RESULTS, bytes_text

from hellofmt_cli.colours import HARD, INK, OURS, PROBE, PRUNED, STORED, TEACHER, TOPK

# Colour, marker and how it is filled, by the names of `found.NAMES`. The same labels in another
# form keep their colour.
MARKS = {
    "hard": (HARD, "s", "full"),
    "hello": (OURS, "o", "full"),
    "teacher": (TEACHER, "D", "full"),
    "teacher-int8": (TEACHER, "D", "none"),
    "stored": (STORED, "^", "full"),
    "topk": (TOPK, "v", "full"),
    "pruned": (PRUNED, "P", "full"),
    "probe": (PROBE, "X", "full"),
    "random": (OURS, "o", "none"),
}


def style(kind):
    """Return how matplotlib draws a label source."""
    colour, marker, fill = MARKS[kind]
    return {"color": colour, "marker": marker, "fillstyle": fill, "markersize": 7, "capsize": 3}


def axes(rows=1):
    """Return a figure for a results page and its axes, one below the other, for phones."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, found = plt.subplots(rows, figsize=(7.2, 1 + 3.3 * rows), layout="constrained")
    for axis in np.ravel(found):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(which="both", colors=INK, length=0)
    return figure, found


def bytes_along(axis, label):
    """Give an x axis decades of bytes as people say them."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: bytes_text(round(value)))
    axis.xaxis.set_minor_formatter(lambda *_: "")
    axis.set_xlabel(label)


def ticks_along(axis, values, label):
    """Give a logarithmic x axis these ticks and no others."""
    axis.set_xscale("log")
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()
    axis.set_xlabel(label)


def legend_below(figure):
    """Put the legend of all axes below the whole figure, each name once."""
    once = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        once |= dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once, loc="outside lower center", ncols=2, frameon=False)


def save(figure, name):
    """Write a figure of a results page; the same figure gives the same bytes."""
    from matplotlib import pyplot as plt

    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
