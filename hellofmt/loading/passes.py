"""How many batches of a pass a training loop has got, which is where a run can be resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hellofmt.loading.sampler import HelloSampler

_Batch = TypeVar("_Batch")


class Passes:
    """What gives batches in the order of a sampler; each ``for`` loop over it is one pass.

    Attributes:
        batches_done: batches handed out in the pass under way, since the resume if it was resumed.
    """

    batches_done = 0
    _passes = 0

    def _counted(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        self.batches_done = 0
        self._passes += 1
        this_pass = self._passes
        for count, batch in enumerate(batches, 1):
            # Counted before it is handed out: inside the loop's body this batch is in use. Of two
            # passes at once, the one that began last is under way.
            if this_pass == self._passes:
                self.batches_done = count
            yield batch

    def _order(self) -> HelloSampler:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return where the pass stands, including the batch handed out last.

        Returns:
            As ``HelloSampler.state_dict``: strings and integers, equal on all ranks.

        Raises:
            UserInputError: E_OPTION, no ``HelloSampler`` gives the order.
        """
        return self._order().state_dict(self.batches_done)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next pass begin where ``state`` was taken.

        Args:
            state: as from ``state_dict``, on any number of ranks with the same global batch.

        Raises:
            StateError: see ``HelloSampler.load_state_dict``.
            UserInputError: E_OPTION, no ``HelloSampler`` gives the order.
        """
        self._order().load_state_dict(state)
        self.batches_done = 0
