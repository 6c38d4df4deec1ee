"""Datasets and samplers that Accelerate divides among processes, and so has to get whole.

Everywhere else a sampler in ``torch.distributed`` gives one rank's rows. Accelerate's ``prepare``
keeps the sampler, draws from it in every process (or in the first one, for all of them), and hands
each process its part; rows that were divided before would be divided twice, and most never served.
It never tells the sampler: the difference shows nowhere but on the stack, so that is where
``divider_of`` looks.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

_MODULE: Final = "accelerate.data_loader"
# Classes that divide, and where each keeps what it draws from.
_DRAWN: Final = {"BatchSamplerShard": "batch_sampler", "IterableDatasetShard": "dataset"}


@dataclass(frozen=True)
class Divider:
    """How Accelerate divides what it draws.

    Attributes:
        processes: number of processes.
        is_split: whether each batch is cut in pieces, rather than batches dealt out in turn.
        rank: number of this process; None if it draws for all of them.
    """

    processes: int
    is_split: bool
    rank: int | None

    def part(self, number: int, batch: list[int]) -> list[int]:
        """Return what this process gets of the batch ``number``, counted from the first drawn."""
        if self.rank is None:
            return batch
        if self.is_split:
            each = len(batch) // self.processes
            return batch[self.rank * each : (self.rank + 1) * each]
        return batch if number % self.processes == self.rank else []


def divider_of(drawn: object) -> Divider | None:
    """Look for Accelerate on the stack, drawing from ``drawn``, one of whose methods calls this."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == _MODULE:
            owner: Any = frame.f_locals.get("self")
            kind = type(owner).__name__
            if kind == "DataLoaderDispatcher":
                loader = owner.base_dataloader
                if drawn is loader.dataset or _leads_to(loader.batch_sampler, drawn):
                    return Divider(owner.state.num_processes, bool(owner.split_batches), None)
            elif drawn is getattr(owner, _DRAWN.get(kind, ""), None):
                rank = owner.process_index
                return Divider(owner.num_processes, bool(owner.split_batches), rank)
        frame = frame.f_back
    return None


def _leads_to(sampler: Any, drawn: object) -> bool:
    """Return whether ``sampler`` is ``drawn``, or skips some of its batches."""
    while sampler is not None and sampler is not drawn:
        sampler = getattr(sampler, "batch_sampler", None)
    return sampler is drawn
