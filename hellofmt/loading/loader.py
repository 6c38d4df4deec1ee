"""Batches made where they are used: resident images, views and labels on one device.

``HelloDataset`` in a ``DataLoader`` spends a GPU's time waiting for CPU workers and copies every
view across. A distilled set is small, so here each image is decoded once, when it is first shown,
and kept on the device as uint8; a batch then costs 80 bytes of parameters per view to send, one
kernel for its views, the encoder and one kernel for its labels. That one kernel writes each view
twice, as the student and as the encoder takes it (``Labeler.input_form``), so that nothing passes
over the batch again only to normalise or cast it. The next batch is made on a second
stream while the student uses this one. Sets that do not fit stay in pinned memory, and a batch
sends the images it shows. Decoding everything first was rejected: a large archive behind a URL
would keep a GPU waiting for all of it before the first step.

It computes the same function as every other way: the sampler's order, ``view_table``'s parameters,
and on a CPU the very pixels of ``HelloDataset``, bit for bit, because the same code draws them. A
GPU rounds elsewhere: pixels agree within 1e-5, labels within the tolerance of its precision.

On a CPU there is no thread that works ahead: drawing, labelling and the student's step are bound by
the same cores, and a thread only makes them wait for each other.

What the fused kernel cannot draw (other filters than bilinear; a patch shuffle of images of unequal
size, or of a size that the factor does not divide) is drawn on the CPU and copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import numpy as np
import torch

from hellofmt.errors import UserInputError
from hellofmt.loading.dataset import HelloDataset
from hellofmt.loading.resident import Resident, is_drawable
from hellofmt.loading.sampler import HelloSampler
from hellofmt.loading.views.normalise import normalise_, student_form
from hellofmt.projector.labeler import Labeler
from hellofmt_kernels import ViewForm

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.read.archive import Archive
    from hellofmt.loading.epoch_index import EpochIndex
    from hellofmt.loading.images import ImageSource
    from hellofmt.loading.options import LabelKind
    from hellofmt.projector.base import LoadedBase

__all__ = ["HelloLoader"]


class HelloLoader:
    """Batches of (images, labels) on a device; each ``for`` loop over it is one epoch.

    ::

        loader = hellofmt.HelloLoader("my.hello", batch_size=128, device="cuda")
        for epoch in range(300):
            for images, soft in loader:
                ...

    Images are float32 (N, 3, S, S), normalised by the manifest; what labels are, ``labels`` says as
    for ``HelloDataset``, and ``"none"`` gives the bare views in [0, 1].

    **Several ranks.** World size and rank are torch.distributed's when an epoch begins, and global
    batches are split as ``HelloSampler`` does; do not wrap it in ``DistributedSampler``. Give it to
    Lightning as it is, built before the ``Trainer`` or after: Lightning tells ``sampler`` the
    epoch. Accelerate's ``prepare`` leaves it alone, since it is no ``DataLoader``: give it
    ``device=accelerator.device``. ``state_dict`` and ``load_state_dict`` are torchdata's stateful
    protocol.

    Attributes:
        dataset: where rows, classes and sizes come from.
        sampler: which rows stand in which batch; also ``batch_sampler``.
        batch_size: rows per rank and batch.
        device: where batches are made.
        batches_done: batches handed out in the epoch under way, since the resume if it was resumed.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Archive,
        *,
        batch_size: int,
        device: str | torch.device | None = None,
        images: ImageSource | None = None,
        labels: LabelKind = "soft",
        temperature: float | None = None,
        base: str | Path | LoadedBase | nn.Module | None = None,
        views: Literal["manifest"] | None = "manifest",
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        expect: str | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        channels_last: bool = False,
        resident: int | Literal["auto"] = "auto",
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the archive, check its label function, and make room for the images on the device.

        Args:
            source: path or URL of an archive, the files of a sharded set, or an open archive.
            batch_size: rows per rank and batch, >= 1.
            device: None is the CPU.
            images: data set to be labelled; by default the archive's own images.
            labels: ``"soft"``, ``"logits"``, ``"hard"`` or ``"none"``.
            temperature: T > 0 of soft labels; by default the manifest's.
            base: the base encoder, as for ``HelloDataset``.
            views: ``"manifest"``, or None for whole images.
            seed: 0 <= seed < 2**64, of order and views.
            shuffle: shuffle rows in every epoch.
            drop_last: leave out a short last global batch.
            num_replicas: ranks; by default torch.distributed's.
            rank: this rank; by default torch.distributed's.
            expect: the ``id`` the archive must have.
            dtype: of the image tower; float32 if none. float16 suits OpenAI's weights; the probes
                are checked in it.
            compile: run the image tower through ``torch.compile``.
            channels_last: memory format of the images handed out.
            resident: bytes of images kept on a GPU; ``"auto"`` is half of what is free. More stay
                in pinned memory. Without effect on a CPU.
            storage_options: of a URL, as for ``HelloDataset``.
            cache_dir: folder that keeps what came from a URL, see ``open_archive``.

        Raises:
            OSError: the archive is missing or cannot be opened.
            HelloError: the archive is refused, or cannot give these labels.
            ValueError: a number is out of range, see ``HelloSampler``.
        """
        self.device = torch.device("cpu" if device is None else device)
        self.dataset = HelloDataset(
            source,
            images=images,
            labels=labels,
            temperature=temperature,
            base=base,
            views=views,
            seed=seed,
            expect=expect,
            device=self.device,
            storage_options=storage_options,
            cache_dir=cache_dir,
        )
        self.sampler = HelloSampler(
            self.dataset,
            batch_size=batch_size,
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.batch_size = batch_size
        self.batches_done = 0
        self._channels_last = channels_last
        self._labeler: Labeler | None = None
        if labels in ("soft", "logits"):
            self._labeler = Labeler.from_file(
                self.dataset.file,
                base,
                device=self.device,
                dtype=dtype,
                compile=compile,
            )
        form = ViewForm(is_channels_last=channels_last)
        if labels != "none":
            form = student_form(self.dataset.views, channels_last=channels_last)
        # What the kernel writes: for the student, and for the encoder. Views of another size than
        # the base's are resized, which takes them plain.
        self._forms: tuple[ViewForm, ViewForm | None] = (form, None)
        self._input_form: ViewForm | None = None
        if self._labeler is not None:
            self._input_form = self._labeler.input_form(self.dataset.views.size)
            self._forms = (form, self._input_form or ViewForm())
        self._stream: torch.cuda.Stream | None = None
        self._stored: Resident | None = None
        if self.device.type == "cuda" and is_drawable(self.dataset):
            self._stored = Resident(self.dataset, self.device, resident)

    @property
    def batch_sampler(self) -> HelloSampler:
        """The sampler, by the name that loops look for."""
        return self.sampler

    @property
    def kernel(self) -> dict[str, str]:
        """What makes ``views`` and ``labels`` here: names of algorithms, for reports."""
        made = {"views": "pixels"}
        if self._stored is not None:
            made["views"] = "views" if self._labeler is None else "view_pair"
        if self._labeler is not None:
            made["labels"] = self._labeler.kernel
        return made

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return len(self.sampler)

    def __getitem__(self, index: object) -> NoReturn:
        """There are no items: a ``DataLoader`` over this is a mistake.

        Raises:
            UserInputError: E_OPTION.
        """
        text = "a HelloLoader has no items, it gives batches; expected a loop over it: pass"
        raise UserInputError.make(
            "E_OPTION", text + " HelloDataset(...) to a DataLoader or Trainer"
        )

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one; without it epochs count up from 0.

        Args:
            epoch: 0 <= epoch < 2**32.

        Raises:
            ValueError: ``epoch`` is out of range.
        """
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, the batch handed out last included.

        Returns:
            As ``HelloSampler.state_dict``: strings and integers, equal on all ranks.
        """
        return self.sampler.state_dict(self.batches_done)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next epoch begin where ``state`` was taken.

        Args:
            state: as from ``state_dict``; of any number of ranks with the same global batch.

        Raises:
            StateError: see ``HelloSampler.load_state_dict``.
        """
        self.sampler.load_state_dict(state)
        self.batches_done = 0

    def __iter__(self) -> Iterator[Any]:
        """One epoch, or the rest of a resumed one: (images, labels), or bare views."""
        self.batches_done = 0
        batches = self._overlapped() if self.device.type == "cuda" else self._plain()
        for batch in batches:
            # Counted before it is handed out: inside the loop's body this batch is in use.
            self.batches_done += 1
            yield batch[0] if self.dataset.labels == "none" else (batch[0], batch[1])

    def _plain(self) -> Iterator[list[Tensor]]:
        for indices in self.sampler:
            yield self._make(indices)

    def _overlapped(self) -> Iterator[list[Tensor]]:
        """Each batch is queued on a second stream before the one ahead of it is handed out."""
        if self._stream is None:
            # One for all epochs: what an abandoned one has queued is ahead of the next.
            self._stream = torch.cuda.Stream(self.device)
        stream = self._stream
        # What was built on the first stream is ready before the second one reads it.
        stream.wait_stream(torch.cuda.current_stream(self.device))
        waiting: tuple[list[Tensor], torch.cuda.Event] | None = None
        for indices in self.sampler:
            with torch.cuda.stream(stream):
                made = self._make(indices)
                done = torch.cuda.Event()
                done.record(stream)
            if waiting is not None:
                yield self._received(*waiting)
            waiting = made, done
        if waiting is not None:
            yield self._received(*waiting)

    def _received(self, batch: list[Tensor], done: torch.cuda.Event) -> list[Tensor]:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        for part in batch:
            # Its memory may be used again only after the student has read it.
            part.record_stream(current)
        return batch

    def _make(self, indices: Sequence[int]) -> list[Tensor]:
        rows = np.array(indices, np.int64)
        epochs = np.array([cast("EpochIndex", i).epoch for i in indices], np.int64)
        dataset = self.dataset
        if self._stored is None:
            views, table = dataset.draw(rows, epochs)
            views = views.to(self.device, non_blocking=True)
            labels = self._labels(table, views, is_entered=False)
            if labels is not None:
                normalise_(views, dataset.views)
            images = self._formatted(views)
        else:
            table = dataset.table(rows, epochs)
            images, inputs = self._stored.draw(table, *self._forms)
            labels = self._labels(table, inputs, is_entered=self._input_form is not None)
        return [images] if labels is None else [images, labels]

    def _labels(
        self, table: NDArray[np.int32], views: Tensor | None, *, is_entered: bool
    ) -> Tensor | None:
        """Labels of a batch; its views in [0, 1], or as they enter the image tower."""
        dataset, labeler = self.dataset, self._labeler
        if dataset.labels == "none":
            return None
        if labeler is None or views is None:
            return dataset.hard_labels(table).to(self.device, non_blocking=True)
        x = labeler.embeddings_of_inputs(views) if is_entered else labeler.embeddings(views)
        if dataset.labels == "logits":
            return labeler.logits_of(x)
        return labeler.labels_of(x, dataset.temperature)

    def _formatted(self, views: Tensor) -> Tensor:
        if self._channels_last:
            return views.contiguous(memory_format=torch.channels_last)
        return views
