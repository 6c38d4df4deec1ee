"""Processes that work are waited for; those that hang are named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
from torch import distributed

from hellofmt.errors import HelloIOError
from hellofmt.runs import ranks
from hellofmt.runs.watch import Watch


def other(path, seconds, ready):
    """Rank 1 of 2: works for ``seconds``, then waits for rank 0."""
    watch = Watch(distributed.FileStore(path, 2), 1, 2, patience=0.8)
    ready.send(os.getpid())
    time.sleep(seconds)
    watch.wait()
    watch.close()


@pytest.fixture
def pair(tmp_path):
    """``pair(seconds)``: a watch of rank 0, and the process id of rank 1."""
    context, started = multiprocessing.get_context("fork"), []

    def start(seconds):
        mine, theirs = context.Pipe(duplex=False)
        path = str(tmp_path / "store")
        process = context.Process(target=other, args=(path, seconds, theirs))
        process.start()
        started.append((process, Watch(distributed.FileStore(path, 2), 0, 2, patience=0.8)))
        assert mine.poll(60)
        return started[-1][1], mine.recv()

    yield start
    for process, watch in started:
        watch.close()
        process.kill()
        process.join()


def test_who_works_longer_than_the_patience_is_waited_for(pair):
    watch, _ = pair(1.6)
    start = time.monotonic()
    watch.wait()
    assert time.monotonic() - start > 1.2


def test_who_is_stopped_is_named(pair):
    watch, pid = pair(60)
    os.kill(pid, signal.SIGSTOP)
    message = r"E_TIMEOUT: rank 1 of 2 gave no sign of life for 0.0133 minutes; it is stopped, or"
    with pytest.raises(HelloIOError, match=message):
        watch.wait()


def test_a_message_that_takes_too_long_names_who_is_missing(pair, monkeypatch, as_rank):
    watch, _ = pair(60)
    as_rank(0, 2)
    monkeypatch.setattr(ranks, "_watch", watch)

    def times_out(_tensor):
        time.sleep(0.8)
        raise RuntimeError("Timed out waiting 400ms for recv operation to complete")

    monkeypatch.setattr(distributed, "all_reduce", times_out)
    # Alive, but not where the others are.
    with pytest.raises(HelloIOError, match="E_TIMEOUT: rank 1 of 2 did not come to a step in"):
        ranks.sum_(None)

    def breaks(_tensor):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(distributed, "all_reduce", breaks)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        ranks.sum_(None)
