"""Where a teacher's network is from, carried with it from whoever named, read or trained it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hellofmt.archive.format.record import Run, SourceRecord

__all__ = ["Origin"]


@dataclass(frozen=True)
class Origin:
    """Where a network is from.

    Attributes:
        text: in the words of whoever named it, without paths.
        network: the name it was built by; empty where nobody knows.
        step: gradient steps it was trained for.
        accuracy: percent, as measured when it was trained.
        trained: the run that trained it.
        trained_on: images of that run.
    """

    text: str
    network: str = ""
    step: int | None = None
    accuracy: float | None = None
    trained: Run | None = None
    trained_on: SourceRecord | None = None
