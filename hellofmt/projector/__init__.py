"""Image to label: base encoders, low-rank deltas, the head, and the labeler that serves them."""

from __future__ import annotations

from hellofmt.projector.base import Encoder, LoadedBase, base_of, load_base, seeded_base
from hellofmt.projector.labeler import Labeler
from hellofmt.projector.projector import Projector

__all__ = ["Encoder", "Labeler", "LoadedBase", "Projector", "base_of", "load_base", "seeded_base"]
