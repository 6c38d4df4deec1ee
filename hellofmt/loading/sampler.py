"""Which rows each rank reads in which batch, as a pure function of (seed, epoch).

The order of an epoch is one permutation P of all rows. Global batch b takes the positions
[bG, (b + 1)G), with G = batch_size * num_replicas, and only then is it cut into one contiguous part
per rank. So the same G gives the same global batches on any number of ranks, and a position in an
epoch is one number, ``next_batch``. Splitting ranks first, as torch's ``DistributedSampler`` does,
makes the batches a function of the number of ranks.

How many ranks there are is asked when a pass begins: Lightning starts the process group long after
it was given its loaders. Accelerate divides batches itself, so its ``prepare`` gets undivided ones
(``hellofmt.loading.division``); the parts of its ranks are those that they would have here.

A ``DataLoader`` with workers asks for batches well before the caller sees them, so the sampler
cannot know how far training is: ``state_dict`` must be told. (torchdata's ``StatefulDataLoader``
tells nothing, but keeps what the sampler said of each batch until that batch is used.)

Workers learn the epoch from the indices: each is an int that carries it. ``set_epoch`` on a data
set in the parent process never reaches a persistent worker.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from torch.utils.data import Sampler

from hellofmt.errors import StateError, UserInputError, printable
from hellofmt.loading.division import divider_of
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.rng import order
from hellofmt.runs.ranks import Place, current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    Part = Callable[[int, list[int]], list[int]]
    ReadAhead = Callable[[Iterator[list[int]], Part | None], Iterator[list[int]]]

__all__ = ["HelloSampler"]
_STATE_VERSION = 1
_STATE_KEYS = ("v", "id", "seed", "epoch", "next_batch", "global_batch", "order")


class Identified(Protocol):
    """Rows that name themselves, as a ``HelloDataset`` does."""

    @property
    def id(self) -> str:
        """Identity of the archive."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...


class HelloSampler(Sampler[list[int]]):
    """Batches of rows for one rank: pass it to a ``DataLoader`` as ``batch_sampler``.

    Each pass over it is one epoch: 0, 1, 2, ... unless ``set_epoch`` says otherwise. All ranks give
    equally many batches. The last, short global batch of an epoch is, on one rank, a short batch;
    on several it is filled up with at most num_replicas - 1 rows from the start of the epoch's
    order, flagged ``is_padding``, so that every rank gets the same number; or it is left out
    (``drop_last``).

    **Several ranks.** World size and rank are torch.distributed's when a pass begins. Accelerate:
    pass the ``DataLoader`` to ``prepare``, which divides it by itself, and call its ``set_epoch``
    before every pass. Lightning: ``Trainer(use_distributed_sampler=False)``. Do not wrap it in
    ``DistributedSampler``.

    Attributes:
        batch_size: rows per rank and batch.
        drop_last: whether a short last global batch is left out.

    Args:
        dataset: its length and ``id`` are read.
        batch_size: rows per rank and batch, >= 1.
        num_replicas: ranks, >= 1; by default torch.distributed's world size, or 1.
        rank: this rank; by default torch.distributed's, or 0.
        shuffle: the order of ``hellofmt.rng.order``, else 0, 1, 2, ...
        seed: 0 <= seed < 2**64, equal on all ranks.
        drop_last: leave out a short last global batch.

    Raises:
        ValueError: an argument is out of range, the data set is empty, or ``drop_last`` would
            leave no batch at all.
        UserInputError: E_OPTION, ``dataset`` is something else.
    """

    def __init__(
        self,
        dataset: Identified,
        *,
        batch_size: int,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        _check_dataset(dataset)
        if batch_size < 1:
            raise ValueError(f"`batch_size`: expected at least 1, got {batch_size}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"`seed`: expected 0 <= seed < 2**64, got {seed}")
        self._replicas, self._rank = num_replicas, rank
        self._rows = len(dataset)
        self._id = dataset.id
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._is_shuffled = shuffle
        self._seed = seed
        # The pass under way, or about to start if none is: its epoch and first global batch.
        self._epoch = 0
        self._start = 0
        self._is_started = False
        self._is_loaded = False
        # Rows of a global batch in the pass under way; and in the one whose position was loaded.
        self._pass_batch = 0
        self._loaded_batch = 0
        # Batches of this rank that the pass under way has handed out; None where they are others'.
        self._handed_out: int | None = 0
        # What a data set over a network has, to fetch what the next batches need.
        self._read_ahead: ReadAhead | None = getattr(dataset, "read_ahead", None)
        if self._rows == 0:
            raise ValueError("`dataset`: expected at least 1 row, got 0")
        self._check_drop_last(self._place())

    def _place(self) -> Place:
        """This rank, as it is now."""
        place = current()
        if self._replicas is not None:
            place = replace(place, world=self._replicas)
        if self._rank is not None:
            place = replace(place, rank=self._rank)
        if place.world < 1:
            raise ValueError(f"`num_replicas`: expected at least 1, got {place.world}")
        if not 0 <= place.rank < place.world:
            raise ValueError(f"`rank`: expected 0 to {place.world - 1}, got {place.rank}")
        return place

    def _check_drop_last(self, place: Place) -> None:
        whole = self.batch_size * place.world
        if self.drop_last and self._rows < whole:
            raise ValueError(
                f"`drop_last`: {self._rows} rows are fewer than one global batch; expected at"
                f" least {whole} ({self.batch_size} x {place.world} ranks)"
            )

    @property
    def sampler(self) -> Self:
        """Itself: loops look here for whom to tell the epoch."""
        return self

    @property
    def dropped(self) -> int:
        """Rows that ``drop_last`` leaves out of every epoch, over all ranks."""
        return self._rows % (self.batch_size * self._place().world) if self.drop_last else 0

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, also when an epoch is resumed in its middle."""
        # Where Accelerate asks, those of all ranks.
        world = self._place().world if divider_of(self) is None else 1
        return self._count(self.batch_size * world)

    def _count(self, batch: int) -> int:
        """Batches of so many rows in an epoch."""
        return self._rows // batch if self.drop_last else -(-self._rows // batch)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next pass; a resumed position stays if its epoch is the same.

        Args:
            epoch: 0 <= epoch < 2**32.

        Raises:
            ValueError: ``epoch`` is out of range.
        """
        if not 0 <= epoch < 1 << 32:
            raise ValueError(f"`epoch`: expected 0 <= epoch < 2**32, got {epoch}")
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
        """How many rows at the end of this rank's batch ``batch`` are padding.

        Args:
            batch: 0 <= batch < len(self), counted from the start of the epoch.

        Returns:
            Rows, 0 in every full batch.
        """
        return sum(self._cut(batch, self._place())[1])

    def _cut(self, batch: int, place: Place) -> tuple[list[int], list[bool]]:
        """Positions in the epoch's order of a batch of a rank, and which are padding."""
        whole = self.batch_size * place.world
        first = batch * whole
        here = min(whole, self._rows - first)
        each = -(-here // place.world)
        mine = range(place.rank * each, (place.rank + 1) * each)
        is_padding = [i >= here for i in mine]
        positions = [
            (i - here) % self._rows if pad else first + i
            for i, pad in zip(mine, is_padding, strict=True)
        ]
        return positions, is_padding

    def __iter__(self) -> Iterator[list[int]]:
        """One epoch, or the rest of a resumed one.

        A generator, because a DataLoader with workers calls ``iter`` twice for its first pass: only
        the first ``next`` begins a pass.

        Yields:
            Rows, as ``EpochIndex``.

        Raises:
            StateError: E_STATE_SHAPE, the position that was loaded is of other global batches.
            UserInputError: E_OPTION, ``num_replicas`` where Accelerate divides the batches.
            ValueError: ``drop_last`` would leave no batch.
        """
        place, divider = self._place(), divider_of(self)
        pass_batch = self.batch_size * place.world
        if divider is not None:
            if (self._replicas or 1) > 1:
                text = "`num_replicas` of a sampler that Accelerate divides; expected none, got"
                raise UserInputError.make("E_OPTION", f"{text} {self._replicas}")
            pass_batch = self.batch_size * (1 if divider.is_split else divider.processes)
            place = Place(0, 1)
        self._check_drop_last(place)
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
            ids = order(self._seed, epoch, self._rows)
        else:
            ids = np.arange(self._rows, dtype=np.int64)
        # In batches of what is cut here, which Accelerate cuts no further or takes turns with.
        first = start * pass_batch // (self.batch_size * place.world)
        batches = self._batches(ids, epoch, first, place)
        if self._read_ahead is not None:
            batches = self._read_ahead(batches, None if divider is None else divider.part)
        for count, batch in enumerate(batches, 1):
            # Another pass may have begun since; then this one is not the pass under way.
            if (epoch, start) == (self._epoch, self._start) and self._handed_out is not None:
                self._handed_out = count
            yield batch

    def _batches(
        self, ids: NDArray[np.int64], epoch: int, first: int, place: Place
    ) -> Iterator[list[int]]:
        for batch in range(first, self._count(self.batch_size * place.world)):
            positions, is_padding = self._cut(batch, place)
            rows = ids[positions].tolist()
            yield [EpochIndex(r, epoch, p) for r, p in zip(rows, is_padding, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the data set, of which a copy elsewhere would fetch what nobody reads."""
        return {**self.__dict__, "_read_ahead": None}

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Where training stands, small enough for any checkpoint, equal on all ranks.

        Args:
            batches_done: batches that the training loop has *finished* since the pass under way
                began (since the resume, if it was resumed). None: all that were handed out, which
                is more than the loop has seen where a plain ``DataLoader`` has workers, and not
                known where Accelerate draws the batches of all ranks.

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
        pass_batch = self._global_batch
        done, count = self._start + batches_done, self._count(pass_batch)
        if batches_done < 0 or done > count:
            raise ValueError(
                f"`batches_done`: expected 0 to {count - self._start}, got {batches_done}"
            )
        is_over = done == count
        return {
            "v": _STATE_VERSION,
            "id": self._id,
            "seed": self._seed,
            "epoch": self._epoch + is_over,
            "next_batch": 0 if is_over else done,
            "global_batch": pass_batch,
            "order": self._order,
        }

    @property
    def _global_batch(self) -> int:
        """Rows of a global batch: of the pass under way, else as many as there are ranks for."""
        return self._pass_batch if self._is_started else self.batch_size * self._place().world

    def _refuse_batch(self, loaded: int, mine: int) -> None:
        text = f"`global_batch` differs inside an epoch; expected {mine}, got {loaded}"
        if self._replicas is None and current().world == 1:
            text += "; without a process group there is 1 rank"
        raise StateError.make("E_STATE_SHAPE", text)

    @property
    def _order(self) -> str:
        return "shuffled" if self._is_shuffled else "sequential"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next pass begin where ``state`` was taken.

        The number of ranks may have changed if the global batch has not; at the start of an epoch
        the global batch may have changed too.

        Args:
            state: as from ``state_dict``.

        Raises:
            StateError: E_STATE_DIGEST, the state belongs to another file; E_STATE_SHAPE, it is not
                a state of this version, or its seed, order or global batch differs.
        """
        known = _parse_state(state)
        if known["id"] != self._id:
            text = f"state of another file; expected {self._id}, got {printable(known['id'])}"
            raise StateError.make("E_STATE_DIGEST", text)
        for key, mine in (("seed", self._seed), ("order", self._order)):
            if known[key] != mine:
                text = f"`{key}` differs; expected {mine}, got {printable(known[key])}"
                raise StateError.make("E_STATE_SHAPE", text)
        if known["next_batch"]:
            whole = self.batch_size * self._place().world
            if known["global_batch"] != whole:
                self._refuse_batch(known["global_batch"], whole)
            if known["next_batch"] >= self._count(whole):
                text = (
                    f"`next_batch` is beyond the epoch; expected 0 to {self._count(whole) - 1},"
                    f" got {known['next_batch']}"
                )
                raise StateError.make("E_STATE_SHAPE", text)
        self._loaded_batch = known["global_batch"]
        self._is_loaded = True
        self._epoch = known["epoch"]
        self._start = known["next_batch"]
        self._is_started = False
        self._handed_out = 0


def _parse_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` with its keys and types checked."""
    if sorted(state) != sorted(_STATE_KEYS):
        text = f"unknown form of state; expected the keys {json.dumps(_STATE_KEYS)}"
        raise StateError.make("E_STATE_SHAPE", f"{text}, got {printable(sorted(state))}")
    if state["v"] != _STATE_VERSION:
        text = f"`v` differs; expected {_STATE_VERSION}, got {printable(state['v'])}"
        raise StateError.make("E_STATE_SHAPE", text)
    bounds = {"seed": 1 << 64, "epoch": 1 << 32, "next_batch": 1 << 53, "global_batch": 1 << 53}
    for key, end in bounds.items():
        value = state[key]
        if type(value) is not int or not 0 <= value < end:
            text = f"`{key}` is out of range; expected an integer from 0 to {end - 1}"
            raise StateError.make("E_STATE_SHAPE", f"{text}, got {printable(value)}")
    return dict(state)


def _check_dataset(dataset: object) -> None:
    """Refuse what a sampler cannot read, in words of what to pass instead."""
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
