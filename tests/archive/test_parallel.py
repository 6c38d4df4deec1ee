import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from hellofmt.archive import parallel


@pytest.fixture(params=[1, 2, 4])
def cores(request, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: request.param)
    return request.param


def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("hellofmt")]


def test_results_come_in_order(cores):
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item, threading.current_thread().name

    found = list(parallel.map_ordered(work, range(20)))
    assert [value for value, _ in found] == [i * i for i in range(20)]
    assert len({name for _, name in found}) <= cores
    assert any(name.startswith("hellofmt") for _, name in found) == (cores > 1)
    assert ours() == []


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("size", [1, 3, 20, 100])
def test_chunks_give_what_single_items_do(size):
    assert list(parallel.map_chunks(lambda item: item * item, range(20), size)) == [
        i * i for i in range(20)
    ]
    assert ours() == []


@pytest.mark.usefixtures("cores")
def test_a_single_item_needs_no_thread():
    assert list(parallel.map_ordered(lambda _: threading.current_thread(), [1])) == [
        threading.main_thread()
    ]
    assert list(parallel.map_ordered(lambda item: item, [])) == []


@pytest.mark.usefixtures("cores")
def test_the_first_error_in_order_comes_out():
    def work(item):
        # The later fault happens first.
        time.sleep(0.02 if item == 3 else 0)
        if item in (3, 4):
            raise ValueError(item)
        return item

    found = []
    with pytest.raises(ValueError, match="3"):  # noqa: PT012 (what came before counts)
        for value in parallel.map_ordered(work, range(9)):
            found.append(value)  # noqa: PERF402
    assert found == [0, 1, 2]
    assert ours() == []


def test_items_are_drawn_in_the_caller_and_not_far_ahead(cores):
    drawn, most = [], 0

    def items():
        for item in range(20):
            assert threading.current_thread() is threading.main_thread()
            drawn.append(item)
            yield item

    for done, _ in enumerate(parallel.map_ordered(lambda item: item, items()), 1):
        most = max(most, len(drawn) - done)
    assert most <= cores + 1


@pytest.mark.usefixtures("cores")
def test_a_large_item_is_alone():
    running, seen, lock = set(), [], threading.Lock()

    def work(item):
        with lock:
            running.add(item)
            seen.append((item, len(running)))
        time.sleep(0.005)
        with lock:
            running.remove(item)
        return item

    result = list(parallel.map_ordered(work, range(12), alone=lambda item: item % 5 == 0))
    assert result == list(range(12))
    assert {count for item, count in seen if item % 5 == 0} == {1}


@pytest.mark.usefixtures("cores")
def test_closing_early_waits_for_the_threads():
    ended = []

    def work(item):
        time.sleep(0.01)
        ended.append(item)
        return item

    results = parallel.map_ordered(work, range(100))
    assert next(results) == 0
    results.close()
    assert ours() == []
    count = len(ended)
    time.sleep(0.03)
    assert len(ended) == count < 10


def test_beside_runs_both_and_raises_either():
    with parallel.beside(lambda: time.sleep(0.01)):
        assert len(ours()) == 1
    assert ours() == []

    def fail():
        raise OSError("beside")

    with pytest.raises(OSError, match="beside"), parallel.beside(fail):
        pass
    with pytest.raises(ValueError, match="block"), parallel.beside(fail):
        raise ValueError("block")
    assert ours() == []


def test_work_beside_ends_before_the_error_of_the_block_comes_out():
    ended = []

    def work():
        time.sleep(0.05)
        ended.append(True)

    with pytest.raises(ValueError, match="block"), parallel.beside(work):
        raise ValueError("block")
    assert ended == [True]


INTERRUPTED = """
import os, signal, threading, time
from hellofmt.archive import parallel

parallel.cores = lambda: 2
ended = []

def work(item):
    time.sleep(0.3)
    ended.append(item)

def interrupt():
    for _ in range(2):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    list(parallel.map_ordered(work, range(50)))
except KeyboardInterrupt:
    count = len(ended)
    time.sleep(0.5)
    assert len(ended) == count == 2, (ended, count)
    print("interrupted")
"""


def test_a_second_interrupt_does_not_leave_a_thread_behind():
    # The first ends the loop, the second arrives while its threads are waited for.
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "interrupted", done.stderr


def test_cores():
    assert 1 <= parallel.cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("most", [1, 10, 11, 25, 1000])
def test_windows(most):
    length = np.array([3, 4, 3, 20, 1, 1, 9, 11, 2])
    end = 100 + np.cumsum(length)
    windows = list(parallel.cut_windows(end - length, end, most))
    assert [row for window in windows for row in window] == list(range(9))
    for window in windows:
        first, after = window.start, window.stop
        assert after == first + 1 or length[first:after].sum() <= most
        # None could have been longer.
        assert after == 9 or length[first : after + 1].sum() > most
