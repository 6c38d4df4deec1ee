"""Record the training curve of a student: loss, learning rate and accuracy.

A run records about two hundred points, and one at every measurement. The loss of a point is the
mean since the previous point: the loss of a single batch says more about the batch than about the
student. Sums stay on the student's device between points, so a GPU need not wait at every step. The
last and the best accuracy are kept apart, because choosing the best uses the test images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hellofmt.student.recipes import Recipe

_POINTS: Final = 200


class Point(NamedTuple):
    """A step, the mean loss since the previous point, and accuracy in percent, if measured."""

    step: int
    loss: float
    learning_rate: float
    accuracy: float | None


class Curve:
    """The points of a run, added by training; saved with a checkpoint as its ``Keeper``.

    Attributes:
        points: points in order of steps.
        seconds: seconds spent by earlier, killed processes of this run.
    """

    def __init__(self, recipe: Recipe, steps: int) -> None:
        """Start a run of ``steps`` without points; the recipe determines the learning rate."""
        self.points: list[Point] = []
        self.seconds = 0.0
        self._recipe, self._steps = recipe, steps
        self._every = max(1, steps // _POINTS)
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, step: int, loss: Tensor, accuracy: float | None = None) -> Point | None:
        """Record a step, from 1 on; return the point that it completes, or None."""
        self._sum = loss.float() + self._sum
        self._count += 1
        if accuracy is None and step % self._every and step != self._steps:
            return None
        rate = self._recipe.learning_rate * self._recipe.rate(step - 1, self._steps)
        point = Point(step, float(self._sum) / self._count, rate, accuracy)
        self.points.append(point)
        self._sum, self._count = 0.0, 0
        return point

    @property
    def measured(self) -> list[Point]:
        """Return the points with an accuracy."""
        return [point for point in self.points if point.accuracy is not None]

    def last(self) -> float:
        """Return the last accuracy in percent; ValueError if nothing was measured."""
        return self._accuracies()[-1][0]

    def best(self) -> tuple[float, int]:
        """Return the best accuracy in percent, and the first step that reached it."""
        return max(self._accuracies(), key=lambda measured: (measured[0], -measured[1]))

    def _accuracies(self) -> list[tuple[float, int]]:
        if not self.measured:
            raise ValueError("curve: expected at least one measurement, got none")
        return [(cast("float", point.accuracy), point.step) for point in self.measured]

    def facts(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return {
            "points": [list(point) for point in self.points],
            "seconds": self.seconds,
            "sum": float(self._sum),
            "count": self._count,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Restore the points from ``facts``."""
        self.points = [Point(*point) for point in facts["points"]]
        self.seconds = float(facts["seconds"])
        self._sum, self._count = float(facts["sum"]), int(facts["count"])
