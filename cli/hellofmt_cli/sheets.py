"""One PNG of images, their views and labels, for a slide or a README."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hellofmt.archive import write_small_file
from hellofmt.errors import printable
from hellofmt_cli.colours import OTHER, OURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt_cli.labelled import Labelled


def write_sheet(path: str, images: Sequence[Labelled], *, force: bool) -> None:
    """Write a row for each image: a view and the bars of its label, beside the next view."""
    columns = len(images[0].views)
    figure = Figure(figsize=(3.4 * columns, 1.7 * len(images)), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(images),
        2 * columns,
        width_ratios=[1, 1.2] * columns,
        wspace=0.05,
        hspace=0.35,
        left=0.02,
        right=0.98,
        top=0.95,
        bottom=0.03,
    )
    for row, image in enumerate(images):
        for column, view in enumerate(image.views):
            picture = figure.add_subplot(grid[row, 2 * column])
            picture.imshow(view.pixels, interpolation="nearest")
            picture.set_axis_off()
            if column == 0:
                picture.set_title(printable(image.name, 40), loc="left", fontsize=10)
            axes = figure.add_subplot(grid[row, 2 * column + 1])
            shares = [share for _, share in view.label]
            own = [OURS if name == image.name else OTHER for name, _ in view.label]
            axes.barh(range(len(shares)), shares, color=own, height=0.45, align="edge")
            for place, (name, share) in enumerate(view.label):
                text = f"{printable(name, 24)}  {100 * share:.0f} %"
                axes.text(0, place - 0.08, text, fontsize=8, va="bottom")
            axes.set_xlim(0, 1)
            axes.set_ylim(len(shares), -0.8)
            axes.set_axis_off()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    write_small_file(path, out.getvalue(), force=force)
