"""A ``.hello`` archive as a map-style torch dataset: every pass gives new views and their labels.

An item is a pure function of (seed, epoch, row), so the only state is the epoch. It comes with the
index (``HelloSampler`` hands out ints that carry it) or, with any other sampler, from
``EpochCounter``.

``DataLoader`` calls ``__getitems__`` with a whole batch, which is decoded, viewed and labelled at
once: one call of the encoder for a batch instead of one per image.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from hellofmt.errors import UserInputError
from hellofmt.loading.arguments import (
    bytes_of,
    check_functions,
    check_options,
    device_of,
    positive,
    whole,
)
from hellofmt.loading.drawing import DrawnViews
from hellofmt.loading.epoch_counter import EpochCounter
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.loading.images import ArchiveImages, UserImages
from hellofmt.loading.label_maker import LabelMaker
from hellofmt.loading.source import opened
from hellofmt.loading.stored_labels import StoredLabels
from hellofmt.loading.views.normalise import normalise_
from hellofmt.loading.worker_errors import errors_arrive_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.read.archive import Archive
    from hellofmt.loading.arguments import LabelKind
    from hellofmt.loading.images import ImageSource
    from hellofmt.loading.labelling import FunctionLabeler
    from hellofmt.loading.pool import LabelPool
    from hellofmt.projector.base import LoadedBase
    from hellofmt.projector.labeler import Labeler

_AUTO_CACHE_BYTES: Final = 512 << 20
_AUTO_POOL_BYTES: Final = 4 << 30


class HelloDataset(DrawnViews, Dataset[Any]):
    """Images of an archive with labels made on the fly; pass it to a ``DataLoader``.

    An item depends on ``labels``:

    =========  =====================================================================
    soft       (image, float32 [C]): softmax(logits / temperature) of the view
    logits     (image, float32 [C]): before the temperature
    hard       (image, class): int where ``views`` do not mix, else float32 [C], each
               class's share of the view's area
    none       the view: float32 [3, S, S] in [0, 1], *not* normalised, for
               ``soft_batches``, which labels it first and normalises it afterwards
    =========  =====================================================================

    The image is the labelled view, float32 [3, S, S], normalised by the manifest's ``views.mean``
    and ``views.std``; or ``transform(view)`` if a transform is given, which then replaces the
    normalisation. Both happen after the label is made, so a transform that changes what is visible
    makes the label wrong. ``as_dict=("pixel_values", "labels")`` gives each
    item as a dict, as Hugging Face's ``Trainer`` takes it.

    **Every view is new,** unless ``views_per_image`` says otherwise. Pass it to a ``DataLoader``,
    on one rank or with ``DistributedSampler``, or to Accelerate, Lightning or ``Trainer``, which
    divide the rows themselves: no two views of a run are the same, whichever rank makes them. This
    process counts the epochs, so they start at 0 after a restart unless you call ``set_epoch``, and
    depend on the number of ranks unless you call it before every pass; ``HelloSampler`` needs
    neither.

    Threads, forked and spawned workers may use it. Each process builds its own labeler when it
    first needs one; forked workers inherit one that exists, so call ``labeler()`` once before, or
    use ``persistent_workers=True``.

    Attributes:
        file: the open archive.
        labels: kind of label, see above.
        label_function: name of the label function of the archive, None if it has none.
        seed: seed of the views.
        transform: see below; likewise ``target_transform`` and ``as_dict``.
        classes: key of every class, in label order.
        class_to_idx: label of every key.
        views: the manifest's rules for views.
        is_augmented: whether views follow them, rather than show whole images.
        device: device on which ``__getitems__`` makes labels.
        stored: the labels that are read instead of made, or None.
        views_per_image: K, see below; of stored labels that start over, their epochs.
        pool: the labels kept of K views an image, or None.
        dtype: precision of the image tower that labels.

    Args:
        source: path of an archive, a URL, the files of a sharded set or their pattern (see
            ``open_archive``), or an open archive.
        images: dataset to label, see ``ImageSource``; by default the archive's own images.
        labels: kind of label, see above.
        temperature: T > 0 of soft labels; by default the manifest's.
        base: the base encoder, for a base that is neither seeded nor embedded: a path,
            ``"open_clip:NAME:PRETRAINED"``, ``"timm:NAME=FILE"``, ``"hf-hub:..."``,
            ``"local-dir:..."`` or a loaded one.
        transform: called with each view instead of the normalisation.
        target_transform: called with each label.
        views: ``"manifest"`` augments as the manifest says; None resizes whole images to the
            views' size and neither flips nor mixes them.
        seed: seed of the views, 0 <= seed < 2**64.
        expect: ``id`` that the archive must have.
        limits: size limits of its files and of a batch; a file raises none itself.
        cache: bytes of decoded images to keep; ``"auto"`` is 512 MiB, 0 keeps none. Forked workers
            share the archive's images with this process, also from pass to pass; spawned workers
            keep their own, and so does every worker if ``images`` are passed. The first images
            stay: evicting them would always miss in a cyclic scan.
        device: device on which ``__getitems__`` makes labels; None is the CPU.
        dtype: precision of the image tower, in which the probes are checked; None is float32. On a
            CPU, bfloat16 is faster if the processor multiplies it (AMX, AVX-512 BF16), else slower.
            On a GPU, float16 suits OpenAI's weights.
        storage_options: options that fsspec passes to the storage of a URL, such as credentials.
        cache_dir: folder that keeps what came from a URL, see ``open_archive``.
        stored: soft labels that ``write_labels`` stored for these views, or their directory, to
            read instead of making labels. There are only as many epochs as are stored, unless
            the labels cycle, and then the views cycle with them.
        views_per_image: K >= 1: epoch e shows view e mod K, and its label, rounded to float16, is
            made once; for embeddings see ``pool``. With ``stored`` labels, K of their epochs are
            seen over and over. None shows a new view in every epoch. With 32 of 300 epochs students
            lost 1.9 points of 45.5 on CIFAR-10 and none on 100 classes of Tiny-ImageNet
            (``benchmarks/results/pool-cpu.md``).
        pool: bytes of labels to keep of K views; ``"auto"`` is 4 GiB, 0 keeps none. A label takes
            2 C bytes, or, with more classes than features, 2 D of its embedding, from which the
            head makes it. What does not fit is made again. Workers share the pool, spawned ones
            on Linux only; each rank has its own. It lies on ``device``.
        label_function: name of one of the archive's label functions, by default the first; or a
            function from views (N, 3, S, S), float32 in [0, 1] on ``device``, to logits (N, C),
            such as a teacher, in their place.
        as_dict: keys of image and label, to get items as dicts.
        ipc: read only the first images of each class of an archive whose images lie in order of
            value. Views and labels are those of an archive that holds these images alone.

    Raises:
        OSError: the archive is missing or cannot be opened.
        HelloError: the archive is refused, see ``open_archive``.
        UserInputError: E_DATA, there are no images, or no projector for such labels; E_OPTION, an
            argument is out of range or of a wrong kind, or a label function comes with other
            labels or without a temperature.
        TrustError: E_PIN, the archive is not ``expect``.

    Example:
        >>> import hellofmt
        >>> dataset = hellofmt.HelloDataset("photos.hello")
        >>> image, label = dataset[0]
        >>> image.shape, label.shape
        (torch.Size([3, 16, 16]), torch.Size([3]))
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Archive,
        *,
        images: ImageSource | None = None,
        labels: LabelKind = "soft",
        temperature: float | None = None,
        base: str | Path | LoadedBase | nn.Module | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        views: Literal["manifest"] | None = "manifest",
        seed: int = 0,
        expect: str | None = None,
        limits: Limits | None = None,
        cache: int | Literal["auto"] = "auto",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        stored: str | os.PathLike[str] | StoredLabels | None = None,
        label_function: str | Callable[[Tensor], Tensor] | None = None,
        as_dict: tuple[str, str] | None = None,
        ipc: int | None = None,
        views_per_image: int | None = None,
        pool: int | Literal["auto"] = "auto",
    ) -> None:
        seed = whole(seed, "seed", 0, 64)
        if temperature is not None:
            temperature = positive(temperature, "temperature")
        is_function = label_function is not None and not isinstance(label_function, str)
        check_functions(
            transform=transform,
            target_transform=target_transform,
            label_function=label_function if is_function else None,
        )
        check_options(
            labels=labels,
            views=views,
            has_target_transform=target_transform is not None,
            as_dict=as_dict,
            is_stored=stored is not None,
            has_label_function=is_function,
        )
        cache_bytes = bytes_of(cache, "cache", _AUTO_CACHE_BYTES)
        pool_bytes = bytes_of(pool, "pool", _AUTO_POOL_BYTES)
        file = opened(source, expect, storage_options, cache_dir, limits)
        self.labels: LabelKind = labels
        self.transform = transform
        self.target_transform = target_transform
        self.as_dict = as_dict
        self.device = device_of(device, is_used=False)
        self.dtype = torch.float32 if dtype is None else dtype
        if stored is not None and not isinstance(stored, StoredLabels):
            stored = StoredLabels(stored)
        self.stored = stored
        self._maker = LabelMaker(
            file,
            labels,
            label_function=label_function,
            stored=stored,
            temperature=temperature,
            base=base,
            device=self.device,
            dtype=self.dtype,
        )
        self.label_function = self._maker.name
        if ipc is not None:
            ipc = whole(ipc, "ipc", 1)
        if images is None:
            given = ArchiveImages(file, ipc)
        elif ipc is not None:
            text = "chooses among the archive's own images; expected none beside `images`"
            raise UserInputError.make("E_OPTION", text, argument="ipc")
        else:
            given = UserImages(images, list(file.classes.keys), needs_class=labels == "hard")
        super().__init__(
            file, given, seed=seed, is_augmented=views is not None, cache_bytes=cache_bytes
        )
        self.class_to_idx: dict[str, int] = {key: i for i, key in enumerate(self.classes)}
        self._counter = EpochCounter(given.heights.size)
        if stored is not None:
            stored.check(self)
        self.views_per_image = self._cycle(views_per_image)
        self.pool: LabelPool | None = None
        if self.views_per_image:
            self.pool = self._maker.make_pool(len(self), self.views_per_image, pool_bytes)

    def _cycle(self, views_per_image: int | None) -> int | None:
        """Return the number of epochs after which views come again, None if they do not."""
        stored = self.stored
        if views_per_image is None:
            return stored.epochs if stored is not None and stored.cycles else None
        cycle = whole(views_per_image, "views_per_image", 1, 32)
        if stored is not None and cycle > stored.epochs:
            text = f"expected at most the {stored.epochs} stored epochs, got {cycle}"
            raise UserInputError.make("E_OPTION", text, argument="views_per_image")
        return cycle

    def __len__(self) -> int:
        """Return the number of images."""
        # Every sampler asks for the length in the process that starts the workers.
        self._counter.own()
        return super().__len__()

    def __repr__(self) -> str:
        return f"<HelloDataset {len(self)} images, labels={self.labels!r}, {self.file!r}>"

    @property
    def id(self) -> str:
        """``sha256:...`` of the archive."""
        return self.file.id

    @property
    def temperature(self) -> float | None:
        """Dimensionless T of the soft labels; the argument, the stored labels' or the manifest's.

        None if there is none of these: an archive without a projector.
        """
        return self._maker.temperature

    def set_epoch(self, epoch: int) -> None:
        """Start counting from ``epoch``; also reaches persistent workers.

        On several ranks call it on each of them before every pass, or never. Accelerate calls it
        itself if the sampler has no ``set_epoch``. It does not change the indices of a
        ``HelloSampler``, which carry their epoch.

        Args:
            epoch: 0 <= epoch < 2**32.

        Raises:
            ValueError: ``epoch`` is out of range.
        """
        self._counter.set_epoch(epoch)

    def labeler(
        self, device: str | torch.device | None = None, *, compile: bool = False
    ) -> Labeler:
        """Return the labeler of this archive; the first call builds it and checks its probes.

        Args:
            device: device of the labeler; by default the dataset's.
            compile: run the image tower through ``torch.compile``.

        Returns:
            The same object at every call with the same arguments.

        Raises:
            BaseModelError: the base is missing or is not the one that the archive pins.
            SpecError: the projector does not fit its base.
            UserInputError: E_OPTION, no projector, or CUDA in a forked worker.
        """
        return self._maker.labeler(device, compile=compile)

    def label_source(self, *, compile: bool = False) -> Labeler | FunctionLabeler:
        """Return what makes the soft labels: the label function, else the labeler."""
        return self._maker.source(compile=compile)

    def __getitem__(self, index: int) -> Any:
        """Make one item; see the class."""
        return self.__getitems__([index])[0]

    @errors_arrive_whole()
    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Make the items of a batch, decoded, viewed and labelled at once.

        Args:
            indices: rows, negative ones counted from the end; an ``EpochIndex`` fixes its epoch.

        Returns:
            One item per index; see the class.

        Raises:
            IndexError: a row is out of range.
            HelloError: an image or the labels cannot be made.
        """
        rows, epochs = self._places(indices)
        views, table = self.draw(rows, epochs)
        made = self.labels_of(rows, epochs, table, views)
        if self.transform is not None:
            images = [self.transform(view) for view in views]
        elif self.labels == "none":
            images = list(views)
        else:
            images = list(normalise_(views, self.views))
        if made is None:
            return images
        made = made.cpu()
        labels = list(made) if made.is_floating_point() else made.tolist()
        if self.target_transform is not None:
            labels = [self.target_transform(label) for label in labels]
        pairs = zip(images, labels, strict=True)
        if self.as_dict is None:
            return list(pairs)
        return [dict(zip(self.as_dict, pair, strict=True)) for pair in pairs]

    def _places(self, indices: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and epoch of each index, and count the rows that come without an epoch."""
        count = len(self)
        rows, epochs = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        counted: list[int] = []
        for k, index in enumerate(indices):
            if isinstance(index, (list, tuple)):
                text = "an index that is a list of indices; expected one row: pass a `HelloSampler`"
                text += " to the DataLoader as `batch_sampler`, not as `sampler`"
                raise UserInputError.make("E_OPTION", text)
            row = operator.index(index)
            if not -count <= row < count:
                raise IndexError(f"index {row} is out of range; expected {-count} to {count - 1}")
            rows[k] = row % count
            if isinstance(index, EpochIndex):
                epochs[k] = index.epoch
            else:
                counted.append(k)
        if counted:
            is_finite = self.stored is not None and self.views_per_image is None
            epochs[counted] = self._counter.epochs(
                rows[counted].tolist(), self, is_finite=is_finite, cycle=self.views_per_image
            )
        return rows, epochs

    def labels_of(
        self,
        rows: NDArray[np.int64],
        epochs: NDArray[np.int64],
        table: NDArray[np.int32],
        views: Tensor,
        *,
        source: Labeler | FunctionLabeler | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor | None:
        """Return the labels of a batch: read, taken from the pool, or made on the source's device.

        Args:
            rows: (N,), each in 0..len(self) - 1.
            epochs: (N,).
            table: (N, 20), from ``table``.
            views: the views of the table, as ``embed`` takes them; not looked at if they are known.
            source: what makes labels; by default ``label_source()``.
            embed: maps views to embeddings; by default the source's method for views in [0, 1].

        Returns:
            (N, C) float32, or int64 (N,) of hard labels of views that do not mix; None for
            ``"none"``.

        Raises:
            HelloError: they cannot be read or made.
        """
        if self.labels == "none":
            return None
        if self.labels == "hard":
            return self.hard_labels(table)
        if self.views_per_image is not None:
            epochs = epochs % self.views_per_image
        return self._maker.labels(rows, epochs, views, source, embed)
