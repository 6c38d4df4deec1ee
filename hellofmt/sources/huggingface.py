"""Data sets of Hugging Face's ``datasets``: by name, saved to a folder, or Parquet files.

Only their rows are used: a column of type ``Image``, read undecoded, and one of type
``ClassLabel``. The table stays where the library maps it from; a row is read when it is asked for.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.storage.local_files import read_file
from hellofmt.errors import HelloIOError, UserInputError, foreign_text, printable
from hellofmt.sources.columns import Columns
from hellofmt.sources.listing import Listing
from hellofmt.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence


def open_hugging_face(
    text: str, classes: Sequence[ClassLine] | None = None, *, skips_unreadable: bool = False
) -> HuggingFaceSource:
    """Open ``NAME`` or ``NAME:SPLIT``: a data set of the hub, which is fetched, or a folder.

    A folder is what ``save_to_disk`` wrote; the split is ``train`` if none is named.
    """
    datasets = _library()
    name, _, split = text.partition(":")
    saved = Path(name)
    is_saved = (saved / "state.json").exists() or (saved / "dataset_dict.json").exists()
    try:
        if is_saved:
            table = datasets.load_from_disk(name)
            # Several splits are a dict of them.
            table = table[split or "train"] if isinstance(table, dict) else table
        else:
            table = datasets.load_dataset(name, split=split or "train")
    except ConnectionError as error:
        raise HelloIOError.make(
            "E_HTTP", f"cannot fetch `hf:{printable(text)}`: {foreign_text(error)}"
        ) from error
    except Exception as error:
        # What each builder raises is its own business.
        raise UserInputError.make(
            "E_DATA", f"cannot read `hf:{printable(text)}`: {foreign_text(error)}"
        ) from error
    listed = printable(name.rstrip("/").rpartition("/")[2]) or "images"
    return HuggingFaceSource(listed, table, classes, skips_unreadable=skips_unreadable)


def open_parquet(
    root: Path, classes: Sequence[ClassLine] | None = None, *, skips_unreadable: bool = False
) -> HuggingFaceSource:
    """Open a folder of Parquet files, of which the library makes a table of its own in its cache.

    Its files, in the order of their names, are parts of one table.
    """
    datasets = _library()
    files = sorted(str(path) for path in root.iterdir() if path.suffix == ".parquet")
    try:
        table = datasets.Dataset.from_parquet(files)
    except Exception as error:
        raise UserInputError.make(
            "E_DATA", f"cannot read the Parquet files of `{printable(root)}`: {foreign_text(error)}"
        ) from error
    name = printable(root.resolve().name) or "images"
    return HuggingFaceSource(name, table, classes, skips_unreadable=skips_unreadable)


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserInputError.make(
            "E_OPTION", "Hugging Face data sets need `datasets`; `pip install 'hellofmt[hf]'`"
        ) from None
    # Ours say what is going on.
    datasets.disable_progress_bars()
    return datasets


class HuggingFaceSource(Source):
    """Rows of a table of ``datasets``."""

    def __init__(
        self,
        name: str,
        table: Any,
        classes: Sequence[ClassLine] | None = None,
        *,
        skips_unreadable: bool = False,
    ) -> None:
        """See ``Source``."""
        columns = Columns(f"`{name}`", table, needs_class=True)
        labels = columns.labels()
        unknown = np.flatnonzero(labels < 0)
        if unknown.size:
            raise UserInputError.make(
                "E_DATA",
                f"`{name}`: {unknown.size:,} of {len(labels):,} rows have no class, such as row"
                f" {int(unknown[0])}; is this a test split without labels?",
            )
        lines = [ClassLine(key, tuple(key.split(", "))) for key in columns.class_names]
        keys = [line.key for line in lines]
        listing = Listing(
            name,
            keys,
            lines,
            is_numbered=keys == [str(label) for label in range(len(keys))],
            key_of=labels.astype(np.int32),
            # The library's own digest of the files and of what was done to their rows.
            digest=hashlib.sha256(f"{table._fingerprint} {len(labels)}".encode()).hexdigest(),  # noqa: SLF001
        )
        super().__init__(listing, classes, skips_unreadable=skips_unreadable)
        self._columns = columns

    def _read(self, row: int) -> bytes:
        stored = self._columns.stored(row)
        if stored["bytes"] is not None:
            return stored["bytes"]
        return read_file(os.fspath(stored["path"]))

    def _name_of(self, row: int) -> str:
        return f"{self.name}: row {row}"
