"""The ledger: bytes of an archive by part, beside the stored labels that it replaces.

**Labels** are what a student would have read from disk (one row of C values per image and epoch),
**payload** is what an archive stores instead (the sections ``adapter``, ``head`` and ``probes``,
headers and scales included). Images, index, class names and manifest are needed either way and are
counted on neither side. The base is shown apart: a public encoder is shared by every data set that
uses it, a seeded one is generated, and an embedded one is charged to the archive. To charge a
public encoder too, pass its bytes as ``base``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hellofmt.archive.format.functions import FUNCTION_SECTIONS, functions_of
from hellofmt.archive.format.manifest import UNSET
from hellofmt.ledger.sizes import factor_values, stored_label_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hellofmt.archive import Archive


@dataclass(frozen=True)
class Ledger:
    """Bytes of one archive, by part, as ``ledger_of`` counts them.

    Attributes:
        total: bytes of the file.
        images: N.
        classes: C.
        pixels: stored bytes of the images, without headers and padding.
        sections: stored bytes of each section, by name.
        values: trained values (``factor_values``), 0 without a label function.
    """

    total: int
    images: int
    classes: int
    pixels: int
    sections: Mapping[str, int] = field(default_factory=dict[str, int])
    values: int = 0

    @property
    def payload(self) -> int:
        """Bytes of all label functions, in sections ``adapter``, ``head`` and ``probes``."""
        return sum(size for name, size in self.sections.items() if _is_payload(name))

    @property
    def base(self) -> int:
        """Bytes of an embedded base, 0 for a seeded or a public one."""
        return self.sections.get("base", 0)

    @property
    def framing(self) -> int:
        """Everything else, that is manifest, id, member headers, padding and trailer."""
        in_sections = sum(size for name, size in self.sections.items() if name != "pixels")
        return self.total - self.pixels - in_sections

    def labels(self, epochs: int) -> int:
        """Bytes of the float16 labels that the payload replaces, over ``epochs`` epochs."""
        return stored_label_bytes(self.images, self.classes, epochs)

    def ratio(self, epochs: int, base: int = 0) -> float | None:
        """Payload over the labels of ``epochs`` epochs; None where there would be no labels.

        ``base`` is bytes of the encoder, to charge it to this one archive.
        """
        labels = self.labels(epochs)
        return (self.payload + base) / labels if labels else None

    def break_even(self, base: int = 0) -> int | None:
        """First number of epochs whose stored labels outweigh payload and ``base``.

        None where there are no images and so never any labels.
        """
        per_epoch = self.labels(1)
        return (self.payload + base) // per_epoch + 1 if per_epoch else None

    def parts(self) -> dict[str, int]:
        """Bytes by part; the values add up to ``total``.

        Keys: ``pixels``, ``label function``, ``base`` if embedded, ``index and classes``,
        ``texts`` (card and licence) if any, ``framing``.
        """
        parts = {"pixels": self.pixels, "label function": self.payload}
        if self.base:
            parts["base"] = self.base
        parts["index and classes"] = self.sections.get("index", 0) + self.sections.get("classes", 0)
        known = {"base", "index", "classes", "pixels"}
        texts = [n for name, n in self.sections.items() if not (name in known or _is_payload(name))]
        if texts:
            parts["texts"] = sum(texts)
        return {**parts, "framing": self.framing}


def _is_payload(section: str) -> bool:
    return section.partition("_")[0] in FUNCTION_SECTIONS


def ledger_of(file: Archive) -> Ledger:
    """The ledger of an open archive; its index is read if it has images.

    Raises:
        HelloError: the index is damaged.

    Example:
        >>> import hellofmt
        >>> with hellofmt.open("photos.hello") as archive:
        ...     ledger = ledger_of(archive)
        >>> ledger.values
        2480
    """
    manifest = file.manifest
    sections, index = file.section_sizes(), file.index
    stored = 0 if index is None else int(index.size.sum())
    dim = manifest.base.arch.embed_dim if manifest.base is not UNSET else 0
    return Ledger(
        total=file.size_bytes,
        images=len(file),
        classes=manifest.classes,
        pixels=sections.get("pixels", stored),
        sections=sections,
        values=sum(
            factor_values(function.adapter, function.head, dim, manifest.classes)
            for function in functions_of(manifest)
        ),
    )
