"""Batches made where they are used: resident images, views and labels on one device.

``HelloDataset`` in a ``DataLoader`` spends a GPU's time waiting for CPU workers and copies every
view across. A distilled set is small, so here each image is decoded once, when it is first shown,
and kept on the device as uint8; a batch then costs 80 bytes of parameters per view to send, one
kernel for its views, the encoder and one kernel for its labels. A second stream makes the next
batch while the student uses this one. Images that do not fit, or are of unequal sizes, are drawn on
the CPU. Decoding everything first was rejected: a large archive behind a URL would keep a
GPU waiting for all of it before the first step.

It computes the same function as every other way: the sampler's order, ``view_table``'s parameters
and ``BatchMaker``'s pixels.

On a CPU no thread works ahead: drawing, labelling and the student's step are bound by the same
cores, and a thread only makes them wait for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

from hellofmt.archive.format.limits import check_limit
from hellofmt.errors import UserInputError
from hellofmt.loading.arguments import device_of
from hellofmt.loading.batch_maker import BatchMaker
from hellofmt.loading.dataset import HelloDataset
from hellofmt.loading.passes import Passes
from hellofmt.loading.sampler import HelloSampler

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import torch

    from hellofmt.archive.read.archive import Archive


# Options of a data set whose items are taken one by one.
_ITEMS: Final = frozenset({"as_dict", "cache", "stored", "target_transform", "transform"})


class HelloLoader(Passes):
    """Batches of (images, labels) on a device; each ``for`` loop over it is one epoch.

    Images are float32 (N, 3, S, S), normalised by the manifest. ``labels`` is as for
    ``HelloDataset``; ``"none"`` gives the bare views in [0, 1].

    **Several ranks.** World size and rank are torch.distributed's when an epoch begins, and global
    batches are split as ``HelloSampler`` does; do not wrap it in ``DistributedSampler``. Pass it to
    Lightning as it is, built before the ``Trainer`` or after: Lightning tells ``sampler`` the
    epoch. Accelerate's ``prepare`` leaves it alone, since it is no ``DataLoader``: construct it
    with ``device=accelerator.device``. ``state_dict`` and ``load_state_dict`` are torchdata's
    stateful protocol.

    Attributes:
        dataset: gives rows, classes and sizes.
        sampler: says which rows are in which batch; also ``batch_sampler``.
        batch_size: rows per rank and batch.
        device: where batches are made.
        batches_done: batches handed out in the epoch under way, since the resume if it was resumed.

    Example:
        >>> import hellofmt
        >>> loader = hellofmt.HelloLoader("photos.hello", batch_size=40)
        >>> for images, labels in loader:
        ...     print(tuple(images.shape), tuple(labels.shape))
        (40, 3, 16, 16) (40, 3)
        (20, 3, 16, 16) (20, 3)
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Archive,
        *,
        batch_size: int,
        device: str | torch.device | None = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        compile: bool = False,
        channels_last: bool = False,
        **options: Any,
    ) -> None:
        """Open the archive, check its label function, and make room for the images on the device.

        Args:
            source: path or URL of an archive, the files of a sharded set, or an open archive.
            batch_size: rows per rank and batch, >= 1.
            device: device that makes batches; None is the CPU.
            seed: seed of order and views, 0 <= seed < 2**64.
            shuffle: shuffle rows in every epoch.
            drop_last: leave out a short last global batch.
            num_replicas: ranks; by default torch.distributed's.
            rank: this rank; by default torch.distributed's.
            compile: run the image tower through ``torch.compile``.
            channels_last: memory format of the images handed out.
            options: ``images``, ``labels``, ``temperature``, ``base``, ``label_function`` (a name),
                ``ipc``, ``views_per_image``, ``pool``, ``views``, ``expect``, ``limits``,
                ``dtype``, ``storage_options`` and ``cache_dir``, as for ``HelloDataset``.

        Raises:
            OSError: the archive is missing or cannot be opened.
            HelloError: the archive is refused, or cannot give these labels.
            TypeError: there is no such option.
            ValueError: a number is out of range, see ``HelloSampler``.
        """
        self.device = device_of(device)
        others = sorted(_ITEMS & options.keys())
        if others:
            text = "is about single items, which a HelloLoader has not; pass it to HelloDataset"
            raise UserInputError.make("E_OPTION", text, argument=others[0])
        if not isinstance(options.get("label_function"), str | None):
            text = "expected the name of one of the archive's; HelloDataset takes functions"
            raise UserInputError.make("E_OPTION", text, argument="label_function")
        self.dataset = HelloDataset(source, seed=seed, device=self.device, **options)
        pixels = batch_size * self.dataset.views.size**2
        check_limit(self.dataset.file.limits, "batch_pixels", pixels)
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
        self._maker = BatchMaker(self.dataset, compile=compile, channels_last=channels_last)

    @property
    def batch_sampler(self) -> HelloSampler:
        """The sampler, by the name that loops look for."""
        return self.sampler

    @property
    def kernel(self) -> dict[str, str]:
        """Names of the algorithms that make ``views`` and ``labels`` here, for reports."""
        return self._maker.kernel

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return len(self.sampler)

    def __getitem__(self, index: object) -> NoReturn:
        """Refuse: a loader has no items, and a ``DataLoader`` over it is a mistake.

        Raises:
            UserInputError: E_OPTION.
        """
        text = "a HelloLoader has no items, it gives batches; expected a loop over it: pass"
        raise UserInputError.make(
            "E_OPTION", text + " HelloDataset(...) to a DataLoader or Trainer"
        )

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one; unless called, epochs count up from 0.

        Args:
            epoch: 0 <= epoch < 2**32.

        Raises:
            ValueError: ``epoch`` is out of range.
        """
        self.sampler.set_epoch(epoch)

    def _order(self) -> HelloSampler:
        return self.sampler

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one epoch, or of the rest of a resumed one.

        Yields:
            (images, labels), or bare views.
        """
        for batch in self._counted(self._maker.batches(self.sampler)):
            yield batch[0] if self.dataset.labels == "none" else (batch[0], batch[1])
