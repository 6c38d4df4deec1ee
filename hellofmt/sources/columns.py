"""Image and class of each row of a Hugging Face data set.

Nothing here imports the library: whoever passes such a data set has it.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class Columns:
    """The columns of type ``Image`` and ``ClassLabel``; the second may be missing."""

    def __init__(self, what: str, table: Any, *, needs_class: bool) -> None:
        """Find them."""
        self._what = what
        if table.format["type"] == "custom":
            text = f"{what} has a transform; expected none, for views are made here"
            raise UserInputError.make("E_OPTION", text + ": pass images.with_format(None)")
        table = table.with_format(None)
        self._names: list[str] = list(table.column_names)
        self._features: Mapping[str, Any] = table.features
        self.image = self._only("Image", "images.cast_column(NAME, datasets.Image())")
        self.label: str | None = None
        if needs_class or self._of_type("ClassLabel"):
            cure = "images.cast_column(NAME, datasets.ClassLabel(names=[...]))"
            self.label = self._only("ClassLabel", cure)
        self.class_names: list[str] = (
            [] if self.label is None else list(self._features[self.label].names)
        )
        feature = self._features[self.image]
        if getattr(feature, "mode", None) not in (None, "RGB"):
            text = f"column `{printable(self.image)}` of {what}; expected images as they are"
            text += f" stored, got mode {printable(feature.mode)}; pass images.cast_column(NAME,"
            raise UserInputError.make("E_DATA", text + " datasets.Image())")
        # Undecoded: once decoded, an image no longer tells that it had 16 bits.
        self._rows = table.cast_column(self.image, type(feature)(decode=False))

    def _of_type(self, kind: str) -> list[str]:
        return [name for name in self._names if type(self._features[name]).__name__ == kind]

    def _only(self, kind: str, cure: str) -> str:
        """Return the one column of a type."""
        columns = self._of_type(kind)
        if len(columns) == 1:
            return columns[0]
        shown = ", ".join(
            f"`{printable(name, 40)}` ({type(self._features[name]).__name__})"
            for name in self._names
        )
        text = f"columns of {self._what}; expected one of type {kind}, got {len(columns)}: {shown}"
        if columns:
            cure = "images.select_columns([IMAGE, CLASS])"
        raise UserInputError.make("E_DATA", f"{text}; pass {cure}")

    def stored(self, row: int) -> Mapping[str, Any]:
        """Return ``bytes`` of the image of a row, None if they are in the file at ``path``."""
        stored = self._rows[row][self.image]
        if stored is None:
            raise UserInputError.make("E_DATA", f"row {row} of {self._what} has no image")
        return stored

    def read(self, row: int) -> tuple[Image.Image, int | None]:
        """Return the image of a row, and its class, None if unknown."""
        stored = self.stored(row)
        image = Image.open(stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"]))
        label = None if self.label is None else self._rows[row][self.label]
        # `datasets` writes -1 for an unknown class.
        return image, None if label == -1 else label

    def labels(self) -> NDArray[np.int64]:
        """Return the class of every row, -1 where it is unknown: int64 (N,)."""
        column = self._rows.select_columns([self.label]).with_format("arrow")[:].column(0)
        return np.asarray(column.fill_null(-1).to_numpy(), np.int64)

    def targets(self) -> list[Any] | None:
        """Return the column of classes, or None."""
        return None if self.label is None else list(self._rows[self.label])
