"""What the record of an archive says about real images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hellofmt.archive.format.record import SourceRecord, as_line

if TYPE_CHECKING:
    from hellofmt.sources.source import Source


def source_record(source: Source) -> SourceRecord:
    """Name, counts and digest of ``source``."""
    counts = np.bincount(source.labels, minlength=len(source.classes))
    return SourceRecord(
        classes=len(source.classes),
        digest=f"sha256:{source.portable_digest()}",
        images=len(source),
        name=as_line(source.name),
        per_class=[int(counts.min()), int(counts.max())],
    )
