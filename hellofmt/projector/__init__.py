"""Image to label: base encoders, low-rank deltas, the head, and the labeler that serves them."""

from __future__ import annotations

from hellofmt.projector.base import Encoder, LoadedBase, base_of, load_base, seeded_base
from hellofmt.projector.labeler import Labeler
from hellofmt.projector.lowrank import PRESETS, TargetRule, parse_target
from hellofmt.projector.peft import read_peft, write_peft
from hellofmt.projector.precision import STORAGES, PrecisionRow, precision_table, stored_labelers
from hellofmt.projector.projector import Projector

__all__ = [
    "PRESETS",
    "STORAGES",
    "Encoder",
    "Labeler",
    "LoadedBase",
    "PrecisionRow",
    "Projector",
    "TargetRule",
    "base_of",
    "load_base",
    "parse_target",
    "precision_table",
    "read_peft",
    "seeded_base",
    "stored_labelers",
    "write_peft",
]
