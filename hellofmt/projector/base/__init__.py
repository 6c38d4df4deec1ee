"""Base encoders: the frozen, public part of a label function, and the digest that pins it.

A base is an open_clip image tower with its preprocessing. Four sources: open_clip by name and tag,
directory or hub; a model that is loaded already; weights generated from a seed by a published rule;
weights carried inside the archive.
"""

from __future__ import annotations

from hellofmt.projector.base.build import seeded_base
from hellofmt.projector.base.encoder import Encoder, LoadedBase
from hellofmt.projector.base.named import load_base
from hellofmt.projector.base.pinned import base_of

__all__ = ["Encoder", "LoadedBase", "base_of", "load_base", "seeded_base"]
