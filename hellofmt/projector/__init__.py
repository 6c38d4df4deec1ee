"""Image to label: base encoders, low-rank deltas, the head, and the labeler that serves them."""

from __future__ import annotations

from hellofmt.projector.base import LoadedBase, base_of, load_base, seeded_base
from hellofmt.projector.labeler import Labeler
from hellofmt.projector.peft import MhaFix, read_peft, write_peft
from hellofmt.projector.projector import STORAGES, Projector, stored_labelers
from hellofmt.projector.targets import TargetRule, parse_target

__all__ = [
    "STORAGES",
    "Labeler",
    "LoadedBase",
    "MhaFix",
    "Projector",
    "TargetRule",
    "base_of",
    "load_base",
    "parse_target",
    "read_peft",
    "seeded_base",
    "stored_labelers",
    "write_peft",
]
