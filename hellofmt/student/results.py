"""Results of students as an archive records them: added to a record, and compared with it.

A new run reproduces a recorded result if its accuracy lies in the 95 % prediction interval of one
more seed: mean ± t * s * sqrt(1 + 1 / n), with t of Student's distribution for n - 1 degrees of
freedom and s the standard deviation over the n recorded seeds; of k new seeds the mean is held
against it, with 1 / k in the place of 1. One recorded seed says nothing of the spread; then the
interval is that of the difference of two independent proportions on the M
images, mean ± 1.96 * sqrt(p (1 - p) (1 + 1 / k) / M). It is never less than one image.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.record import Record
from hellofmt.errors import UserInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.archive.format.record import Result

_OWN: Final = {"accuracy", "seeds"}
_NOT_THE_RECIPE: Final = {*_OWN, "device", "versions"}
_MOST: Final = 64
# 97.5 % points of Student's distribution for 1, 2, ... degrees of freedom.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL: Final = 1.960


@dataclass(frozen=True)
class Comparison:
    """A new run beside the recorded ones.

    Attributes:
        recorded: accuracies of the matching seeds, percent; empty if no result matches.
        here: accuracies of the new seeds, percent.
        tolerance: half of the prediction interval, in points; None without a match.
        differs: what differs from the nearest result, or, for a match, in versions and device; one
            phrase each.
    """

    recorded: tuple[float, ...]
    here: tuple[float, ...]
    tolerance: float | None
    differs: tuple[str, ...]

    @property
    def is_reproduced(self) -> bool | None:
        """Whether the new run is what the record predicts; None without a match."""
        if self.tolerance is None:
            return None
        apart = statistics.fmean(self.here) - statistics.fmean(self.recorded)
        return abs(apart) <= self.tolerance


def prediction_interval(recorded: Sequence[float], images: int, new: int = 1) -> float:
    """Half of the 95 % prediction interval of the mean of k new seeds, in points; see the module.

    ``recorded`` are accuracies of n >= 1 seeds, in percent of M images.
    """
    count = len(recorded)
    if count > 1:
        freedom = count - 1
        # Beyond the table by the expansion of the quantile, within 0.002.
        beyond = _NORMAL + 2.372 / freedom + 2.82 / freedom**2
        t = _T[freedom - 1] if freedom <= len(_T) else beyond
        half = t * statistics.stdev(recorded) * math.sqrt(1 / new + 1 / count)
    else:
        share = recorded[0] / 100
        half = 100 * _NORMAL * math.sqrt(share * (1 - share) * (1 + 1 / new) / images)
    # Accuracies are recorded with two decimals.
    return max(half, 100 / images) + 0.01


def compared(results: Sequence[Result], new: Result) -> Comparison | None:
    """Set a new result beside the recorded ones; None if there are none.

    Results match where everything but seeds, versions and device is equal.
    """
    if not results:
        return None
    here = tuple(map(float, new.accuracy))
    matching = [result for result in results if not _differences(result, new, _NOT_THE_RECIPE)]
    if not matching:
        apart = [_differences(result, new, _NOT_THE_RECIPE) for result in results]
        return Comparison((), here, None, tuple(min(apart, key=len)))
    recorded = tuple(float(text) for result in matching for text in result.accuracy)
    differs = [] if new in matching else _differences(matching[-1], new, _OWN)
    tolerance = prediction_interval(recorded, new.evaluated.images, len(here))
    return Comparison(recorded, here, tolerance, tuple(differs))


def _differences(recorded: Result, new: Result, but: set[str]) -> list[str]:
    """What differs, ``steps (300 recorded, 500 here)``."""
    a, b = _facts(recorded), _facts(new)
    return [
        f"{key} ({_shown(a.get(key))} recorded, {_shown(b.get(key))} here)"
        for key in sorted(a.keys() | b.keys())
        if key.partition(" ")[0] not in but and a.get(key) != b.get(key)
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _facts(result: Result) -> dict[str, Any]:
    """The fields by what they are called; images that were measured on by digest and number."""
    facts: dict[str, Any] = msgspec.to_builtins(result)
    evaluated = facts.pop("evaluated")
    facts["images evaluated"] = f"{evaluated['images']:,} of {evaluated['digest'][:19]}"
    facts.update({f"versions {name}": text for name, text in facts.pop("versions").items()})
    return {key.replace("_", " "): value for key, value in facts.items()}


def with_result(record: Record | None, new: Result) -> Record:
    """A record with one more result; a seed that is there already gets the new accuracy."""
    record = record or Record()
    results = [] if record.results is UNSET else list(record.results)
    for place, result in enumerate(results):
        if not _differences(result, new, _OWN):
            reached = dict(zip(result.seeds, result.accuracy, strict=True))
            reached |= dict(zip(new.seeds, new.accuracy, strict=True))
            seeds = sorted(reached)
            accuracy = [reached[seed] for seed in seeds]
            results[place] = msgspec.structs.replace(result, seeds=seeds, accuracy=accuracy)
            break
    else:
        results.append(new)
    if len(results) > _MOST or max(len(result.seeds) for result in results) > _MOST:
        text = f"the record is full: expected at most {_MOST} results of {_MOST} seeds"
        raise UserInputError.make("E_DATA", text)
    return msgspec.structs.replace(record, results=results)
