"""One batch on a device: its views, drawn for the student and for the encoder, and its labels.

On a GPU one kernel draws each view twice, as the student and as the encoder takes it
(``Labeler.input_form``), so that nothing passes over the batch again only to normalise or cast it.

On a CPU these are the very pixels of ``HelloDataset``, bit for bit, because the same code draws
them. A GPU rounds elsewhere: pixels agree within 1e-5, labels within the tolerance of its
precision.

What the fused kernel cannot draw (other filters than bilinear; images of unequal size, or of a size
that the factor of a patch shuffle does not divide; more images than fit) is drawn on the CPU and
copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from hellofmt.archive.format.limits import check_limit
from hellofmt.loading.resident import Resident, is_drawable
from hellofmt.loading.views.normalise import normalise_, student_form
from hellofmt.projector.labeler import Labeler
from hellofmt_kernels import ViewForm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from hellofmt.loading.dataset import HelloDataset
    from hellofmt.loading.epoch_index import EpochIndex
    from hellofmt.loading.labelling import FunctionLabeler


class BatchMaker:
    """Makes batches of a dataset's rows on its device.

    Attributes:
        resident: images on the device, if the fused kernel draws them; else None.
    """

    def __init__(
        self,
        dataset: HelloDataset,
        *,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        """Build the labeler, check its probes, and make room for the images on the device.

        Transforms of ``dataset`` are not applied; the other arguments are those of ``HelloLoader``.
        """
        self._dataset = dataset
        self._device = dataset.device
        self._is_channels_last = channels_last
        self._stream: torch.cuda.Stream | None = None
        self._source: Labeler | FunctionLabeler | None = None
        if dataset.labels in ("soft", "logits") and dataset.stored is None:
            self._source = dataset.label_source(compile=compile)
        if dataset.labels == "none":
            form = ViewForm(is_channels_last=channels_last)
        else:
            form = student_form(dataset.views, channels_last=channels_last)
        # What the kernel writes: for the student, and for the encoder. Views of another size than
        # the base's are resized, which takes them plain.
        self._forms: tuple[ViewForm, ViewForm | None] = (form, None)
        self._embed: Callable[[Tensor], Tensor] | None = None
        if self._source is not None:
            entered = None
            if isinstance(self._source, Labeler):
                entered = self._source.input_form(dataset.views.size)
                if entered is not None:
                    self._embed = self._source.embeddings_of_inputs
            self._forms = (form, entered or ViewForm())
        self.resident: Resident | None = None
        if self._device.type == "cuda" and is_drawable(
            dataset, torch.cuda.mem_get_info(self._device)[0]
        ):
            self.resident = Resident(dataset, self._device)

    @property
    def kernel(self) -> dict[str, str]:
        """Names of the algorithms that make ``views`` and ``labels``, for reports."""
        names = {"views": "pixels"}
        if self.resident is not None:
            names["views"] = "views" if self._forms[1] is None else "view_pair"
        if self._source is not None:
            names["labels"] = self._source.kernel
        return names

    def make(self, indices: Sequence[int]) -> list[Tensor]:
        """Make a batch of ``EpochIndex``: images and labels, or images alone for ``"none"``."""
        rows = np.array(indices, np.int64)
        epochs = np.array([cast("EpochIndex", i).epoch for i in indices], np.int64)
        dataset = self._dataset
        if self.resident is None:
            views, table = dataset.draw(rows, epochs)
            images = views.to(self._device, non_blocking=True)
            labels = dataset.labels_of(rows, epochs, table, images, source=self._source)
            if labels is not None:
                normalise_(images, dataset.views)
            if self._is_channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
        else:
            check_limit(dataset.file.limits, "batch_pixels", len(rows) * dataset.views.size**2)
            table = dataset.table(rows, epochs)
            form, second = self._forms
            if dataset.pool is not None and dataset.pool.has(rows, epochs).all():
                second = None
            images, inputs = self.resident.draw(table, form, second)
            views = images if inputs is None else inputs
            labels = dataset.labels_of(
                rows, epochs, table, views, source=self._source, embed=self._embed
            )
        if labels is None:
            return [images]
        return [images, labels.to(self._device, non_blocking=True)]

    def batches(self, indices: Iterable[Sequence[int]]) -> Iterator[list[Tensor]]:
        """Make batches in order; on a GPU each is queued before the one ahead of it is used."""
        if self._device.type != "cuda":
            yield from map(self.make, indices)
            return
        if self._stream is None:
            # One stream for all epochs: what an abandoned epoch has queued is ahead of the next.
            self._stream = torch.cuda.Stream(self._device)
        stream = self._stream
        # The second stream waits for what was built on the first.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        waiting: tuple[list[Tensor], torch.cuda.Event] | None = None
        for batch in indices:
            with torch.cuda.stream(stream):
                made = self.make(batch)
                done = torch.cuda.Event()
                done.record(stream)
            if waiting is not None:
                yield self._received(*waiting)
            waiting = made, done
        if waiting is not None:
            yield self._received(*waiting)

    def _received(self, batch: list[Tensor], done: torch.cuda.Event) -> list[Tensor]:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for part in batch:
            # Its memory may be used again only after the student has read it.
            part.record_stream(current)
        return batch
