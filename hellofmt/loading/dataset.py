"""A ``.hello`` archive as a map-style torch dataset: every pass gives new views and their labels.

An item is a pure function of (seed, epoch, row), so the only state is the epoch. It comes with the
index (``HelloSampler`` hands out ints that carry it) or, with any other sampler, from
``EpochCounter``.

``DataLoader`` calls ``__getitems__`` with a whole batch, which is decoded, viewed and labelled at
once: one call of the encoder for a batch instead of one per image.
"""

from __future__ import annotations

import operator
import os
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from hellofmt.archive.format.canonical import decimal_value
from hellofmt.archive.format.functions import find_function
from hellofmt.archive.format.limits import check_limit
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError
from hellofmt.loading.arguments import check_functions, device_of, positive, whole
from hellofmt.loading.cache import PixelCache
from hellofmt.loading.epoch_counter import EpochCounter
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.loading.images import ArchiveImages, UserImages
from hellofmt.loading.labelling import FunctionLabeler
from hellofmt.loading.options import bytes_of, check_options, check_without_projector
from hellofmt.loading.pool import LabelPool
from hellofmt.loading.read_ahead import read_ahead
from hellofmt.loading.source import opened
from hellofmt.loading.stored_labels import StoredLabels
from hellofmt.loading.views.normalise import normalise_
from hellofmt.loading.views.pixels import render
from hellofmt.loading.views.table import (
    SHOWN_COLUMNS,
    ViewColumn,
    mixed_labels,
    partners,
    plain_table,
    rows_shown,
    view_table,
)
from hellofmt.loading.worker_errors import errors_arrive_whole
from hellofmt.projector.labeler import Labeler, refuse_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.format.manifest import Views
    from hellofmt.archive.read.archive import Archive
    from hellofmt.loading.images import ImageSource
    from hellofmt.loading.options import LabelKind
    from hellofmt.projector.base import LoadedBase

_AUTO_CACHE_BYTES: Final = 512 << 20
_AUTO_POOL_BYTES: Final = 4 << 30


class HelloDataset(Dataset[Any]):
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
            lost 0.8 point or less in the mean (``benchmarks/results/pool-cpu.md``).
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
        name = label_function if isinstance(label_function, str) else None
        function = None if isinstance(label_function, str) else label_function
        check_functions(
            transform=transform, target_transform=target_transform, label_function=function
        )
        check_options(
            labels=labels,
            views=views,
            has_target_transform=target_transform is not None,
            as_dict=as_dict,
            is_stored=stored is not None,
            has_label_function=function is not None,
        )
        cache_bytes = bytes_of(cache, "cache", _AUTO_CACHE_BYTES)
        pool_bytes = bytes_of(pool, "pool", _AUTO_POOL_BYTES)
        self.file = opened(source, expect, storage_options, cache_dir, limits)
        self.label_function: str | None = None
        if self.file.manifest.functions is not UNSET:
            self.label_function = find_function(self.file.manifest, name).name
        elif name is not None:
            find_function(self.file.manifest, name)
        elif function is None and stored is None:
            check_without_projector(labels, self.file.manifest.label_function or "")
        elif labels == "soft" and stored is None and temperature is None:
            text = "the archive has no projector and so no temperature; expected a number > 0"
            raise UserInputError.make("E_OPTION", text, argument="temperature")
        self.labels: LabelKind = labels
        self.seed = seed
        self.transform = transform
        self.target_transform = target_transform
        self.as_dict = as_dict
        self.views: Views = self.file.manifest.views
        self.classes: list[str] = list(self.file.classes.keys)
        self.class_to_idx: dict[str, int] = {key: i for i, key in enumerate(self.classes)}
        self.is_augmented = views is not None
        self.device = device_of(device, is_used=False)
        self._temperature = temperature
        self._base = base
        self.dtype = torch.float32 if dtype is None else dtype
        self._labelers: dict[tuple[str, bool], Labeler] = {}
        self._function: FunctionLabeler | None = None
        if function is not None:
            self._function = FunctionLabeler(function, len(self.classes), self.device)
        if ipc is not None:
            ipc = whole(ipc, "ipc", 1)
        if images is None:
            self._images = ArchiveImages(self.file, ipc)
        elif ipc is not None:
            text = "chooses among the archive's own images; expected none beside `images`"
            raise UserInputError.make("E_OPTION", text, argument="ipc")
        else:
            self._images = UserImages(images, self.classes, needs_class=labels == "hard")
        self._cache = PixelCache(self._images, cache_bytes)
        self._counter = EpochCounter(self._images.heights.size)
        self.stored: StoredLabels | None = None
        if stored is not None:
            self.stored = stored if isinstance(stored, StoredLabels) else StoredLabels(stored)
            self.stored.check(self)
        self.views_per_image = self._cycle(views_per_image)
        self.pool: LabelPool | None = None
        if self.views_per_image and self.stored is None and labels in ("soft", "logits"):
            width = len(self.classes)
            if self._function is None and self.file.manifest.base is not UNSET:
                width = min(width, self.file.manifest.base.arch.embed_dim)
            self.pool = LabelPool(
                len(self._images.heights),
                self.views_per_image,
                width,
                budget=pool_bytes,
                device=self.device,
            )

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

    def __getstate__(self) -> dict[str, Any]:
        """Pickle no labeler: each process builds its own."""
        return {**self.__dict__, "_labelers": {}}

    def __len__(self) -> int:
        """Return the number of images."""
        # Every sampler asks for the length in the process that starts the workers.
        self._counter.own()
        return self._images.heights.size

    def __repr__(self) -> str:
        return f"<HelloDataset {len(self)} images, labels={self.labels!r}, {self.file!r}>"

    @property
    def id(self) -> str:
        """``sha256:...`` of the archive."""
        return self.file.id

    @property
    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths of the images, (N,) pixels; 0 until an image of ``images`` is read."""
        return self._images.heights, self._images.widths

    @property
    def targets(self) -> list[int]:
        """Hard label of every image.

        Raises:
            UserInputError: E_DATA, ``images`` has no ``targets`` or one is out of range.
        """
        return self._images.targets()

    @property
    def temperature(self) -> float | None:
        """T of the soft labels, dimensionless: the argument, the stored labels' or the manifest's.

        None if there is none of these: an archive without a projector.
        """
        if self._temperature is None and self.stored is not None:
            return self.stored.temperature
        if self._temperature is not None or self.label_function is None:
            return self._temperature
        head = find_function(self.file.manifest, self.label_function).head
        return decimal_value(head.temperature)

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
        where = self.device if device is None else device_of(device, is_used=False)
        # Before a base is loaded in vain.
        refuse_fork(where, os.getpid())
        device_of(where)
        key = str(where), compile
        if key not in self._labelers:
            self._labelers[key] = Labeler.from_file(
                self.file,
                self._base,
                label_function=self.label_function,
                device=where,
                dtype=self.dtype,
                compile=compile,
            )
        return self._labelers[key]

    def label_source(self, *, compile: bool = False) -> Labeler | FunctionLabeler:
        """Return what makes the soft labels: the label function, else the labeler."""
        return self.labeler(compile=compile) if self._function is None else self._function

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Return a stored image, from the cache if it is there.

        Args:
            row: 0 <= row < len(self).

        Returns:
            uint8 (H, W, 3), not to be written to.

        Raises:
            HelloError: the image cannot be read or decoded.
        """
        return self.pixels_of([row])[row]

    def pixels_of(self, rows: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Return stored images by row, as ``pixels`` does; those not in the cache are read at once.

        Raises:
            HelloError: an image cannot be read or decoded.
        """
        return self._cache.read(rows)

    def table(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer] | int
    ) -> NDArray[np.int32]:
        """Make the view parameters of rows; reads images whose size is not known yet.

        Args:
            rows: (N,), each in 0..len(self) - 1.
            epochs: one epoch, or one per row.

        Returns:
            int32 (N, 20), see ``view_table``.
        """
        if self.views_per_image is not None:
            epochs = epochs % self.views_per_image
        sizes = self._images
        if isinstance(sizes, UserImages):
            needed = np.asarray(rows, np.int64)
            if self.is_augmented:
                other = partners(
                    self.views, seed=self.seed, epochs=epochs, indices=needed, count=len(self)
                )
                needed = np.concatenate([needed, other])
            for row in needed[sizes.heights[needed] == 0].tolist():
                self.pixels(row)
        if not self.is_augmented:
            return plain_table(rows, sizes.heights, sizes.widths)
        return view_table(
            self.views,
            seed=self.seed,
            epochs=epochs,
            indices=rows,
            heights=sizes.heights,
            widths=sizes.widths,
            count=len(self),
        )

    def read_ahead(
        self,
        batches: Iterator[list[int]],
        part: Callable[[int, list[int]], list[int]] | None = None,
    ) -> Iterator[list[int]]:
        """Yield the same batches while the images of the next 8 are fetched in the background.

        A ``HelloSampler`` passes its batches through here. Nothing is fetched for local archives
        and for ``images``. ``part`` maps the number of a batch and the batch, a list of
        ``EpochIndex``, to what this process draws of it; by default all.
        """
        images = self._images
        if isinstance(images, UserImages) or images.stream is None:
            return batches

        def shown(rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.integer]:
            return images.rows_of(self.table(rows, epochs)[:, SHOWN_COLUMNS].ravel())

        return read_ahead(images.stream, shown, batches, part)

    def draw(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer] | int
    ) -> tuple[Tensor, NDArray[np.int32]]:
        """Draw views as a labeler takes them, and return the parameters that say what they show.

        Args:
            rows: (N,), each in 0..len(self) - 1.
            epochs: one epoch, or one per row.

        Returns:
            float32 (N, 3, S, S) in [0, 1] on the CPU, not normalised, and int32 (N, 20).

        Raises:
            HelloError: an image cannot be read or decoded.
            LimitError: E_LIMIT_BATCH_PIXELS, so many views of this size are above the limits.
        """
        check_limit(self.file.limits, "batch_pixels", len(rows) * self.views.size**2)
        table = self.table(rows, epochs)
        return render(self.pixels_of(rows_shown(table)), table, self.views), table

    def hard_labels(self, table: NDArray[np.int32]) -> Tensor:
        """Return the hard labels of views.

        Args:
            table: (N, 20) as from ``table`` or ``draw``.

        Returns:
            int64 (N,) if views do not mix, else float32 (N, C): each class's share of the view.

        Raises:
            UserInputError: E_DATA, an image of ``images`` has no class.
        """
        labels = self._images.labels
        unknown = [row for row in rows_shown(table) if labels[row] < 0]
        if unknown:
            text = f"image {unknown[0]} has no class; expected items (image, class)"
            raise UserInputError.make("E_DATA", text + " for labels='hard'")
        if not self.is_augmented or self.views.mix == "none":
            return torch.from_numpy(labels[table[:, ViewColumn.IMAGE]])
        return mixed_labels(table, labels, len(self.classes), size=self.views.size)

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
        if self.stored is not None:
            labeler = self.labeler() if self.stored.form == "embeddings" else None
            if self.views_per_image is not None:
                epochs = epochs % self.views_per_image
            return self.stored.labels(rows, epochs, labeler=labeler, temperature=self._temperature)

        # Built when it is needed: the workers of a later pass may find every label in the pool.
        def maker() -> Labeler | FunctionLabeler:
            return self.label_source() if source is None else source

        def embedded(some: Tensor) -> Tensor:
            return maker().embeddings(some) if embed is None else embed(some)

        def finished(x: Tensor) -> Tensor:
            if self.labels == "logits":
                return maker().logits_of(x)
            return maker().labels_of(x, self.temperature)

        if self.pool is None:
            return finished(embedded(views))
        # Embeddings, where they are shorter than labels.
        if self.pool.width < len(self.classes):
            return finished(self.pool.labels(rows, epochs, lambda new: embedded(views[new])))
        kept = self.pool.labels(rows, epochs, lambda new: finished(embedded(views[new])))
        # Only a function of the user's can give such; to look for them, a GPU is waited for.
        if self.labels == "logits" and self._function is not None and kept.isinf().any():
            text = "logits of the label function for `views_per_image`, kept in half precision;"
            raise UserInputError.make("E_TEACHER", text + " expected at most 65,504, got others")
        return kept.float()
