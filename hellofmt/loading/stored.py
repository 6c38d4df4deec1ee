"""Labels of a finite schedule on disk, in forms that other programs read, and read back from them.

The label function makes these superfluous; they are here for trainers that know only files, for
machines that cannot run the encoder, and to compare with. A label is addressed by (epoch, row), and
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
                 its ``torch.load`` replaced. A mix is per sample, its partner a row of the data set
                 with a crop of its own (``mix_coords``, ``mix_flip``); ``rows`` I64 [n]
``embeddings``   ``epoch_<e>.safetensors``: ``labels`` F16 [N, D], unit embeddings: 2 D bytes
                 instead of 2 C, and any temperature; reading costs the head, not the encoder
``pruned``       ``epoch_<e>.bin``: N records of k x int16 class, k x float16 probability, falling:
                 4 k bytes, of few epochs, which a longer run sees over and over, views and all: its
                 epoch e is stored epoch e mod E. What LPQLD keeps
                 (he-y/soft-label-pruning-for-dataset-distillation); it draws the labels it keeps
                 from those of a long run, which first epochs of random views are as well
===============  ===================================================================================

What ``topk`` and ``pruned`` leave out, 1 less the sum of what they keep, is read as spread evenly
over the other classes, as TinyViT does it. Labels come from the data set's own label function, or
from any other: a rival that stores labels stores its teacher's.

Logits are stored less their row's maximum, which softmax does not see and float16 does: at CLIP's
scale of 100 it would round them by 0.03.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from hellofmt.archive.local_files import read_file, temporary_path
from hellofmt.errors import UserInputError, printable, target_exists
from hellofmt.loading.labelling import FunctionLabeler
from hellofmt.loading.sampler import HelloSampler
from hellofmt.loading.views import ViewColumn
from hellofmt.projector.labeler import Labeler

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.loading.dataset import HelloDataset

__all__ = ["FORMS", "LABELS_SCHEMA", "StoredLabels", "new_directory", "write_labels"]

Form = Literal["safetensors", "topk", "fkd", "embeddings", "pruned"]
FORMS: tuple[Form, ...] = ("safetensors", "topk", "fkd", "embeddings", "pruned")

#: ``schema`` of every ``labels.json``.
LABELS_SCHEMA = "hello.labels/1"

# Forms of k classes a label; of probabilities, which belong to one temperature; that start over.
_KEPT: tuple[Form, ...] = ("topk", "pruned")
_SOFT: tuple[Form, ...] = ("safetensors", *_KEPT)
_CYCLES: tuple[Form, ...] = ("pruned",)
_DTYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "u1"}
# int16 indices of the top-k form.
_MOST_CLASSES = 1 << 15


def _name(form: str, epoch: int, batch: int = 0) -> str:
    if form == "fkd":
        return f"epoch_{epoch}/batch_{batch}.safetensors"
    return f"epoch_{epoch}.bin" if form in _KEPT else f"epoch_{epoch}.safetensors"


def _header(entries: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Header of a safetensors file whose tensors follow in the order given."""
    found: dict[str, Any] = {"__metadata__": {"schema": LABELS_SCHEMA}}
    at = 0
    for name, (dtype, shape) in entries.items():
        size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(found, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(array: NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(array, _DTYPES[dtype]).tobytes()


def _fkd_tensors(
    dataset: HelloDataset, rows: NDArray[np.int64], table: NDArray[np.int32], logits: Tensor
) -> dict[str, tuple[str, NDArray[Any]]]:
    """The entries of a batch file, see the module."""
    heights, widths = dataset.sizes
    wide = table.astype(np.int64)

    def coords(first: int) -> NDArray[np.float64]:
        height, width = heights[wide[:, first]], widths[wide[:, first]]
        return wide[:, first + 1 : first + 5] / np.stack([height, width, height, width], axis=1)

    box = wide[:, [ViewColumn.X0, ViewColumn.Y0, ViewColumn.X1, ViewColumn.Y1]]
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = wide[:, ViewColumn.WEIGHT] / 65536 * (1.0 - area / dataset.views.size**2)
    # Largest tensors first would be the library's order; this is the order of FKD's list.
    return {
        "rows": ("I64", rows),
        "mix_index": ("I64", wide[:, ViewColumn.PARTNER_IMAGE]),
        "mix_bbox": ("I64", box),
        "coords": ("F32", coords(ViewColumn.IMAGE)),
        "mix_coords": ("F32", coords(ViewColumn.PARTNER_IMAGE)),
        "mix_lam": ("F32", share),
        "labels": ("F16", _centred(logits)),
        "flip": ("U8", wide[:, ViewColumn.FLIP]),
        "mix_flip": ("U8", wide[:, ViewColumn.PARTNER_FLIP]),
    }


def _centred(logits: Tensor) -> NDArray[np.float32]:
    return (logits - logits.amax(dim=1, keepdim=True)).clamp(min=-60000.0).cpu().numpy()


class _Writer:
    """One schedule being written into a directory."""

    def __init__(
        self,
        target: Path,
        dataset: HelloDataset,
        source: Labeler | FunctionLabeler,
        temperature: float,
        form: Form,
        k: int,
        batch_size: int,
    ) -> None:
        self._target = target
        self._dataset = dataset
        self._source = source
        is_labeler = isinstance(source, Labeler)
        self._embedder = source if is_labeler and form == "embeddings" else None
        self._temperature = temperature
        self._form: Form = form
        self._k = k
        self._batch_size = batch_size
        self._rows = np.arange(len(dataset), dtype=np.int64)

    def epoch(self, epoch: int) -> Iterator[int]:
        """Write one epoch; the rows done after each step."""
        if self._form == "fkd":
            yield from self._batches(epoch)
            return
        count, classes = len(self._dataset), len(self._dataset.classes)
        steps = range(0, count, self._batch_size)
        with (self._target / _name(self._form, epoch)).open("xb") as stream:
            width = classes if self._embedder is None else self._embedder.features
            if self._form not in _KEPT:
                views = self._dataset.table(self._rows, epoch)
                shapes = {"views": ("I32", views.shape), "labels": ("F16", (count, width))}
                stream.write(_header(shapes) + _bytes(views, "I32"))
            for first in steps:
                rows = self._rows[first : first + self._batch_size]
                drawn, _ = self._dataset.draw(rows, epoch)
                stream.write(self._encoded(rows, drawn))
                yield rows.size

    def _encoded(self, rows: NDArray[np.int64], drawn: Tensor) -> bytes:
        if self._embedder is not None:
            return _bytes(self._embedder.embeddings(drawn).float().cpu().numpy(), "F16")
        soft = self._source.labels(drawn, self._temperature).cpu()
        if self._form == "safetensors":
            return _bytes(soft.numpy(), "F16")
        values, classes = soft.topk(self._k, dim=1)
        records = np.empty(rows.size, _record(self._form, self._k))
        if self._form == "topk":
            records["row"] = rows
        records["class"], records["value"] = classes.numpy(), values.numpy()
        return records.tobytes()

    def _batches(self, epoch: int) -> Iterator[int]:
        (self._target / f"epoch_{epoch}").mkdir()
        sampler = HelloSampler(
            self._dataset,
            batch_size=self._batch_size,
            seed=self._dataset.seed,
            num_replicas=1,
            rank=0,
        )
        sampler.set_epoch(epoch)
        for batch, indices in enumerate(sampler):
            rows = np.array(indices, np.int64)
            drawn, table = self._dataset.draw(rows, epoch)
            tensors = _fkd_tensors(self._dataset, rows, table, self._source.logits(drawn))
            with (self._target / _name("fkd", epoch, batch)).open("xb") as stream:
                stream.write(_header({n: (d, a.shape) for n, (d, a) in tensors.items()}))
                for dtype, array in tensors.values():
                    stream.write(_bytes(array, dtype))
            yield rows.size


def _record(form: str, k: int) -> np.dtype[Any]:
    row = [("row", "<i4")] if form == "topk" else []
    return np.dtype([*row, ("class", "<i2", (k,)), ("value", "<f2", (k,))])


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Generator[Path]:
    """A directory to write into, which gets its name at the end, or is gone after an error.

    Args:
        directory: the name; nothing may exist there.

    Yields:
        Where to write.

    Raises:
        HelloIOError: E_TARGET, the directory exists.
    """
    target = Path(directory)
    if os.path.lexists(target):
        raise target_exists(target, can_replace=False)
    temporary = temporary_path(target.absolute())
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_labels(
    dataset: HelloDataset,
    directory: str | os.PathLike[str],
    *,
    epochs: int,
    form: Form = "safetensors",
    k: int = 10,
    batch_size: int = 128,
    label_function: Callable[[Tensor], Tensor] | None = None,
    temperature: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the labels of epochs 0 .. ``epochs`` - 1 of a data set.

    Args:
        dataset: its views and seed; labels are made on its device, by what makes its own.
        directory: new; it gets its name when it is complete.
        epochs: >= 1.
        form: see the module.
        k: classes per label of ``topk`` and ``pruned``, 1 to C.
        batch_size: rows per step, and per file of ``fkd``.
        label_function: makes the labels instead: logits (N, C) of views (N, 3, S, S), float32 in
            [0, 1], on the data set's device. An archive needs no projector then, if the data set
            is opened with ``labels="hard"``.
        temperature: T > 0 of the labels; by default the data set's.
        progress: called with labels done and labels in all.

    Returns:
        Bytes written.

    Raises:
        UserInputError: E_OPTION, a number or ``form`` is out of range, no temperature is known, or
            ``embeddings`` of a label function; E_DATA, no projector; E_TEACHER, the label function
            returns something else than logits.
        HelloIOError: E_TARGET, the directory exists.
        HelloError: an image cannot be read.
    """
    classes, count = len(dataset.classes), len(dataset)
    wanted = dataset.temperature if temperature is None else temperature
    is_known = wanted is not None and math.isfinite(wanted) and wanted > 0
    checks = [
        (form in FORMS, "form", " or ".join(FORMS), form),
        (epochs >= 1, "epochs", "at least 1", epochs),
        (batch_size >= 1, "batch_size", "at least 1", batch_size),
        (1 <= k <= classes or form not in _KEPT, "k", f"1 to {classes}", k),
        (classes < _MOST_CLASSES or form not in _KEPT, "form", "at most 32767 classes", form),
        (is_known, "temperature", "a finite number > 0", wanted),
    ]
    for is_good, name, expected, value in checks:
        if not is_good:
            text = f"`{name}`; expected {expected}, got {printable(value)}"
            raise UserInputError.make("E_OPTION", text)
    if dataset.stored is not None:
        text = "a data set with stored labels; expected one whose labels are made"
        raise UserInputError.make("E_OPTION", text)
    if label_function is None:
        source = dataset.label_source()
    else:
        source = FunctionLabeler(label_function, classes, dataset.device)
    if form == "embeddings" and isinstance(source, FunctionLabeler):
        text = "form `embeddings` of a label function, which has none; expected another form"
        raise UserInputError.make("E_OPTION", text)
    facts = {
        "schema": LABELS_SCHEMA,
        "form": form,
        "archive": dataset.id,
        "made_by": "function" if isinstance(source, FunctionLabeler) else "archive",
        "seed": dataset.seed,
        "epochs": epochs,
        "cycles": form in _CYCLES,
        "rows": count,
        "classes": classes,
        "temperature": wanted,
        "augmented": dataset.is_augmented,
        "batch_size": batch_size,
        **({"k": k} if form in _KEPT else {}),
    }
    with new_directory(directory) as folder:
        # Known: it was checked above.
        at = cast("float", wanted)
        writer = _Writer(folder, dataset, source, at, form, k, batch_size)
        done = 0
        for epoch in range(epochs):
            for rows in writer.epoch(epoch):
                done += rows
                if progress is not None:
                    progress(done, epochs * count)
        (folder / "labels.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="ascii")
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class StoredLabels:
    """Labels that ``write_labels`` wrote, by (row, epoch).

    Files are opened for each batch and nothing is kept but their layout, so it works in any worker.

    Attributes:
        form: see the module.
        archive: ``id`` of the archive whose labels these are.
        seed: of the views.
        epochs: E; epochs 0 .. E - 1 are stored.
        cycles: whether a later epoch e is epoch e mod E again, views and labels.
        rows: N of the data set.
        classes: C.
        temperature: of the stored probabilities; for ``fkd`` and ``embeddings`` the default.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Read ``labels.json``.

        Args:
            directory: as ``write_labels`` left it.

        Raises:
            OSError: there is no such directory or file.
            UserInputError: E_DATA, it does not hold labels.
        """
        self.path = Path(directory)
        try:
            found = json.loads(read_file(self.path / "labels.json"))
        except ValueError:
            found = None
        facts = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        if facts.get("schema") == LABELS_SCHEMA and facts.get("form") == "teacher":
            self._refuse("labels.json", "a teacher, which labels online; expected stored labels")
        if facts.get("schema") != LABELS_SCHEMA or facts.get("form") not in FORMS:
            self._refuse("labels.json", f"no labels of schema {LABELS_SCHEMA}")
        numbers = ("seed", "epochs", "rows", "classes", "batch_size")
        names = (*numbers, *(("k",) if facts["form"] in _KEPT else ()))
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
        self.is_augmented = facts.get("augmented") is True
        self._k: int = facts.get("k", 0)
        self._batches = -(-self.rows // max(1, facts["batch_size"]))
        self._places: dict[int, NDArray[np.int64]] = {}

    def _refuse(self, name: str, fact: str) -> None:
        raise UserInputError.make(
            "E_DATA", f"stored labels `{printable(self.path / name)}`: {fact}"
        )

    def check(self, dataset: HelloDataset) -> None:
        """Refuse labels of other views than the data set's.

        Raises:
            UserInputError: E_DATA, another archive, seed, number of images or kind of views.
        """
        facts = (
            ("archive", self.archive, dataset.id),
            ("seed", self.seed, dataset.seed),
            ("images", self.rows, len(dataset)),
            ("augmented", self.is_augmented, dataset.is_augmented),
        )
        for name, stored, wanted in facts:
            if stored != wanted:
                self._refuse("labels.json", f"{name}; expected {wanted}, got {printable(stored)}")

    def labels(
        self,
        rows: NDArray[np.integer],
        epochs: NDArray[np.integer],
        *,
        labeler: Labeler | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Soft labels.

        Args:
            rows: (n,).
            epochs: (n,), each below ``self.epochs`` unless they cycle.
            labeler: whose head ``embeddings`` need; nothing else does.
            temperature: T > 0; by default the one they were stored for, which ``safetensors``,
                ``topk`` and ``pruned`` cannot leave.

        Returns:
            float32 (n, C); on the CPU unless a labeler made them. Within 2**-11 of each stored
            number; ``topk`` and ``pruned`` spread what is left evenly over the other classes.

        Raises:
            UserInputError: E_OPTION, an epoch or temperature that is not stored, or no labeler;
                E_DATA, a file is damaged.
            OSError: a file is missing.
        """
        if self.cycles:
            epochs = epochs % self.epochs
        wanted = self.temperature if temperature is None else temperature
        if self.form in _SOFT and wanted != self.temperature:
            text = f"`temperature` of stored labels; expected {self.temperature:g}, got {wanted:g}"
            raise UserInputError.make("E_OPTION", text)
        if epochs.size and int(epochs.max()) >= self.epochs:
            text = f"labels of {self.epochs} epochs are stored; expected epochs below that, got"
            raise UserInputError.make("E_OPTION", f"{text} {int(epochs.max())}")
        if self.form == "embeddings":
            if labeler is None:
                text = "stored embeddings; expected a labeler, whose head makes labels of them"
                raise UserInputError.make("E_OPTION", text)
            return labeler.labels_of(self._gathered(rows, epochs, None), wanted)
        if self.form in _KEPT:
            return self._spread(rows, epochs)
        found = self._gathered(rows, epochs, self.classes)
        return torch.softmax(found / wanted, dim=1) if self.form == "fkd" else found

    def _gathered(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer], width: int | None
    ) -> Tensor:
        """Stored rows as float32, file by file."""
        files, places = self._files(rows, epochs)
        out: NDArray[np.float32] | None = None
        for name in sorted(set(files)):
            here = np.array([k for k, file in enumerate(files) if file == name])
            part = self._read_rows(name, places[here], width)
            if out is None:
                out = np.empty((len(files), part.shape[1]), np.float32)
            out[here] = part
        return torch.from_numpy(np.empty((0, width or 0), np.float32) if out is None else out)

    def _files(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer]
    ) -> tuple[list[str], NDArray[np.int64]]:
        """File and place within it of each label."""
        if self.form != "fkd":
            return [_name(self.form, int(e)) for e in epochs], np.asarray(rows, np.int64)
        found = [self._places_of(int(e))[int(r)] for r, e in zip(rows, epochs, strict=True)]
        names = [_name("fkd", int(e), int(b)) for e, (b, _) in zip(epochs, found, strict=True)]
        return names, np.array([place for _, place in found], np.int64)

    def _places_of(self, epoch: int) -> NDArray[np.int64]:
        """(N, 2) batch and place of every row in an epoch."""
        if epoch not in self._places:
            places = np.full((self.rows, 2), -1, np.int64)
            for batch in range(self._batches):
                name = _name("fkd", epoch, batch)
                entries, at = self._layout(name)
                rows = self._array(name, entries, at, "rows", "I64", 1)
                if rows.size and not (rows.min() >= 0 and rows.max() < self.rows):
                    self._refuse(name, f"rows; expected 0 to {self.rows - 1}")
                places[rows, 0], places[rows, 1] = batch, np.arange(rows.size)
            if (places < 0).any():
                self._refuse(f"epoch_{epoch}", "rows are missing")
            self._places[epoch] = places
        return self._places[epoch]

    def _layout(self, name: str) -> tuple[dict[str, Any], int]:
        """Entries of a safetensors file, and where its numbers begin."""
        path = self.path / name
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                found = json.loads(stream.read(length)) if length <= min(size, 1 << 20) else None
            except ValueError:
                found = None
        if not isinstance(found, dict):
            self._refuse(name, "not a safetensors file")
        return cast("dict[str, Any]", found), 8 + length

    def _entry(
        self, name: str, entries: dict[str, Any], tensor: str, dtype: str, ndim: int, at: int
    ) -> tuple[tuple[int, ...], int]:
        """Shape and file offset of a tensor that lies within its file."""
        entry = cast("Any", entries.get(tensor))
        try:
            shape = tuple(int(n) for n in entry["shape"])
            first, end = (int(n) for n in entry["data_offsets"])
            is_sound = entry["dtype"] == dtype and len(shape) == ndim and min(shape) >= 0
            bytes_each = np.dtype(_DTYPES[dtype]).itemsize
            is_sound = is_sound and end - first == math.prod(shape) * bytes_each and first >= 0
            is_sound = is_sound and at + end <= (self.path / name).stat().st_size
        except (KeyError, TypeError, ValueError):
            shape, first, is_sound = (), 0, False
        if not is_sound:
            self._refuse(name, f"`{tensor}`; expected a whole tensor {dtype} of rank {ndim}")
        return shape, at + first

    def _array(
        self, name: str, entries: dict[str, Any], at: int, tensor: str, dtype: str, ndim: int
    ) -> NDArray[Any]:
        shape, first = self._entry(name, entries, tensor, dtype, ndim, at)
        count = math.prod(shape)
        found = np.fromfile(self.path / name, _DTYPES[dtype], count, offset=first)
        return found.reshape(shape)

    def _read_rows(
        self, name: str, places: NDArray[np.int64], width: int | None
    ) -> NDArray[np.float32]:
        """Rows of the tensor ``labels``, read one by one: an epoch may not fit in memory."""
        entries, at = self._layout(name)
        (count, columns), first = self._entry(name, entries, "labels", "F16", 2, at)
        if (width is not None and columns != width) or int(places.max()) >= count:
            self._refuse(name, f"`labels`; expected F16 of {self.rows} x {self.classes}")
        out = np.empty((places.size, columns), "<f2")
        self._read(name, [(first + 2 * columns * int(p), out[k]) for k, p in enumerate(places)])
        return out.astype(np.float32)

    def _read(self, name: str, parts: Sequence[tuple[int, NDArray[Any]]]) -> None:
        with (self.path / name).open("rb") as stream:
            for offset, target in parts:
                stream.seek(offset)
                data = stream.read(target.nbytes)
                if len(data) != target.nbytes:
                    self._refuse(name, "the file is cut")
                target[...] = np.frombuffer(data, target.dtype).reshape(target.shape)

    def _spread(self, rows: NDArray[np.integer], epochs: NDArray[np.integer]) -> Tensor:
        """Top-k records as whole distributions."""
        record = _record(self.form, self._k)
        found = np.empty((rows.size, 1), record)
        for epoch in np.unique(epochs):
            at = np.nonzero(epochs == epoch)[0]
            parts = [(int(rows[k]) * record.itemsize, found[k]) for k in at]
            self._read(_name(self.form, int(epoch)), parts)
        records = found[:, 0]
        classes = records["class"].astype(np.int64)
        is_sound = self.form != "topk" or np.array_equal(records["row"], rows)
        if classes.size and not (classes.min() >= 0 and classes.max() < self.classes):
            is_sound = False
        if not is_sound:
            self._refuse(_name(self.form, int(epochs[0])), "records of other rows or classes")
        values = records["value"].astype(np.float32)
        others = max(1, self.classes - self._k)
        rest = np.maximum(1.0 - values.sum(axis=1, keepdims=True), 0.0) / others
        out = np.broadcast_to(rest, (rows.size, self.classes)).astype(np.float32)
        np.put_along_axis(out, classes, values, axis=1)
        return torch.from_numpy(out)
