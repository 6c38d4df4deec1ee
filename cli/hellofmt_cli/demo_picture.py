"""The picture of ``hello demo``: images with their soft labels, accuracies, bytes.

The label bars are made from the archive alone, as a reader would make them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hellofmt.loading import HelloDataset
from hellofmt_cli.colours import FULL, HARD, INK, OTHER, OURS, RANDOM, STORED, TEACHER
from hellofmt_cli.demo_report import ipcs_of
from hellofmt_cli.demo_settings import archive_path
from hellofmt_cli.demo_students import COLUMNS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_COLOURS: Final = {"hard": HARD, "random": RANDOM, "hello": OURS, "teacher": TEACHER, "full": FULL}
# Digits that a network takes for each other.
_SHOWN: Final = ("3", "5", "8")


def draw_report(out: Path, result: dict[str, Any]) -> None:
    """Write ``report.png``: images with soft labels, accuracies, bytes."""
    ipcs = ipcs_of(result)
    figure = Figure(figsize=(12.5, 11.0), facecolor="white")
    FigureCanvasAgg(figure)
    left, right = 0.04, 0.975
    figure.suptitle(
        "Digits, distilled: the images and the labels that one .hello file gives",
        x=left,
        y=0.98,
        ha="left",
        fontsize=16,
        color=INK,
        weight="bold",
    )
    top = figure.add_gridspec(1, 1, left=left, right=right, top=0.885, bottom=0.575)
    _draw_labelled(figure, top[0, 0], out, ipcs[0])
    middle = figure.add_gridspec(
        1, 2, left=left, right=right, top=0.52, bottom=0.19, wspace=0.06, width_ratios=[2, 3]
    )
    _draw_images(figure.add_subplot(middle[0, 0]), out, ipcs[-1])
    _draw_accuracy(figure.add_subplot(middle[0, 1]), result)
    # The names of the files stand left of these bars.
    bottom = figure.add_gridspec(1, 1, left=0.15, right=right, top=0.13, bottom=0.055)
    _draw_bytes(figure.add_subplot(bottom[0, 0]), result)
    figure.savefig(out / "report.png", dpi=110)


def _dataset(out: Path, ipc: int) -> HelloDataset:
    return HelloDataset(archive_path(out, ipc), labels="soft", seed=0)


def _view_pixels(dataset: HelloDataset, image: Any) -> NDArray[np.float64]:
    """A normalised image of the data set back as an RGB picture, (S, S, 3) in [0, 1]."""
    mean = np.array([float(v) for v in dataset.views.mean])
    std = np.array([float(v) for v in dataset.views.std])
    return np.clip(image.numpy().transpose(1, 2, 0) * std + mean, 0.0, 1.0)


def _title(axes: Axes, text: str, pad: float = 6) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=INK, pad=pad)


def _open(axes: Axes) -> None:
    """Leave the axes below and to the left, without ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=0)


def _plain(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_labelled(figure: Figure, place: Any, out: Path, ipc: int) -> None:
    """A few stored images, a view of each, and the label of that view."""
    dataset = _dataset(out, ipc)
    names = dataset.classes
    rows = [dataset.targets.index(names.index(name)) for name in _SHOWN]
    frame = figure.add_subplot(place)
    _plain(frame)
    _title(
        frame,
        f"{len(rows)} of the {len(dataset)} images of digits-ipc{ipc}.hello, a view of each (a"
        " crop, perhaps with a box\nfrom another image), and its soft label, made by the file",
        pad=22,
    )
    cells = place.subgridspec(2, 2 * len(rows), width_ratios=[1, 1.6] * len(rows), hspace=0.3)
    for k, (row, (image, soft)) in enumerate(zip(rows, dataset.__getitems__(rows), strict=True)):
        own = dataset.targets[row]
        pictures = ("stored", dataset.pixels(row)), ("a view", _view_pixels(dataset, image))
        for line, (title, pixels) in enumerate(pictures):
            picture = figure.add_subplot(cells[line, 2 * k])
            picture.imshow(pixels, interpolation="nearest")
            picture.set_title(title, fontsize=9, color=INK, pad=3)
            _plain(picture)
        bars = figure.add_subplot(cells[:, 2 * k + 1])
        shares = 100 * soft.numpy()
        colours = [OURS if c == own else OTHER for c in range(len(names))]
        bars.barh(names, shares, color=colours, height=0.8)
        for line, share in enumerate(shares):
            bars.text(share + 1, line, f"{share:.0f} %", va="center", fontsize=9, color=INK)
        # At the temperature of the labels no class has much more than half; a number needs room.
        bars.set_xlim(0, max(60, shares.max() + 10))
        bars.invert_yaxis()
        _open(bars)
        bars.set_xticks([])
        bars.spines["bottom"].set_visible(False)


def _draw_images(axes: Axes, out: Path, ipc: int) -> None:
    """Every stored image of the larger set, one row per class."""
    dataset = _dataset(out, ipc)
    classes, size = len(dataset.classes), dataset.views.size
    gap = 2
    sheet = np.full((classes * (size + gap), ipc * (size + gap), 3), 255, np.uint8)
    place = [0] * classes
    for row, label in enumerate(dataset.targets):
        top, left = label * (size + gap), place[label] * (size + gap)
        sheet[top : top + size, left : left + size] = dataset.pixels(row)
        place[label] += 1
    axes.imshow(sheet, interpolation="nearest")
    axes.set_anchor("NW")
    _title(axes, f"All {len(dataset)} images of digits-ipc{ipc}.hello, a row per class")
    _plain(axes)


def _draw_accuracy(axes: Axes, result: dict[str, Any]) -> None:
    """Accuracy by source of the labels, a group for each number of images per class."""
    ipcs = ipcs_of(result)
    columns = ("hard", "random", "hello", "teacher")
    for group, ipc in enumerate(ipcs):
        for k, column in enumerate(columns):
            mean = result["accuracy"][f"ipc{ipc}"][column]
            spread = result["spread"][f"ipc{ipc}"][column]
            at = group * 5 + k
            axes.bar(
                at,
                mean,
                yerr=spread,
                width=0.86,
                color=_COLOURS[column],
                capsize=4,
                ecolor=INK,
                label=COLUMNS[column] if group == 0 else None,
            )
            axes.text(
                at,
                mean - spread - 1.2,
                f"{mean:.1f}",
                ha="center",
                va="top",
                fontsize=12,
                color="white",
                weight="bold",
            )
    full = result["accuracy"]["full"]
    axes.axhline(
        full,
        color=_COLOURS["full"],
        linestyle="--",
        linewidth=1.2,
        label=f"all data, hard labels: {full:.1f}",
    )
    lowest = min(result["accuracy"][f"ipc{ipc}"][c] for ipc in ipcs for c in columns)
    axes.set_ylim(max(0.0, 10 * np.floor((lowest - 8) / 10)), 108)
    axes.set_yticks(np.arange(axes.get_ylim()[0], 101, 10))
    names = [f"{ipc} image{'' if ipc == 1 else 's'} per class" for ipc in ipcs]
    axes.set_xticks([group * 5 + 1.5 for group in range(len(ipcs))], names)
    _title(
        axes,
        f"Accuracy of new networks on {result['measured_on']} images, %"
        + ("" if axes.get_ylim()[0] == 0 else f" (the axis starts at {axes.get_ylim()[0]:.0f})"),
    )
    axes.legend(loc="upper left", fontsize=8.5, frameon=False, ncols=2)
    _open(axes)


def _draw_bytes(axes: Axes, result: dict[str, Any]) -> None:
    """Bytes of each file by part, beside stored labels for the same training."""
    ipcs = ipcs_of(result)
    # What is no label is grey, from dark to light.
    greys = {
        "pixels": "#6B7780",
        "index and classes": OTHER,
        "texts": "#CBD2D6",
        "framing": "#E4E8EA",
    }
    palette = {**greys, "label function": OURS}
    names: list[str] = []
    seen: set[str] = set()
    for ipc in ipcs:
        account, left = result["bytes"][f"ipc{ipc}"], 0
        for part, size in account["parts"].items():
            axes.barh(
                len(names),
                size / 1000,
                left=left,
                color=palette.get(part, OTHER),
                label=None if part in seen else part,
            )
            seen.add(part)
            left += size / 1000
        names.append(f"digits-ipc{ipc}.hello")
    account = result["bytes"][f"ipc{ipcs[0]}"]
    axes.barh(
        len(names), account["stored_labels"] / 1000, color=STORED, label="stored labels, float16"
    )
    axes.barh(
        len(names),
        account["view_records"] / 1000,
        left=account["stored_labels"] / 1000,
        color=STORED,
        alpha=0.4,
        label="their view records",
    )
    names.append("labels stored instead")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    _title(
        axes, "kB. Ten classes show the mechanism, not the saving: labels of ten numbers are small"
    )
    axes.legend(loc="upper left", bbox_to_anchor=(-0.01, -0.3), fontsize=8, frameon=False, ncols=7)
    _open(axes)
