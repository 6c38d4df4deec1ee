"""``--curve``: the curve of a run as CSV, JSON, a picture, TensorBoard events and for W&B.

CSV and JSON are rewritten at every measurement, so that a run can be watched; the picture is drawn
once, at the end. The picture needs matplotlib and the events need tensorboard; without them a line
says what to install, and everything else is written. For Weights & Biases a run is kept in the
folder and not sent, unless WANDB_MODE says otherwise.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive import write_small_file
from hellofmt.errors import UserInputError, printable
from hellofmt_cli.colours import INK
from hellofmt_cli.console import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hellofmt.student import Curve, Point

_EXTRA: Final = "pip install 'hellofmt[log]'"


class Log:
    """A folder that a run is written to."""

    def __init__(self, folder: str, curve: Curve, title: str, wandb: str | None = None) -> None:
        """Create the folder, and say at once what will be missing; ``wandb`` names a project."""
        self._folder, self._curve, self._title = Path(folder), curve, title
        self._folder.mkdir(parents=True, exist_ok=True)
        self._has_picture = _has("matplotlib", "curve.png")
        self._has_events = _has("tensorboard", "TensorBoard events")
        self._events: Any = None
        self._run: Any = None if wandb is None else self._start_run(wandb)
        self._sent = 0

    def _start_run(self, project: str) -> Any:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserInputError.make(
                "E_OPTION", "`--wandb` needs `wandb`; `pip install 'hellofmt[wandb]'`"
            ) from None
        return wandb.init(
            project=project,
            name=self._title,
            dir=self._folder,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True),
        )

    def add(self, point: Point) -> None:
        """Write a new point."""
        if self._has_events:
            self._add_event(point)
        if self._run is not None:
            # Those before a state that the run continues from come with the first.
            for each in self._curve.points[self._sent :]:
                values = {key: value for key, value in each._asdict().items() if value is not None}
                self._run.log(values, step=each.step)
            self._sent = len(self._curve.points)
        if point.accuracy is not None:
            self._write_tables()

    def _add_event(self, point: Point) -> None:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            # Events that a killed process wrote after its last checkpoint are dropped.
            self._events = SummaryWriter(str(self._folder), purge_step=point.step)
        self._events.add_scalar("loss", point.loss, point.step)
        self._events.add_scalar("learning_rate", point.learning_rate, point.step)
        if point.accuracy is not None:
            self._events.add_scalar("accuracy", point.accuracy, point.step)

    def _write_tables(self) -> None:
        points = self._curve.points
        rows = ["step,loss,learning_rate,accuracy"]
        for point in points:
            accuracy = "" if point.accuracy is None else f"{point.accuracy:.4f}"
            rows.append(f"{point.step},{point.loss!r},{point.learning_rate!r},{accuracy}")
        write_small_file(self._folder / "curve.csv", ("\n".join(rows) + "\n").encode(), force=True)
        document = [point._asdict() for point in points]
        write_small_file(
            self._folder / "curve.json",
            (json.dumps(document, indent=1) + "\n").encode(),
            force=True,
        )

    def finish(self, document: dict[str, Any]) -> None:
        """Write what is written once: ``result.json``, the picture."""
        self._write_tables()
        text = json.dumps(document, indent=2, ensure_ascii=True) + "\n"
        write_small_file(self._folder / "result.json", text.encode(), force=True)
        if self._has_picture:
            draw_curve(self._folder / "curve.png", self._curve, self._title)
        if self._events is not None:
            self._events.close()
        if self._run is not None:
            self._run.config.update(document)
            self._run.finish()
            if self._run.offline:
                console.say(f"W&B: `wandb sync {Path(self._run.dir).parent}` sends the run")


def _has(package: str, what: str) -> bool:
    if importlib.util.find_spec(package) is not None:
        return True
    console.warn(f"no {what} without `{package}`; `{_EXTRA}`")
    return False


def _style(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.tick_params(colors=INK)


def _draw_accuracy(axes: Axes, curve: Curve, measured: Sequence[Point]) -> None:
    steps = [point.step for point in measured]
    accuracies = [float(point.accuracy or 0) for point in measured]
    axes.plot(steps, accuracies, color=INK, marker="o", markersize=4, clip_on=False)
    best, at = curve.best()
    text = f"last {curve.last():.2f} %"
    if best > curve.last():
        text += f"\nbest {best:.2f} % at step {at:,}"
        axes.plot([at], [best], "o", markersize=9, fillstyle="none", color=INK, clip_on=False)
    # A plate, so that no grid line runs through the words.
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    corner = axes.transAxes
    axes.text(0.99, 0.06, text, transform=corner, ha="right", va="bottom", color=INK, bbox=plate)
    axes.set_ylim(0, max(*accuracies, 1) * 1.15)
    _style(axes, "accuracy, %")
    axes.set_xlabel("step", color=INK)
    axes.set_xlim(0, curve.points[-1].step)


def draw_curve(path: Path, curve: Curve, title: str) -> None:
    """Draw loss and accuracy over the steps as a PNG."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    # Names come from the user, and a dollar sign would start a formula.
    figure.suptitle(printable(title, 90), color=INK, fontsize=11, parse_math=False)
    steps = [point.step for point in curve.points]
    above.plot(steps, [point.loss for point in curve.points], color=INK)
    _style(above, "loss")
    _draw_accuracy(below, curve, curve.measured)
    data = BytesIO()
    figure.savefig(data, format="png")
    write_small_file(path, data.getvalue(), force=True)
