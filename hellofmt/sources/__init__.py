"""Real images: listed, decoded and labelled by one rule for every command."""

from __future__ import annotations

from hellofmt.sources.decode import conversion_notes, decode_rgb, to_rgb

__all__ = ["conversion_notes", "decode_rgb", "to_rgb"]
