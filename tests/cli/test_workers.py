"""What torch says of workers that end early, as one line."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import time

import click
import numpy.random  # noqa: F401 - else each worker imports it, while it may be ended
import pytest
from click.testing import CliRunner
from torch.utils.data import DataLoader, Dataset, get_worker_info

import hellofmt_cli.ls
from hellofmt.errors import CorruptError, HelloIOError
from hellofmt_cli.main import hello
from hellofmt_cli.workers import worker_ends_in_one_line, worker_error

SHM = "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"


class Faulty(Dataset):
    """Its worker meets the fault at item 5."""

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            assert get_worker_info() is not None
            self.fault()
        return index


def ended_by(number):
    def fault():
        # A core file of all of torch takes seconds.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)

    return fault


def raising(error):
    def fault():
        raise error

    return fault


# torch tells how a worker ended only if the system tells torch before it looks.
GONE = (
    r"E_READ: a DataLoader worker is gone; .* /dev/shm \([\d,]+ MB\) runs out; pass .*, or enlarge"
)


@pytest.fixture
def _no_gc_callbacks():
    """Without those that Hypothesis leaves: Python drops what torch's handler raises in one."""
    kept = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = kept


@pytest.mark.usefixtures("_no_gc_callbacks")
@pytest.mark.parametrize(
    ("fault", "timeout", "expected"),
    [
        (ended_by(signal.SIGBUS), 60, rf"E_NOSPACE: /dev/shm .* is full; .*=8g\), or pass|{GONE}"),
        (
            raising(RuntimeError(SHM)),
            60,
            r"E_NOSPACE: /dev/shm \([\d,]+ MB\) is full; .*`workers` 0",
        ),
        (ended_by(signal.SIGKILL), 60, rf"E_READ: .* signal `Killed`; .* memory runs out|{GONE}"),
        (ended_by(signal.SIGTERM), 60, rf"E_READ: .* signal `Terminated`; pass `workers` 0|{GONE}"),
        (
            lambda: time.sleep(1.5),
            1,
            r"E_TIMEOUT: .* \(DataLoader timed out after 1 seconds\); pass",
        ),
        (lambda: os._exit(0), 1, f"E_TIMEOUT|{GONE}"),
    ],
    ids=["bus error", "full", "killed", "terminated", "slow", "left"],
)
def test_the_end_of_a_worker_is_one_line(fault, timeout, expected):
    loader = DataLoader(Faulty(fault), batch_size=2, num_workers=1, timeout=timeout)
    try:
        with worker_ends_in_one_line(1):
            list(loader)
    except HelloIOError as error:
        ended = error
    except RuntimeError as error:
        # torch's handler of SIGCHLD raised while the block was left; commands end here too.
        ended = worker_error(str(error))
    assert re.match(expected, str(ended))
    assert len(str(ended).splitlines()) == 1
    assert ended.exit_code == 9


@pytest.mark.parametrize("text", ["DataLoader worker (pid 7) is killed by signal: Killed. ", "x"])
def test_a_worker_that_ends_between_two_lines_of_a_command(text, monkeypatch):
    @click.command("ls")
    def late():
        raise RuntimeError(text)

    monkeypatch.setattr(hellofmt_cli.ls, "ls", late)
    done = CliRunner().invoke(hello, ["ls"])
    if text == "x":
        assert str(done.exception) == "x"
    else:
        assert done.exit_code == 9
        assert re.fullmatch(r"Error: E_READ: a DataLoader worker was .*\n", done.stderr)


@pytest.mark.parametrize("error", [RuntimeError("of the user"), FileNotFoundError(2, "no", "x")])
def test_what_a_worker_raises_stays_what_it_is(error):
    loader = DataLoader(Faulty(raising(error)), batch_size=2, num_workers=1)
    with pytest.raises(type(error)) as caught, worker_ends_in_one_line(1):
        list(loader)
    assert type(caught.value) is type(error)


@pytest.mark.parametrize("error", [RuntimeError(SHM), CorruptError.make("E_IMAGE", "x")])
def test_without_workers_nothing_is_translated(error):
    with pytest.raises(type(error)) as caught, worker_ends_in_one_line(0):
        raise error
    assert caught.value is error


def test_more_workers_than_cores_are_as_asked_for():
    # torch warns here, and warnings are errors.
    with worker_ends_in_one_line(10_000):
        DataLoader(Faulty(None), num_workers=10_000)
