"""Real images: listed, decoded, labelled and packed by one rule for every command.

Names are imported when they are first used: a data set reads images, but packs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hellofmt.lazy import lazy_names

if TYPE_CHECKING:
    from hellofmt.sources.arrays import ArrayImages, stratified_split
    from hellofmt.sources.crops import (
        decode_centre,
        decode_crop,
        decode_crops,
        default_side,
        sampled_sizes,
    )
    from hellofmt.sources.decode import conversion_notes, decode_rgb, to_rgb
    from hellofmt.sources.kept import KEPT_PATTERN
    from hellofmt.sources.pack import pack_archive
    from hellofmt.sources.read import list_source, open_source
    from hellofmt.sources.record import source_record
    from hellofmt.sources.sklearn_digits import digits
    from hellofmt.sources.source import Source, check_classes

__all__ = [
    "KEPT_PATTERN",
    "ArrayImages",
    "Source",
    "check_classes",
    "conversion_notes",
    "decode_centre",
    "decode_crop",
    "decode_crops",
    "decode_rgb",
    "default_side",
    "digits",
    "list_source",
    "open_source",
    "pack_archive",
    "sampled_sizes",
    "source_record",
    "stratified_split",
    "to_rgb",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "arrays": ("ArrayImages", "stratified_split"),
        "crops": ("decode_centre", "decode_crop", "decode_crops", "default_side", "sampled_sizes"),
        "decode": ("conversion_notes", "decode_rgb", "to_rgb"),
        "kept": ("KEPT_PATTERN",),
        "pack": ("pack_archive",),
        "read": ("list_source", "open_source"),
        "record": ("source_record",),
        "sklearn_digits": ("digits",),
        "source": ("Source", "check_classes"),
    },
)
