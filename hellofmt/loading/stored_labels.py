"""Labels of a finite schedule on disk: forms that other programs read, and a reader of them.

The label function makes these superfluous; they serve trainers that know only files, machines that
cannot run the encoder, and comparisons. A label is addressed by (epoch, row), and
its view is a pure function of the same two numbers and the seed, so nothing else has to be stored
to replay a run. A directory holds ``labels.json``, which says what it is, and one of

===============  ===================================================================================
form             files, numbers little-endian; E epochs, N rows, C classes, D features
===============  ===================================================================================
``safetensors``  ``epoch_<e>.safetensors``: ``labels`` F16 [N, C], softmax at ``temperature``;
                 ``views`` I32 [N, 20], the view table, for readers without hellofmt
``topk``         ``epoch_<e>.bin``: N records of int32 row, k x int16 class, k x float16
                 probability, falling: 4 + 4 k bytes, as TinyViT (microsoft/Cream) keeps them. Its
                 int32 is the seed of a view; here the row is, with the seed of ``labels.json``
``fkd``          ``epoch_<e>/batch_<b>.safetensors``: the entries of FKD's and SRe2L's batch files
                 (VILA-Lab/SRe2L) under names: ``coords`` F32 [n, 4] top, left, height, width over
                 the image's sides, ``flip`` U8 [n], ``mix_index`` I64 [n], ``mix_lam`` F32 [n],
                 ``mix_bbox`` I64 [n, 4] x0, y0, x1, y1, ``labels`` F16 [n, C] logits. Theirs are
                 pickles, which run code when read; these are not, so their loader needs
                 its ``torch.load`` replaced. A mix is per sample, its partner a row of the dataset
                 with a crop of its own (``mix_coords``, ``mix_flip``); ``rows`` I64 [n]
``embeddings``   ``epoch_<e>.safetensors``: ``labels`` F16 [N, D], unit embeddings: 2 D bytes
                 instead of 2 C, and any temperature; reading costs the head, not the encoder
``pruned``       ``epoch_<e>.bin``: N records of k x int16 class, k x float16 probability, falling:
                 4 k bytes, of few epochs, which a longer run sees over and over, views and all: its
                 epoch e is stored epoch e mod E. What LPQLD keeps
                 (he-y/soft-label-pruning-for-dataset-distillation); it draws the labels it keeps
                 from those of a long run, which first epochs of random views are as well
===============  ===================================================================================

What ``topk`` and ``pruned`` leave out, 1 less the sum of what they keep, is spread evenly over
the other classes when it is read, as TinyViT does it. Labels come from the dataset's own label
function, or from any other: a rival that stores labels stores its teacher's.

Logits are stored less their row's maximum, which softmax does not see and float16 does: at CLIP's
scale of 100 it would round them by 0.03.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from hellofmt.archive.storage.local_files import read_file
from hellofmt.errors import UserInputError, foreign_text, printable

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.projector.labeler import Labeler

Form = Literal["safetensors", "topk", "fkd", "embeddings", "pruned"]
FORMS: tuple[Form, ...] = ("safetensors", "topk", "fkd", "embeddings", "pruned")

#: ``schema`` of every ``labels.json``.
LABELS_SCHEMA: Final = "hello.labels/1"

# Forms with k classes a label, with probabilities (of one temperature), and that start over.
TOP_K_FORMS: tuple[Form, ...] = ("topk", "pruned")
_SOFT: tuple[Form, ...] = ("safetensors", *TOP_K_FORMS)
CYCLING_FORMS: tuple[Form, ...] = ("pruned",)


def file_name(form: str, epoch: int, batch: int = 0) -> str:
    """Return the name, within its directory, of the file with the labels of an epoch or batch."""
    if form == "fkd":
        return f"epoch_{epoch}/batch_{batch}.safetensors"
    return f"epoch_{epoch}.bin" if form in TOP_K_FORMS else f"epoch_{epoch}.safetensors"


def record_type(form: str, k: int) -> np.dtype[Any]:
    """Return the layout of one label of the forms ``topk`` and ``pruned``, with k classes."""
    row = [("row", "<i4")] if form == "topk" else []
    return np.dtype([*row, ("class", "<i2", (k,)), ("value", "<f2", (k,))])


class StoredLabels:
    """Labels that ``write_labels`` wrote and ``label_source`` opens, by (row, epoch).

    Files are opened for each batch and nothing is kept but their layout, so it works in any worker.

    Attributes:
        form: one of ``FORMS``, see ``hellofmt.loading.stored_labels``.
        archive: ``id`` of the archive whose labels these are.
        seed: seed of the views.
        epochs: E; epochs 0 .. E - 1 are stored.
        cycles: whether a later epoch e is epoch e mod E again, views and labels.
        rows: N, rows of the dataset.
        classes: C.
        label_function: name of the archive's function that made them; None for another function.
        temperature: T of the stored probabilities; for ``fkd`` and ``embeddings`` the default.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Read ``labels.json``.

        Args:
            directory: what ``write_labels`` wrote.

        Raises:
            OSError: the directory or the file is missing.
            UserInputError: E_DATA, the directory does not hold labels.
        """
        self.path = Path(directory)
        try:
            document = json.loads(read_file(self.path / "labels.json"))
        except ValueError:
            document = None
        facts = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
        if facts.get("schema") == LABELS_SCHEMA and facts.get("form") == "teacher":
            self._refuse("labels.json", "a teacher, which labels online; expected stored labels")
        if facts.get("schema") != LABELS_SCHEMA or facts.get("form") not in FORMS:
            self._refuse("labels.json", f"no labels of schema {LABELS_SCHEMA}")
        numbers = ("seed", "epochs", "rows", "classes", "batch_size")
        names = (*numbers, *(("k",) if facts["form"] in TOP_K_FORMS else ()))
        if not all(type(facts.get(name)) is int and facts[name] >= 0 for name in names):
            self._refuse("labels.json", f"expected integers for {', '.join(names)}")
        self.cycles = facts.get("cycles") is True
        if self.cycles and facts["epochs"] < 1:
            self._refuse("labels.json", "epochs; expected at least 1, got 0")
        self.form: Form = facts["form"]
        self.archive = str(facts.get("archive"))
        self.seed: int = facts["seed"]
        self.epochs: int = facts["epochs"]
        self.rows: int = facts["rows"]
        self.classes: int = facts["classes"]
        self.temperature = float(facts.get("temperature") or 1.0)
        self.label_function: object = facts.get("label_function")
        self.is_augmented = facts.get("augmented") is True
        self._k: int = facts.get("k", 0)
        self._batches = -(-self.rows // max(1, facts["batch_size"]))
        self._places: dict[int, NDArray[np.int64]] = {}

    def _error(self, name: str, fact: str) -> UserInputError:
        return UserInputError.make(
            "E_DATA", f"stored labels `{printable(self.path / name)}`: {fact}"
        )

    def _refuse(self, name: str, fact: str) -> NoReturn:
        raise self._error(name, fact)

    def check(self, dataset: Any) -> None:
        """Check that the labels are of the views of a ``HelloDataset``.

        Raises:
            UserInputError: E_DATA, archive, label function, seed, number of images or kind of views
                differs.
        """
        made_by = dataset.label_function if self.label_function is None else self.label_function
        facts = (
            ("archive", self.archive, dataset.id),
            ("label function", made_by, dataset.label_function),
            ("seed", self.seed, dataset.seed),
            ("images", self.rows, len(dataset)),
            ("augmented", self.is_augmented, dataset.is_augmented),
        )
        for name, stored, expected in facts:
            if stored != expected:
                self._refuse("labels.json", f"{name}; expected {expected}, got {printable(stored)}")

    def labels(
        self,
        rows: NDArray[np.integer],
        epochs: NDArray[np.integer],
        *,
        labeler: Labeler | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Read soft labels.

        Args:
            rows: (n,), each 0 <= row < N.
            epochs: (n,), each below ``self.epochs`` unless they cycle.
            labeler: labeler whose head makes labels of ``embeddings``; no other form needs it.
            temperature: T > 0; by default the one they were stored for, and ``safetensors``,
                ``topk`` and ``pruned`` take no other.

        Returns:
            float32 (n, C), within 2**-11 of each stored number; on the CPU unless a labeler made
            them. ``topk`` and ``pruned`` spread the rest evenly over the other classes.

        Raises:
            UserInputError: E_OPTION, epoch or temperature is not stored, or there is no labeler;
                E_DATA, a file is damaged.
            OSError: a file is missing.
        """
        if self.cycles:
            epochs = epochs % self.epochs
        if temperature is None:
            temperature = self.temperature
        if self.form in _SOFT and temperature != self.temperature:
            text = f"the stored labels have {self.temperature:g}, got {temperature:g}"
            raise UserInputError.make("E_OPTION", text, argument="temperature")
        if epochs.size and int(epochs.max()) >= self.epochs:
            text = f"labels of {self.epochs} epochs are stored; expected epochs below that, got"
            advice = f"{self.epochs} views per image show them over and over"
            raise UserInputError.make("E_OPTION", f"{text} {int(epochs.max())}", advice=advice)
        if self.form == "embeddings":
            if labeler is None:
                text = "stored embeddings; expected a labeler, whose head makes labels of them"
                raise UserInputError.make("E_OPTION", text)
            return labeler.labels_of(self._gathered(rows, epochs, None), temperature)
        if self.form in TOP_K_FORMS:
            return self._spread(rows, epochs)
        numbers = self._gathered(rows, epochs, self.classes)
        return torch.softmax(numbers / temperature, dim=1) if self.form == "fkd" else numbers

    def _gathered(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer], width: int | None
    ) -> Tensor:
        """Read stored rows as float32, file by file."""
        files, places = self._files(rows, epochs)
        out: NDArray[np.float32] | None = None
        for name in sorted(set(files)):
            here = np.array([k for k, file in enumerate(files) if file == name])
            part = self._tensor(name, "labels", "F16", 2, places[here])
            if width is not None and part.shape[1] != width:
                self._refuse(name, f"`labels`; expected {width} columns, got {part.shape[1]}")
            if out is None:
                out = np.empty((len(files), part.shape[1]), np.float32)
            out[here] = part
        return torch.from_numpy(np.empty((0, width or 0), np.float32) if out is None else out)

    def _files(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer]
    ) -> tuple[list[str], NDArray[np.int64]]:
        """Return the file of each label and the place within it."""
        if self.form != "fkd":
            return [file_name(self.form, int(e)) for e in epochs], np.asarray(rows, np.int64)
        at = [self._places_of(int(e))[int(r)] for r, e in zip(rows, epochs, strict=True)]
        names = [file_name("fkd", int(e), int(b)) for e, (b, _) in zip(epochs, at, strict=True)]
        return names, np.array([place for _, place in at], np.int64)

    def _places_of(self, epoch: int) -> NDArray[np.int64]:
        """Return batch and place of every row in an epoch, (N, 2)."""
        if epoch not in self._places:
            places = np.full((self.rows, 2), -1, np.int64)
            for batch in range(self._batches):
                name = file_name("fkd", epoch, batch)
                rows = self._tensor(name, "rows", "I64", 1)
                if rows.size and not (rows.min() >= 0 and rows.max() < self.rows):
                    self._refuse(name, f"rows; expected 0 to {self.rows - 1}")
                places[rows, 0], places[rows, 1] = batch, np.arange(rows.size)
            if (places < 0).any():
                self._refuse(f"epoch_{epoch}", "rows are missing")
            self._places[epoch] = places
        return self._places[epoch]

    def _tensor(
        self, name: str, tensor: str, dtype: str, ndim: int, rows: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """Read a tensor of a file, or some of its rows: a whole epoch may be too large."""
        path = self.path / name
        try:
            with safe_open(path, "numpy") as file:
                part = file.get_slice(tensor)
                if part.get_dtype() != dtype or len(part.get_shape()) != ndim:
                    self._refuse(name, f"`{tensor}`; expected {dtype} of rank {ndim}")
                if rows is None:
                    return part[:]
                if rows.size and int(rows.max()) >= part.get_shape()[0]:
                    self._refuse(name, f"`{tensor}`; expected {self.rows} rows")
                return np.concatenate([part[int(row) : int(row) + 1] for row in rows])
        except SafetensorError as error:
            raise self._error(
                name, f"not a whole safetensors file: {foreign_text(error)}"
            ) from error

    def _read(self, name: str, parts: Sequence[tuple[int, NDArray[Any]]]) -> None:
        with (self.path / name).open("rb") as stream:
            for offset, target in parts:
                stream.seek(offset)
                data = stream.read(target.nbytes)
                if len(data) != target.nbytes:
                    self._refuse(name, "the file is cut")
                target[...] = np.frombuffer(data, target.dtype).reshape(target.shape)

    def _spread(self, rows: NDArray[np.integer], epochs: NDArray[np.integer]) -> Tensor:
        """Read top-k records as whole distributions."""
        record = record_type(self.form, self._k)
        read = np.empty((rows.size, 1), record)
        for epoch in np.unique(epochs):
            at = np.nonzero(epochs == epoch)[0]
            parts = [(int(rows[k]) * record.itemsize, read[k]) for k in at]
            self._read(file_name(self.form, int(epoch)), parts)
        records = read[:, 0]
        classes = records["class"].astype(np.int64)
        is_sound = self.form != "topk" or np.array_equal(records["row"], rows)
        if classes.size and not (classes.min() >= 0 and classes.max() < self.classes):
            is_sound = False
        if not is_sound:
            self._refuse(file_name(self.form, int(epochs[0])), "records of other rows or classes")
        values = records["value"].astype(np.float32)
        others = max(1, self.classes - self._k)
        rest = np.maximum(1.0 - values.sum(axis=1, keepdims=True), 0.0) / others
        out = np.broadcast_to(rest, (rows.size, self.classes)).astype(np.float32)
        np.put_along_axis(out, classes, values, axis=1)
        return torch.from_numpy(out)
