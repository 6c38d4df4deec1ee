"""Errors that keep all their fields on the way from a ``DataLoader`` worker.

torch sends the class of a worker's exception and a text, and calls that class with the text in the
main process. So a worker raises its error as an instance of a class made for this one error: the
class pickles with the error in it, and calling it returns the error.
"""

from __future__ import annotations

import copyreg
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch.utils.data import get_worker_info

from hellofmt.errors import HelloError

if TYPE_CHECKING:
    from collections.abc import Generator


class _ClassOfOne(type):
    """Type of a class that stands for one error."""

    error: HelloError

    def __call__(cls, message: str) -> Any:
        """Return the error itself; what torch says about the worker becomes a note."""
        cls.error.add_note(message)
        return cls.error


def _class_of(error: HelloError) -> _ClassOfOne:
    kind = type(error)
    made = _ClassOfOne(kind.__name__, (kind,), {"__module__": kind.__module__})
    made.error = error
    return made


def _reduce(made: _ClassOfOne) -> tuple[Any, ...]:
    return _class_of, (made.error,)


copyreg.pickle(_ClassOfOne, _reduce)  # pyright: ignore[reportArgumentType] - a type is a value here


@contextmanager
def errors_arrive_whole() -> Generator[None]:
    """Wrap what a dataset does for a loader; outside of a worker nothing changes."""
    try:
        yield
    except HelloError as error:
        if get_worker_info() is None:
            raise
        made = _class_of(error)
        # Calling the class would give the error back.
        sent = cast("HelloError", made.__new__(made, *error.args))
        sent.__dict__.update(error.__dict__)
        raise sent from error
