"""A ``.hello`` archive as a torch data set: every pass gives new views and their labels.

An item is a pure function of (seed, epoch, row), so the only state is the epoch. A plain
``DataLoader`` never says which epoch it is in, and what is set in the parent process does not reach
persistent workers; so the epoch comes with the index (``HelloSampler`` hands out ints that carry
it) or, for any other sampler, is ``set_epoch``'s value plus the number of times that the row was
served since, counted in memory that all workers share. A counter per row, not one per pass, because
a worker sees only its own batches and cannot tell where a pass begins.

Ranks share no memory, and which rank serves a row changes from pass to pass: alone, two ranks would
count the same numbers and show the same views again. So on W ranks, what rank r serves for the k-th
time (k = 0, 1, ...) is of epoch kW + r, which no other rank counts. Where ``set_epoch`` was called,
the rows are of that epoch on every rank, the same as on one; a row that is repeated meanwhile, to
fill up the ranks' batches, gets an epoch beyond 2**31 that nothing else has.

The counters need no lock. Within a pass a row is in one batch and a batch in one worker, so each
counter has one writer at a time, its store is one aligned word, and the next pass begins after the
batch has come back through a queue. A sampler that draws a row twice at once (with replacement) may
lose a count between two workers: one view repeats, nothing breaks. Workers fetch ahead, so a pass
that is abandoned has counted rows that nobody saw; where that matters, use ``HelloSampler``.

``DataLoader`` calls ``__getitems__`` with a whole batch, which is decoded, viewed and labelled at
once: one call of the encoder for a batch instead of one per image.
"""

from __future__ import annotations

import operator
import os
import warnings
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from hellofmt.archive.format.canonical import decimal_value
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError
from hellofmt.loading.cache import DecodedImages
from hellofmt.loading.division import divider_of
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.loading.images import ArchiveImages, GivenImages
from hellofmt.loading.labelling import FunctionLabeler
from hellofmt.loading.options import (
    AUTO_CACHE_BYTES,
    LabelKind,
    check_function,
    check_keys,
    check_options,
)
from hellofmt.loading.read_ahead import read_ahead
from hellofmt.loading.source import opened
from hellofmt.loading.stored_labels import StoredLabels
from hellofmt.loading.views.normalise import normalise_
from hellofmt.loading.views.pixels import render
from hellofmt.loading.views.table import (
    ViewColumn,
    mixed_labels,
    partners,
    plain_table,
    rows_shown,
    view_table,
)
from hellofmt.loading.worker_errors import errors_arrive_whole
from hellofmt.projector.labeler import Labeler, refuse_fork
from hellofmt.runs.ranks import Place, current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.format.manifest import Views
    from hellofmt.archive.read.archive import Archive
    from hellofmt.loading.images import ImageSource
    from hellofmt.projector.base import LoadedBase

__all__ = ["HelloDataset"]
# Where the epochs of repeated rows begin, half of all.
_REPEATED = 1 << 31


class HelloDataset(Dataset[Any]):
    """Images of an archive with labels made on the fly, map-style: give it to a ``DataLoader``.

    What an item is, by ``labels``:

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
    normalisation. Either happens after the label was made, so a transform that changes what is
    seen also changes what the label is about. ``as_dict=("pixel_values", "labels")`` gives each
    item as a dict, as Hugging Face's ``Trainer`` takes it.

    **Every view new.** Give it to a ``DataLoader``, of one rank or with ``DistributedSampler``, or
    to Accelerate, Lightning or ``Trainer``, which divide the rows by themselves: no two views of a
    run are the same, whatever rank makes them. Which epoch each is of is counted in this process,
    so it begins at 0 after a restart unless ``set_epoch`` is called, and depends on the number of
    ranks unless ``set_epoch`` is called before every pass; ``HelloSampler`` does without both.

    Usable from threads, forked and spawned workers. Each process builds its own labeler when it
    first needs one; forked workers inherit one that exists, so call ``labeler()`` once before, or
    use ``persistent_workers=True``.

    Attributes:
        file: the open archive.
        classes: key of every class, in label order.
        class_to_idx: label of every key.
        views: the manifest's rules for views.
        stored: the labels that are read instead of made, or None.

    Args:
        source: path of an archive, a URL, the files of a sharded set or their pattern (see
            ``open_archive``), or an open archive.
        images: data set to be labelled, see ``ImageSource``; by default the archive's own images.
        labels: what to label with, see above.
        temperature: T > 0 of soft labels; by default the manifest's.
        base: the base encoder, for a base that is neither seeded nor embedded: a path,
            ``"open_clip:NAME:PRETRAINED"``, ``"hf-hub:..."``, ``"local-dir:..."`` or a loaded one.
        transform: called with each view instead of the normalisation.
        target_transform: called with each label.
        views: ``"manifest"``: augmented as the manifest says; None: whole images, resized to
            the views' size, neither flipped nor mixed.
        seed: 0 <= seed < 2**64 of the views.
        expect: the ``id`` the archive must have.
        cache: decoded images kept, bytes; ``"auto"`` is 512 MiB, 0 keeps none. Forked workers share
            the archive's images with this process, also from pass to pass; spawned workers, and all
            where ``images`` are given, keep their own. The first ones stay: evicting would always
            miss in a cyclic scan.
        device: where labels are made in ``__getitems__``; None is the CPU.
        storage_options: of a URL: what fsspec passes to its storage, such as credentials.
        cache_dir: folder that keeps what came from a URL, see ``open_archive``.
        stored: soft labels that ``write_labels`` stored for these views, or their directory,
            instead of making them; only as many epochs as are stored, unless these cycle, and then
            their views as well.
        label_function: logits (N, C) of views (N, 3, S, S), float32 in [0, 1], on ``device``: a
            teacher, say, that makes soft labels or logits in the place of the archive's projector.
        as_dict: keys of image and label, if items are to be dicts.

    Raises:
        OSError: the archive is missing or cannot be opened.
        HelloError: the archive is refused, see ``open_archive``.
        UserInputError: E_DATA, no images, or no projector for the labels asked for; E_OPTION, an
            argument is out of range or something else than it has to be, or a label function for
            other labels or without a temperature.
        TrustError: E_PIN, another archive than ``expect``.
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
        cache: int | Literal["auto"] = "auto",
        device: str | torch.device | None = None,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        stored: str | os.PathLike[str] | StoredLabels | None = None,
        label_function: Callable[[Tensor], Tensor] | None = None,
        as_dict: tuple[str, str] | None = None,
    ) -> None:
        check_options(labels, temperature, views, seed, cache)
        if labels == "none" and target_transform is not None:
            text = "`target_transform` with labels='none'; expected labels to transform"
            raise UserInputError.make("E_OPTION", text)
        if as_dict is not None:
            check_keys(as_dict, labels)
        self.file = opened(source, expect, storage_options, cache_dir)
        self.labels: LabelKind = labels
        self.as_dict = as_dict
        self.transform = transform
        self.target_transform = target_transform
        self.views: Views = self.file.manifest.views
        self.seed = seed
        self.classes: list[str] = list(self.file.classes.keys)
        self.class_to_idx: dict[str, int] = {key: i for i, key in enumerate(self.classes)}
        self.stored: StoredLabels | None = None
        self._temperature = temperature
        self._base = base
        self._is_augmented = views is not None
        self._device = torch.device("cpu" if device is None else device)
        self._budget = AUTO_CACHE_BYTES if cache == "auto" else cache
        head = self.file.manifest.head
        if stored is not None and labels != "soft":
            text = f"`stored` labels; expected labels='soft', got {labels!r}"
            raise UserInputError.make("E_OPTION", text)
        self._function: FunctionLabeler | None = None
        if label_function is not None:
            check_function(labels, is_stored=stored is not None, temperature=self.temperature)
            self._function = FunctionLabeler(label_function, len(self.classes), self._device)
        is_given = stored is not None or label_function is not None
        if labels in ("soft", "logits") and head is UNSET and not is_given:
            text = f"{labels} labels need a projector, which the archive lacks"
            raise UserInputError.make("E_DATA", text + "; it has hard ones")
        if images is None:
            self._images = ArchiveImages(self.file)
        else:
            self._images = GivenImages(images, self.classes, needs_class=labels == "hard")
        # -1: nobody said which epoch it is.
        self._epoch = torch.full((1,), -1, dtype=torch.int64).share_memory_()
        count = self._images.heights.size
        self._served = torch.zeros(count, dtype=torch.int32).share_memory_()
        self._counting_process = os.getpid()
        if stored is not None:
            self.stored = stored if isinstance(stored, StoredLabels) else StoredLabels(stored)
            self.stored.check(self)
        # Of the process that started this one, for workers that are spawned and belong to no group.
        self._parent = Place(0, 1)
        self._has_warned = False
        self._forget()

    def _forget(self) -> None:
        self._cached: dict[int, NDArray[np.uint8]] = {}
        self._cached_bytes = 0
        # Given images have sizes only once they were read, so they have no places to share.
        is_shared = isinstance(self._images, ArchiveImages)
        sizes = self._images.heights, self._images.widths
        self._decoded = DecodedImages(*sizes, self._budget) if is_shared else None
        self._labelers: dict[str, Labeler] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what each process makes for itself."""
        state = {**self.__dict__, "_parent": self._place()}
        for name in ("_cached", "_cached_bytes", "_decoded", "_labelers"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restored, with empty caches."""
        self.__dict__.update(state)
        # No effect in a worker; a copy gets counters that its own workers share.
        self._epoch.share_memory_()
        self._served.share_memory_()
        self._forget()

    def _own_counters(self) -> None:
        """Leave the counters to the process that this one was forked or spawned by.

        Its loaders' workers share them, but ranks must not: each goes through an epoch by itself.
        """
        if self._counting_process != os.getpid() and get_worker_info() is None:
            self._counting_process = os.getpid()
            self._epoch = self._epoch.clone().share_memory_()
            self._served = self._served.clone().share_memory_()

    def __len__(self) -> int:
        """Number of images."""
        # Every sampler asks for it, in the process that starts the workers.
        self._own_counters()
        return self._images.heights.size

    def __repr__(self) -> str:
        return f"<HelloDataset {len(self)} images, labels={self.labels!r}, {self.file!r}>"

    @property
    def id(self) -> str:
        """``sha256:...`` of the archive."""
        return self.file.id

    @property
    def device(self) -> torch.device:
        """Where labels are made in ``__getitems__``."""
        return self._device

    @property
    def is_augmented(self) -> bool:
        """Whether views are made as the manifest says, rather than of whole images."""
        return self._is_augmented

    @property
    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths of the images, (N,) pixels; 0 where an image was not read yet."""
        return self._images.heights, self._images.widths

    @property
    def targets(self) -> list[int]:
        """Hard label of every image.

        Raises:
            UserInputError: E_DATA, the given images have no ``targets`` or one is out of range.
        """
        return self._images.targets()

    @property
    def temperature(self) -> float | None:
        """T of the soft labels, dimensionless: the one asked for, else the stored labels' own.

        Else the manifest's, or None for an archive without a projector.
        """
        head = self.file.manifest.head
        if self._temperature is None and self.stored is not None:
            return self.stored.temperature
        if self._temperature is not None or head is UNSET:
            return self._temperature
        return decimal_value(head.temperature)

    def set_epoch(self, epoch: int) -> None:
        """Start counting from ``epoch``; also reaches persistent workers.

        On several ranks call it on each of them before every pass, or never. Accelerate calls it
        by itself where the sampler has no ``set_epoch``. Without effect on the indices of a
        ``HelloSampler``, which carry their epoch.

        Args:
            epoch: 0 <= epoch < 2**32.

        Raises:
            ValueError: ``epoch`` is out of range.
        """
        if not 0 <= epoch < 1 << 32:
            raise ValueError(f"`epoch`: expected 0 <= epoch < 2**32, got {epoch}")
        self._own_counters()
        self._epoch.fill_(epoch)
        self._served.zero_()

    def labeler(self, device: str | torch.device | None = None) -> Labeler:
        """The labeler of this archive, built and its probes checked at the first call.

        Args:
            device: where it runs; by default the data set's device.

        Returns:
            The same object at every call with the same device.

        Raises:
            BaseModelError: the base is missing or another one.
            SpecError: the projector does not fit its base.
            UserInputError: E_OPTION, no projector, or CUDA in a forked worker.
        """
        where = self._device if device is None else torch.device(device)
        # Before a base is loaded in vain.
        refuse_fork(where, os.getpid())
        if str(where) not in self._labelers:
            made = Labeler.from_file(self.file, self._base, device=where)
            self._labelers[str(where)] = made
        return self._labelers[str(where)]

    def label_source(self) -> Labeler | FunctionLabeler:
        """What makes this data set's soft labels: its label function, else its labeler.

        Raises:
            HelloError: as ``labeler``.
        """
        return self.labeler() if self._function is None else self._function

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """A stored image, from the cache if it is there.

        Args:
            row: 0 <= row < len(self).

        Returns:
            uint8 (H, W, 3), not to be written to.

        Raises:
            HelloError: the image cannot be read or decoded.
        """
        return self.pixels_of([row])[row]

    def pixels_of(self, rows: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Stored images by row, those that are not in the cache read at once.

        Args:
            rows: each 0 <= row < len(self).

        Returns:
            uint8 (H, W, 3) per row, not to be written to.

        Raises:
            HelloError: an image cannot be read or decoded.
        """
        found: dict[int, NDArray[np.uint8]] = {}
        missing: list[int] = []
        for row in rows:
            known = self._cached.get(row) if self._decoded is None else self._decoded.get(row)
            if known is None:
                missing.append(row)
            else:
                found[row] = known
        for row, pixels in zip(missing, self._images.read(missing), strict=True):
            found[row] = self._keep(row, pixels)
        return found

    def _keep(self, row: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels, from the cache if they have a place in it."""
        if self._decoded is not None:
            return self._decoded.put(row, pixels)
        if self._cached_bytes + pixels.nbytes <= self._budget:
            # A view of a larger buffer would keep all of it.
            self._cached[row] = pixels = np.ascontiguousarray(pixels)
            self._cached_bytes += pixels.nbytes
        return pixels

    def table(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer] | int
    ) -> NDArray[np.int32]:
        """View parameters of rows, see ``view_table``; reads images whose size is not known.

        Args:
            rows: (N,), each in 0..len(self) - 1.
            epochs: one, or one per row.

        Returns:
            int32 (N, 20).
        """
        if self.stored is not None and self.stored.cycles:
            epochs = epochs % self.stored.epochs
        sizes = self._images
        if isinstance(sizes, GivenImages):
            needed = np.asarray(rows, np.int64)
            if self._is_augmented:
                other = partners(
                    self.views, seed=self.seed, epochs=epochs, indices=needed, count=len(self)
                )
                needed = np.concatenate([needed, other])
            for row in needed[sizes.heights[needed] == 0].tolist():
                self.pixels(row)
        if not self._is_augmented:
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
        and given images.

        Args:
            batches: lists of ``EpochIndex``.
            part: maps the number of a batch and the batch to what this process draws of it; by
                default all.

        Returns:
            The batches, unchanged.
        """
        stream = self._images.stream if isinstance(self._images, ArchiveImages) else None
        return batches if stream is None else read_ahead(stream, self.table, batches, part)

    def draw(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer] | int
    ) -> tuple[Tensor, NDArray[np.int32]]:
        """Views, as a labeler takes them, and the parameters that say what they show.

        Args:
            rows: (N,), each in 0..len(self) - 1.
            epochs: one, or one per row.

        Returns:
            float32 (N, 3, S, S) in [0, 1] on the CPU, not normalised, and int32 (N, 20).

        Raises:
            HelloError: an image cannot be read or decoded.
        """
        table = self.table(rows, epochs)
        return render(self.pixels_of(rows_shown(table)), table, self.views), table

    def hard_labels(self, table: NDArray[np.int32]) -> Tensor:
        """Hard labels of views.

        Args:
            table: (N, 20) as from ``table`` or ``draw``.

        Returns:
            int64 (N,) where views do not mix, else float32 (N, C): each class's share of the view.

        Raises:
            UserInputError: E_DATA, an image of ``images`` has no class.
        """
        labels = self._images.labels
        unknown = [row for row in rows_shown(table) if labels[row] < 0]
        if unknown:
            text = f"image {unknown[0]} has no class; expected items (image, class)"
            raise UserInputError.make("E_DATA", text + " for labels='hard'")
        if not self._is_augmented or self.views.mix == "none":
            return torch.from_numpy(labels[table[:, ViewColumn.IMAGE]])
        return mixed_labels(table, labels, len(self.classes), size=self.views.size)

    def __getitem__(self, index: int) -> Any:
        """One item; see the class."""
        return self.__getitems__([index])[0]

    @errors_arrive_whole()
    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch, decoded, viewed and labelled at once.

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
        if self.stored is None:
            labels = self._label(views, table)
        else:
            labels = self._replayed(self.stored, rows, epochs)
        if self.transform is not None:
            images = [self.transform(view) for view in views]
        elif self.labels == "none":
            images = list(views)
        else:
            images = list(normalise_(views, self.views))
        if labels is None:
            return images
        if self.target_transform is not None:
            labels = [self.target_transform(label) for label in labels]
        pairs = zip(images, labels, strict=True)
        if self.as_dict is None:
            return list(pairs)
        return [dict(zip(self.as_dict, pair, strict=True)) for pair in pairs]

    def _places(self, indices: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and epoch of each index; counts the rows served."""
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
            epochs[counted] = self._counted(rows[counted].tolist())
        return rows, epochs

    def _place(self) -> Place:
        """This process among the ranks, as it is now; a worker's is that of who started it."""
        place = current()
        return self._parent if place.world == 1 else place

    def _counted(self, rows: list[int]) -> list[int]:
        """Epochs of rows that came without one; see the top of this file."""
        told, place, served = int(self._epoch), self._place(), self._served.numpy()
        if place.world > 1 and told < 0 and self.stored is not None and not self.stored.cycles:
            text = "stored labels on several ranks, of epochs that nobody names; expected a"
            text += " `HelloSampler`, or `set_epoch` before every pass"
            raise UserInputError.make("E_OPTION", text)
        epochs: list[int] = []
        for row in rows:
            times = int(served[row])
            served[row] += 1
            if place.world == 1:
                epochs.append(max(told, 0) + times)
            elif told < 0:
                epochs.append(times * place.world + place.rank)
            elif times == 0 or self.stored is not None:
                epochs.append(told)
            else:
                repetition = (told * place.world + place.rank) * 64 + times
                epochs.append(_REPEATED + repetition % _REPEATED)
        if place.world > 1 and told >= 0 and not self._has_warned:
            self._warn_of_more(int(served.sum()), len(rows), told, place)
        return epochs

    def _warn_of_more(self, served: int, batch: int, told: int, place: Place) -> None:
        """Say that this rank serves more of an epoch than its share, so that views come again."""
        # Beyond an equal share, batches may be filled up.
        share = -(-len(self) // place.world) + batch
        if served > share and divider_of(self) is None:
            self._has_warned = True
            text = (
                f"rank {place.rank} of {place.world} served {served} rows since set_epoch({told}),"
                f" more than its share of {len(self)}, so views come more than once: call set_epoch"
                " before every pass, and divide the rows among the ranks (HelloSampler,"
                " DistributedSampler)"
            )
            warnings.warn(text, UserWarning, stacklevel=2)

    def _replayed(
        self, stored: StoredLabels, rows: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> list[Any]:
        labeler = self.labeler() if stored.form == "embeddings" else None
        temperature = self._temperature
        return list(stored.labels(rows, epochs, labeler=labeler, temperature=temperature).cpu())

    def _label(self, views: Tensor, table: NDArray[np.int32]) -> list[Any] | None:
        if self.labels == "none":
            return None
        if self.labels == "hard":
            hard = self.hard_labels(table)
            return hard.tolist() if hard.ndim == 1 else list(hard)
        labeler = self.label_source()
        if self.labels == "logits":
            return list(labeler.logits(views).cpu())
        # Known: without a projector, a label function was taken only with a temperature.
        return list(labeler.labels(views, cast("float", self.temperature)).cpu())
