"""Write labels of a finite schedule, in the forms that ``stored_labels`` describes and reads."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from hellofmt.archive.storage.local_files import new_directory
from hellofmt.errors import UserInputError, printable
from hellofmt.loading.arguments import positive, whole
from hellofmt.loading.labelling import FunctionLabeler
from hellofmt.loading.sampler import HelloSampler
from hellofmt.loading.stored_labels import (
    CYCLING_FORMS,
    FORMS,
    LABELS_SCHEMA,
    TOP_K_FORMS,
    Form,
    file_name,
    record_type,
)
from hellofmt.loading.views.table import ViewColumn
from hellofmt.runs.workers import made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.loading.dataset import HelloDataset
    from hellofmt.projector.labeler import Labeler

    _Drawn: TypeAlias = tuple[NDArray[np.int64], Tensor, NDArray[np.int32]]

# int16 indices of the top-k form.
_MOST_CLASSES = 1 << 15


def write_labels(
    dataset: HelloDataset,
    directory: str | os.PathLike[str],
    *,
    epochs: int,
    form: Form = "safetensors",
    k: int = 10,
    batch_size: int = 128,
    workers: int = 0,
    label_function: Callable[[Tensor], Tensor] | None = None,
    temperature: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the labels of epochs 0 .. ``epochs`` - 1 of a dataset.

    Args:
        dataset: dataset with the views and the seed; what makes its own labels makes these, on its
            device.
        directory: new directory, which gets its name when it is complete.
        epochs: number of epochs, >= 1.
        form: one of ``FORMS``, see ``hellofmt.loading.stored_labels``.
        k: classes per label of ``topk`` and ``pruned``, 1 to C.
        batch_size: rows per step, and per file of ``fkd``.
        workers: number of processes that read images and draw views ahead, >= 0; any number gives
            the same labels.
        label_function: function that makes the labels instead: from views (N, 3, S, S), float32 in
            [0, 1] on the dataset's device, to logits (N, C). The archive then needs no projector,
            if the dataset is opened with ``labels="hard"``.
        temperature: T > 0 of the labels; by default the dataset's.
        progress: called with labels done and labels in all.

    Returns:
        Bytes written.

    Raises:
        UserInputError: E_OPTION, ``dataset`` is of a wrong kind, a number or ``form`` is out of
            range, no temperature is known, or a label function has no ``embeddings``; E_DATA, the
            archive has no projector; E_TEACHER, the label function does not return logits.
        HelloIOError: E_TARGET, the directory exists.
        OSError: it cannot be written, for instance because the disk is full.
        HelloError: an image cannot be read.
        RuntimeError: a worker was killed.

    Example:
        >>> import hellofmt
        >>> size = write_labels(hellofmt.HelloDataset("photos.hello"), "labels", epochs=2)
        >>> from hellofmt.teacher import label_source
        >>> stored = label_source("labels")
        >>> stored.form, stored.epochs
        ('safetensors', 2)
        >>> dataset = hellofmt.HelloDataset("photos.hello", stored=stored)
    """
    if not hasattr(dataset, "label_source"):
        text = f"`dataset`; expected a HelloDataset, got {type(dataset).__name__}"
        raise UserInputError.make("E_OPTION", text + ": pass HelloDataset(PATH)")
    classes, count = len(dataset.classes), len(dataset)
    if temperature is None:
        temperature = dataset.temperature
    epochs, batch_size = whole(epochs, "epochs", 1), whole(batch_size, "batch_size", 1)
    workers = whole(workers, "workers", 0)
    temperature, k = positive(temperature, "temperature"), whole(k, "k", 0)
    cycle = dataset.views_per_image or epochs
    checks = [
        (epochs <= cycle, "epochs", f"at most {cycle}, the data set's `views_per_image`", epochs),
        (form in FORMS, "form", " or ".join(FORMS), form),
        (1 <= k <= classes or form not in TOP_K_FORMS, "k", f"1 to {classes}", k),
        (classes < _MOST_CLASSES or form not in TOP_K_FORMS, "form", "at most 32767 classes", form),
    ]
    for is_good, name, expected, value in checks:
        if not is_good:
            text = f"expected {expected}, got {printable(value)}"
            raise UserInputError.make("E_OPTION", text, argument=name)
    if dataset.stored is not None:
        text = "a data set with stored labels; expected one whose labels are made"
        raise UserInputError.make("E_OPTION", text)
    if label_function is None:
        source = dataset.label_source()
    else:
        source = FunctionLabeler(label_function, classes, dataset.device)
    is_function = isinstance(source, FunctionLabeler)
    if form == "embeddings" and is_function:
        text = "form `embeddings` of a label function, which has none; expected another form"
        raise UserInputError.make("E_OPTION", text)
    facts = {
        "schema": LABELS_SCHEMA,
        "form": form,
        "archive": dataset.id,
        "label_function": None if is_function else dataset.label_function,
        "label_dtype": None if is_function else str(dataset.dtype).removeprefix("torch."),
        "seed": dataset.seed,
        "epochs": epochs,
        "cycles": form in CYCLING_FORMS,
        "rows": count,
        "classes": classes,
        "temperature": temperature,
        "augmented": dataset.is_augmented,
        "batch_size": batch_size,
        **({"k": k} if form in TOP_K_FORMS else {}),
    }
    with new_directory(directory) as folder:
        writer = _Writer(folder, dataset, source, temperature, form, k, batch_size)
        schedule = (step for epoch in range(epochs) for step in writer.steps(epoch))
        drawn = made(partial(_drawn, dataset), schedule, workers=workers)
        done = 0
        for epoch in range(epochs):
            for rows in writer.epoch(epoch, islice(drawn, -(-count // batch_size))):
                done += rows
                if progress is not None:
                    progress(done, epochs * count)
        (folder / "labels.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="ascii")
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class _Writer:
    """Writer of one schedule into a directory."""

    target: Path
    dataset: HelloDataset
    source: Labeler | FunctionLabeler
    temperature: float
    form: Form
    k: int
    batch_size: int

    def steps(self, epoch: int) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Yield the rows of each step, and the epoch."""
        count = len(self.dataset)
        if self.form != "fkd":
            for first in range(0, count, self.batch_size):
                last = min(first + self.batch_size, count)
                yield np.arange(first, last, dtype=np.int64), epoch
            return
        sampler = HelloSampler(
            self.dataset, batch_size=self.batch_size, seed=self.dataset.seed, num_replicas=1, rank=0
        )
        sampler.set_epoch(epoch)
        yield from ((np.array(indices, np.int64), epoch) for indices in sampler)

    def epoch(self, epoch: int, drawn: Iterator[_Drawn]) -> Iterator[int]:
        """Write one epoch of what was drawn; yield the number of rows done after each step."""
        if self.form == "fkd":
            yield from self._batches(epoch, drawn)
            return
        path = self.target / file_name(self.form, epoch)
        if self.form in TOP_K_FORMS:
            with path.open("xb") as stream:
                for rows, labels in self._labelled(drawn):
                    stream.write(self._records(rows, labels).tobytes())
                    yield rows.size
            return
        # An epoch may not fit in memory, so a file gathers it, from which the library writes.
        gathered = path.with_suffix(".gathered")
        # Written, not mapped: a mapped page that finds the disk full ends the process.
        with gathered.open("xb") as stream:
            for rows, labels in self._labelled(drawn):
                stream.write(labels.float().cpu().numpy().astype("<f2").tobytes())
                yield rows.size
        rows = np.arange(len(self.dataset), dtype=np.int64)
        whole = np.memmap(gathered, "<f2", "r").reshape(rows.size, -1)
        _save({"views": self.dataset.table(rows, epoch), "labels": whole}, path)
        del whole
        gathered.unlink()

    def _labelled(self, drawn: Iterator[_Drawn]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield rows in order, with their labels or embeddings."""
        for rows, views, _ in drawn:
            if self.form == "embeddings":
                yield rows, self.source.embeddings(views)
            else:
                yield rows, self.source.labels(views, self.temperature)

    def _records(self, rows: NDArray[np.int64], labels: Tensor) -> NDArray[Any]:
        values, classes = labels.cpu().topk(self.k, dim=1)
        records = np.empty(rows.size, record_type(self.form, self.k))
        if self.form == "topk":
            records["row"] = rows
        records["class"], records["value"] = classes.numpy(), values.numpy()
        return records

    def _batches(self, epoch: int, drawn: Iterator[_Drawn]) -> Iterator[int]:
        (self.target / f"epoch_{epoch}").mkdir()
        for batch, (rows, views, table) in enumerate(drawn):
            tensors = _fkd_tensors(self.dataset, rows, table, self.source.logits(views))
            _save(tensors, self.target / file_name("fkd", epoch, batch))
            yield rows.size


def _drawn(dataset: HelloDataset, step: tuple[NDArray[np.int64], int]) -> _Drawn:
    """Rows, their views in an epoch, and the parameters of these."""
    return step[0], *dataset.draw(*step)


def _save(tensors: dict[str, NDArray[Any]], path: Path) -> None:
    """Write a file of tensors; safetensors has an error of its own if it cannot."""
    try:
        save_file(tensors, path, {"schema": LABELS_SCHEMA})
    except SafetensorError as error:
        number = re.search(r"\(os error ([0-9]+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), os.fspath(path)) from error


def _fkd_tensors(
    dataset: HelloDataset, rows: NDArray[np.int64], table: NDArray[np.int32], logits: Tensor
) -> dict[str, NDArray[Any]]:
    """Make the entries of a batch file of ``fkd``."""
    heights, widths = dataset.sizes
    wide = table.astype(np.int64)

    def coords(first: int) -> NDArray[np.float64]:
        height, width = heights[wide[:, first]], widths[wide[:, first]]
        return wide[:, first + 1 : first + 5] / np.stack([height, width, height, width], axis=1)

    box = wide[:, [ViewColumn.X0, ViewColumn.Y0, ViewColumn.X1, ViewColumn.Y1]]
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = wide[:, ViewColumn.WEIGHT] / 65536 * (1.0 - area / dataset.views.size**2)
    centred = logits - logits.amax(dim=1, keepdim=True)
    tensors: dict[str, tuple[str, NDArray[Any]]] = {
        "rows": ("<i8", rows),
        "mix_index": ("<i8", wide[:, ViewColumn.PARTNER_IMAGE]),
        "mix_bbox": ("<i8", box),
        "coords": ("<f4", coords(ViewColumn.IMAGE)),
        "mix_coords": ("<f4", coords(ViewColumn.PARTNER_IMAGE)),
        "mix_lam": ("<f4", share),
        "labels": ("<f2", centred.clamp(min=-60000.0).cpu().numpy()),
        "flip": ("u1", wide[:, ViewColumn.FLIP]),
        "mix_flip": ("u1", wide[:, ViewColumn.PARTNER_FLIP]),
    }
    return {name: np.ascontiguousarray(array, dtype) for name, (dtype, array) in tensors.items()}
