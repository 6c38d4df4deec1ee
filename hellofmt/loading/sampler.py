"""Which rows each rank reads in which batch, as a pure function of (seed, epoch).

The order of an epoch is one permutation of all rows, which ``GlobalBatches`` divides.

How many ranks there are is asked when a pass begins: Lightning starts the process group long after
it was given its loaders. Accelerate divides batches itself, so its ``prepare`` gets undivided ones
(``divider_of``); the parts of its ranks are those that they would have here.

A ``DataLoader`` with workers asks for batches well before the caller sees them, so the sampler
cannot know how far training is: ``state_dict`` must be told. (torchdata's ``StatefulDataLoader``
tells nothing, but keeps what the sampler said of each batch until that batch is used.)

Workers learn the epoch from the indices: each is an int that carries it. ``set_epoch`` on a dataset
in the parent process never reaches a persistent worker.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch.utils.data import Sampler

from hellofmt.errors import StateError, UserInputError
from hellofmt.loading.arguments import whole
from hellofmt.loading.division import divider_of
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.loading.global_batches import GlobalBatches
from hellofmt.loading.position import Position
from hellofmt.rng import order
from hellofmt.runs.ranks import Place, current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from hellofmt.loading.dataset import HelloDataset

    Part = Callable[[int, list[int]], list[int]]
    ReadAhead = Callable[[Iterator[list[int]], Part | None], Iterator[list[int]]]


class HelloSampler(Sampler[list[int]]):
    """Batches of rows for one rank: pass it to a ``DataLoader`` as ``batch_sampler``.

    Each pass over it is one epoch: 0, 1, 2, ... unless ``set_epoch`` says otherwise. All ranks get
    equally many batches. The last, short global batch of an epoch is a short batch on one rank; on
    several it is filled up with at most num_replicas - 1 rows from the start of the epoch's order,
    flagged ``is_padding``, so that every rank gets the same number; ``drop_last`` leaves it out.

    **Several ranks.** World size and rank are torch.distributed's when a pass begins. Accelerate:
    pass the ``DataLoader`` to ``prepare``, which divides it itself, and call its ``set_epoch``
    before every pass. Lightning: ``Trainer(use_distributed_sampler=False)``. Do not wrap it in
    ``DistributedSampler``.

    Attributes:
        batch_size: rows per rank and batch.
        drop_last: whether a short last global batch is left out.

    Args:
        dataset: its length and ``id`` are read.
        batch_size: rows per rank and batch, >= 1.
        num_replicas: number of ranks, >= 1; by default torch.distributed's world size, or 1.
        rank: this rank; by default torch.distributed's, or 0.
        shuffle: whether to use the order of ``hellofmt.rng.order`` instead of 0, 1, 2, ...
        seed: seed of the order, 0 <= seed < 2**64, equal on all ranks.
        drop_last: whether to leave out a short last global batch.

    Raises:
        ValueError: an argument is out of range, the dataset is empty, or ``drop_last`` would
            leave no batch at all.
        UserInputError: E_OPTION, ``dataset`` or a number is of a wrong kind.

    Example:
        >>> import hellofmt
        >>> from torch.utils.data import DataLoader
        >>> dataset = hellofmt.HelloDataset("photos.hello")
        >>> sampler = hellofmt.HelloSampler(dataset, batch_size=40)
        >>> [len(labels) for _, labels in DataLoader(dataset, batch_sampler=sampler)]
        [40, 20]
    """

    def __init__(
        self,
        dataset: HelloDataset,
        *,
        batch_size: int,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        _check_dataset(dataset)
        batch_size = whole(batch_size, "batch_size", 1)
        seed = whole(seed, "seed", 0, 64)
        self._batches = GlobalBatches(len(dataset), batch_size, drop_last)
        self._replicas = None if num_replicas is None else whole(num_replicas, "num_replicas", 1)
        self._rank = None if rank is None else whole(rank, "rank", 0)
        self._id = dataset.id
        self._rows = len(dataset)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._is_shuffled = shuffle
        self._seed = seed
        # Epoch and first global batch of the pass under way, or of the next one.
        self._epoch = 0
        self._start = 0
        self._is_started = False
        self._is_loaded = False
        # Rows of a global batch in the pass under way, and in the one whose position was loaded.
        self._pass_batch = 0
        self._loaded_batch = 0
        # Batches of this rank that the pass under way has handed out; None if Accelerate draws
        # those of all ranks.
        self._handed_out: int | None = 0
        # Fetches what the next batches of a remote archive need.
        self._read_ahead: ReadAhead | None = getattr(dataset, "read_ahead", None)
        self._batches.check(self._place().world)

    def _place(self) -> Place:
        """Return this rank, as it is now."""
        place = current()
        if self._replicas is not None:
            place = replace(place, world=self._replicas)
        if self._rank is not None:
            place = replace(place, rank=self._rank)
        if place.rank >= place.world:
            raise ValueError(f"`rank`: expected 0 to {place.world - 1}, got {place.rank}")
        return place

    @property
    def sampler(self) -> Self:
        """The sampler itself, because training loops look here for whom to tell the epoch."""
        return self

    @property
    def dropped(self) -> int:
        """Rows that ``drop_last`` leaves out of every epoch, over all ranks."""
        return self._batches.dropped(self._place().world)

    def __len__(self) -> int:
        """Return the batches of a whole epoch on this rank, even if an epoch is to be resumed."""
        # If Accelerate asks, those of all ranks.
        world = self._place().world if divider_of(self) is None else 1
        return self._batches.count(self._batches.size(world))

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next pass; a loaded position stays if its epoch is the same.

        Args:
            epoch: 0 <= epoch < 2**32.

        Raises:
            ValueError: ``epoch`` is out of range.
        """
        epoch = whole(epoch, "epoch", 0, 32)
        if self._is_loaded and epoch != self._epoch:
            text = f"set_epoch({epoch}) discards the position that was loaded, batch {self._start}"
            text += f" of epoch {self._epoch}; a loop that announces its epochs resumes by"
            warnings.warn(f"{text} announcing that one", UserWarning, stacklevel=2)
        if self._is_started or epoch != self._epoch:
            self._start = 0
        self._is_loaded = False
        self._epoch = epoch
        self._is_started = False
        self._handed_out = 0

    def padding(self, batch: int) -> int:
        """Return how many rows at the end of this rank's batch ``batch`` are padding.

        Args:
            batch: 0 <= batch < len(self), counted from the start of the epoch.

        Returns:
            Rows, 0 in every full batch.
        """
        return sum(self._batches.part(batch, self._place())[1])

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of one epoch, or of the rest of a resumed one.

        This is a generator, because a DataLoader with workers calls ``iter`` twice for its first
        pass: only the first ``next`` begins a pass.

        Yields:
            Rows, as ``EpochIndex``.

        Raises:
            StateError: E_STATE_SHAPE, the position that was loaded is of other global batches.
            UserInputError: E_OPTION, ``num_replicas`` was passed, but Accelerate divides the
                batches.
            ValueError: ``drop_last`` would leave no batch.
        """
        place, divider = self._place(), divider_of(self)
        pass_batch = self._batches.size(place.world)
        if divider is not None:
            if (self._replicas or 1) > 1:
                text = "`num_replicas` of a sampler that Accelerate divides; expected none, got"
                raise UserInputError.make("E_OPTION", f"{text} {self._replicas}")
            pass_batch = self._batches.size(1 if divider.is_split else divider.processes)
            place = Place(0, 1)
        self._batches.check(place.world)
        if self._is_started:
            self._epoch, self._start = self._epoch + 1, 0
        elif self._start and self._loaded_batch != pass_batch:
            self._refuse_batch(self._loaded_batch, pass_batch)
        self._is_started = True
        self._is_loaded = False
        self._pass_batch = pass_batch
        self._handed_out = 0 if divider is None else None
        epoch, start = self._epoch, self._start
        if self._is_shuffled:
            ids = order(self._seed, epoch, self._batches.rows)
        else:
            ids = np.arange(self._batches.rows, dtype=np.int64)
        # Counted in batches as they are cut here, which Accelerate splits or deals out.
        first = start * pass_batch // self._batches.size(place.world)
        batches = self._rows_of(ids, epoch, first, place)
        if self._read_ahead is not None:
            batches = self._read_ahead(batches, None if divider is None else divider.part)
        for count, batch in enumerate(batches, 1):
            # If another pass has begun since, this one is not the pass under way.
            if (epoch, start) == (self._epoch, self._start) and self._handed_out is not None:
                self._handed_out = count
            yield batch

    def _rows_of(
        self, ids: NDArray[np.int64], epoch: int, first: int, place: Place
    ) -> Iterator[list[int]]:
        """Yield this rank's batches from global batch ``first`` on."""
        for batch in range(first, self._batches.count(self._batches.size(place.world))):
            positions, is_padding = self._batches.part(batch, place)
            rows = ids[positions].tolist()
            yield [EpochIndex(r, epoch, p) for r, p in zip(rows, is_padding, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the dataset, a copy of which would fetch what nobody reads."""
        return {**self.__dict__, "_read_ahead": None}

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Return where training stands, small enough for any checkpoint, equal on all ranks.

        Args:
            batches_done: batches that the training loop has *finished* since the pass under way
                began (since the resume, if it was resumed). None takes all that were handed out,
                which is more than the loop has seen if a plain ``DataLoader`` has workers, and
                unknown if Accelerate draws the batches of all ranks.

        Returns:
            Strings and integers only; under 1 KiB as JSON. At the end of an epoch it is the start
            of the next one.

        Raises:
            ValueError: the epoch has fewer batches left, or ``batches_done`` is needed.
        """
        if batches_done is None:
            batches_done = self._handed_out
        if batches_done is None:
            text = "`batches_done`: expected the number of batches that the loop has finished"
            raise ValueError(text + ", for Accelerate draws those of all ranks ahead, got None")
        size = self._global_batch
        done, count = self._start + batches_done, self._batches.count(size)
        if batches_done < 0 or done > count:
            raise ValueError(
                f"`batches_done`: expected 0 to {count - self._start}, got {batches_done}"
            )
        is_over = done == count
        return self._position(self._epoch + is_over, 0 if is_over else done, size).to_state()

    def _position(self, epoch: int, next_batch: int, global_batch: int) -> Position:
        order = "shuffled" if self._is_shuffled else "sequential"
        return Position(self._id, self._rows, self._seed, epoch, next_batch, global_batch, order)

    @property
    def _global_batch(self) -> int:
        """Rows of a global batch of the pass under way, or of the next one."""
        return self._pass_batch if self._is_started else self._batches.size(self._place().world)

    def _refuse_batch(self, loaded: int, mine: int) -> None:
        text = f"`global_batch` differs inside an epoch; expected {mine}, got {loaded}"
        if self._replicas is None and current().world == 1:
            text += "; without a process group there is 1 rank"
        raise StateError.make("E_STATE_SHAPE", text)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next pass begin where ``state`` was taken.

        The number of ranks may have changed if the global batch has not; at the start of an epoch
        the global batch may have changed too.

        Args:
            state: as from ``state_dict``.

        Raises:
            StateError: E_STATE_DIGEST, the state is of another archive; E_STATE_SHAPE, it is not a
                state of this version, or its seed, order or global batch differs.
        """
        loaded = Position.from_state(state)
        size = self._batches.size(self._place().world)
        loaded.check_same_order(self._position(0, 0, size))
        if loaded.next_batch:
            if loaded.global_batch != size:
                self._refuse_batch(loaded.global_batch, size)
            if loaded.next_batch >= self._batches.count(size):
                text = (
                    f"`next_batch` is beyond the epoch; expected 0 to"
                    f" {self._batches.count(size) - 1}, got {loaded.next_batch}"
                )
                raise StateError.make("E_STATE_SHAPE", text)
        self._loaded_batch = loaded.global_batch
        self._is_loaded = True
        self._epoch = loaded.epoch
        self._start = loaded.next_batch
        self._is_started = False
        self._handed_out = 0


def _check_dataset(dataset: object) -> None:
    """Raise E_OPTION for what a sampler cannot read, and say what to pass instead."""
    if isinstance(dataset, Sampler):
        text = f"`dataset` is a {type(dataset).__name__}, as Lightning puts it into batch samplers;"
        text += " expected a HelloDataset: HelloSampler divides rows among ranks by itself, so pass"
        text += (
            " Trainer(use_distributed_sampler=False), or the same to Fabric's setup_dataloaders;"
        )
        text += " for predictions, a DataLoader without it"
        raise UserInputError.make("E_OPTION", text)
    if isinstance(getattr(dataset, "id", None), str) and hasattr(dataset, "__len__"):
        return
    text = f"`dataset`; expected a HelloDataset, got {type(dataset).__name__}"
    if isinstance(dataset, (str, bytes)) or hasattr(dataset, "__fspath__"):
        text += ": pass HelloDataset(PATH)"
    elif hasattr(dataset, "dataset"):
        text += ": pass its `.dataset`, whole"
    raise UserInputError.make("E_OPTION", text)
