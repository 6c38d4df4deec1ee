"""Real images: listed, decoded, labelled and packed by one rule for every command."""

from __future__ import annotations

from hellofmt.sources.arrays import ArrayImages, stratified_split
from hellofmt.sources.crops import decode_centre, decode_crop
from hellofmt.sources.decode import conversion_notes, decode_rgb, to_rgb
from hellofmt.sources.digits import digits
from hellofmt.sources.listing import Pictures
from hellofmt.sources.pack import pack_archive
from hellofmt.sources.read import open_pictures, read_source
from hellofmt.sources.source import Source

__all__ = [
    "ArrayImages",
    "Pictures",
    "Source",
    "conversion_notes",
    "decode_centre",
    "decode_crop",
    "decode_rgb",
    "digits",
    "open_pictures",
    "pack_archive",
    "read_source",
    "stratified_split",
    "to_rgb",
]
