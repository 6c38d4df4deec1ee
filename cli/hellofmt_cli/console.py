"""What a command says while it works: one object for its lines and its progress bars.

On a terminal the running stage is a bar, and a line is written above it. Elsewhere (a log, a pipe)
a stage that says nothing for a second is named, and its steps are counted in lines that grow rarer,
from two seconds apart to a minute. Stages may nest; the innermost is the one that is shown.
Under ``torchrun`` only rank 0 speaks. tqdm is imported with the first bar, since ``hello inspect``
should answer at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from hellofmt_cli.terminal import width_of, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_NAMED_SECONDS: Final = 1.0
_FIRST_SECONDS: Final = 2.0
_MOST_SECONDS: Final = 60.0


class Level(IntEnum):
    """How much is said."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class _Stage(Protocol):
    """What is shown of one stage."""

    def show(self) -> None: ...

    def hide(self) -> None: ...

    def said(self) -> None: ...

    def step(self, done: int, total: int) -> None: ...


class _Bar:
    """A stage on a terminal: its name, and a bar as soon as steps are counted."""

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._done, self._total = 0, 0
        self._bar: Any = None

    def show(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            desc=self._label,
            unit=self._unit,
            initial=self._done,
            total=self._total or None,
            # Without steps tqdm would count up to nothing.
            bar_format=None if self._total else "{desc}...",
            leave=False,
            file=sys.stderr,
        )

    def hide(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def said(self) -> None:
        pass

    def step(self, done: int, total: int) -> None:
        before, self._done, self._total = self._done, done, total
        if self._bar is None:
            return
        is_first = self._bar.bar_format is not None
        if is_first:
            # What came before the first step is not its time.
            self._bar.unpause()
        self._bar.bar_format, self._bar.total = None, total
        self._bar.update(done - before)
        if is_first:
            self._bar.refresh()


class _Log:
    """A stage anywhere else: lines."""

    def __init__(self, label: str, unit: str, say: Callable[[str], None]) -> None:
        self._label, self._unit, self._say, self._is_named = label, unit, say, False
        self._timer: threading.Timer | None = None
        self._wait = _FIRST_SECONDS
        self._due = time.monotonic() + self._wait

    def show(self) -> None:
        if not self._is_named:
            self._timer = threading.Timer(_NAMED_SECONDS, self._say, [f"{self._label} ..."])
            self._timer.daemon = True
            self._timer.start()

    def hide(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def said(self) -> None:
        self._is_named = True
        self.hide()

    def step(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._due or done >= total:
            return
        self._say(f"{self._label}: {done:,} of {total:,} {self._unit}s")
        self._wait = min(2 * self._wait, _MOST_SECONDS)
        self._due = now + self._wait


class Console:
    """The lines and bars of one process."""

    def __init__(self) -> None:
        """Begin with no stage."""
        self._stages: list[_Stage] = []
        self.level = Level.NORMAL

    @property
    def is_speaking(self) -> bool:
        """Whether this process prints: rank 0 of ``torchrun``, or the only one."""
        return os.environ.get("RANK", "0") == "0"

    def say(self, text: str) -> None:
        """Print one line to stderr, above a bar; nothing except on rank 0, and by ``--quiet``."""
        if self.level > Level.QUIET:
            self._print(wrapped(text, width_of(err=True)), is_result=False)

    def detail(self, text: str) -> None:
        """Say what only ``--verbose`` asks for."""
        if self.level == Level.VERBOSE:
            self.say(click.style(text, dim=True))

    def write(self, text: str) -> None:
        """Print one line of a result to stdout, as ``say`` prints to stderr."""
        self._print(text, is_result=True)

    def _print(self, text: str, *, is_result: bool) -> None:
        if not self.is_speaking:
            return
        above: Any = nullcontext()
        if any(isinstance(stage, _Bar) for stage in self._stages):
            from tqdm import tqdm

            above = tqdm.external_write_mode(file=sys.stderr)
        with above:
            click.echo(text, err=not is_result)
        if self._stages:
            self._stages[-1].said()

    def warn(self, text: str) -> None:
        """Print ``Warning: text``, as ``say`` does."""
        self.say(f"{click.style('Warning:', fg='yellow', bold=True)} {text}")

    @contextmanager
    def stage(self, label: str, unit: str = "step") -> Generator[Callable[[int, int], None]]:
        """Show what is being done while the block runs; yields ``step(done, total)``."""
        if not self.is_speaking or self.level == Level.QUIET:
            yield _count_nothing
            return
        stage = _Bar(label, unit) if _can_draw() else _Log(label, unit, self.say)
        if self._stages:
            self._stages[-1].hide()
        self._stages.append(stage)
        stage.show()
        try:
            yield stage.step
        finally:
            stage.hide()
            self._stages.pop()
            if self._stages:
                self._stages[-1].show()

    def step(self, done: int, total: int) -> None:
        """Count ``done`` of ``total`` steps of the innermost stage, if there is one."""
        if self._stages:
            self._stages[-1].step(done, total)


def _can_draw() -> bool:
    """Whether stderr is a terminal with columns; some containers have one without."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return True


def _count_nothing(_done: int, _total: int) -> None:
    pass


console: Final = Console()
"""The console of this process."""
