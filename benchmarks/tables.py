"""Numbers as the pages of results print them: means, paired differences, bytes, tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results"
NONE = "-"
# Two-sided 95 % of Student's t by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def mean_text(values):
    """Format the mean over seeds and the standard deviation (n - 1)."""
    found = list(values)
    if not found:
        return "not run"
    mean = f"{np.mean(found):.1f}"
    return f"{mean} ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else mean


class Difference(NamedTuple):
    """Mean over seeds and half of its 95 % interval, None with one seed."""

    mean: float
    half: float | None

    def interval(self, form="+.1f"):
        """Return both ends of the interval, empty with one seed."""
        if self.half is None:
            return ""
        return f"{self.mean - self.half:{form}} to {self.mean + self.half:{form}}"

    def text(self, form="+.1f"):
        """Return the mean, and the interval if there is one."""
        interval = self.interval(form)
        return f"{self.mean:{form}}" + (f" ({interval})" if interval else "")


def paired(ours, theirs):
    """Return the mean difference over the seeds of both, None if there is no such seed."""
    difference = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not difference:
        return None
    n = len(difference)
    half = _T95[n - 1] * float(np.std(difference, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Difference(float(np.mean(difference)), half)


def bytes_text(count):
    """Format bytes in decimal units with three digits."""
    if count is None:
        return NONE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # As rounded to three digits.
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def table(rows, texts=None):
    """Format rows, dicts of the same keys, as Markdown; empty without any.

    Columns after the first ``texts`` are right-aligned.
    """
    if not rows:
        return ""
    head = list(rows[0])
    left = len(head) if texts is None else texts
    sides = ["---"] * left + ["---:"] * (len(head) - left)
    lines = (head, sides, *(row.values() for row in rows))
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def value_text(cell, key, form):
    """Format a value of a cell, or say that there is none."""
    return f"{cell[key]:{form}}" if cell else NONE
