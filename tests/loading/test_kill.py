"""A worker that dies, leaves, stops or fails is an error in time, never a shorter epoch."""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from hellofmt.archive import open_archive
from hellofmt.errors import CorruptError
from hellofmt.loading import workers as workers_module
from hellofmt.loading.workers import attentive, no_worker_left

# What takes longer hangs, and fails here instead of stopping the suite. A spawned worker first
# imports torch: a minute, measured where twelve other processes were busy on two cores.
HANG_SECONDS, IMPORT_SECONDS = 60, 240


def grace():
    """Factor of every limit: what waits for a core that others have is late, and does not hang."""
    return 1 if os.getloadavg()[0] < 2 * (os.cpu_count() or 1) else 5


IMAGES, BATCH = 48, 4
METHODS = ("fork", "spawn", "forkserver")
WORKERS = (1, 2, 4)
FAULTS = ("kill", "exit", "stop", "exception")
PLACES = {"first": 0, "middle": IMAGES // BATCH // 2, "last": IMAGES // BATCH - 1}
CELLS = list(itertools.product(METHODS, WORKERS, FAULTS, PLACES))
# Each fault, start method, number of workers and place at least once; spawning takes seconds.
QUICK = {
    ("fork", 1, "kill", "first"),
    ("fork", 2, "kill", "middle"),
    ("fork", 4, "kill", "last"),
    ("fork", 2, "exit", "middle"),
    ("fork", 4, "stop", "first"),
    ("fork", 2, "stop", "last"),
    ("fork", 1, "exception", "first"),
    ("fork", 4, "exception", "last"),
    ("spawn", 1, "kill", "middle"),
    ("fork", 2, "exception", "middle"),
    ("forkserver", 2, "exit", "last"),
    ("forkserver", 1, "exception", "middle"),
}
EXPECTED = {
    "kill": (RuntimeError, "is killed by signal: Killed|a DataLoader worker is gone"),
    "exit": (RuntimeError, "a DataLoader worker is gone"),
    "stop": (RuntimeError, "a DataLoader worker gave nothing for {} seconds"),
    "exception": (CorruptError, "E_DIGEST_MEMBER"),
}


def test_the_quick_cells_cover_every_kind():
    assert len(CELLS) == 108
    assert len(QUICK) == 12
    assert set(CELLS) >= QUICK
    for k, kinds in enumerate((METHODS, WORKERS, FAULTS, PLACES)):
        assert {cell[k] for cell in QUICK} == set(kinds)


@pytest.fixture(autouse=True)
def no_hang(request):
    """Fail what hangs, wherever the main thread waits."""
    is_slow = any(method in request.node.name for method in METHODS[1:])
    limit = grace() * (HANG_SECONDS + IMPORT_SECONDS * is_slow)

    def fail(_number, frame):
        where = "".join(traceback.format_stack(frame, limit=4))
        pytest.fail(f"hung for {limit} seconds in\n{where}")

    known = signal.signal(signal.SIGALRM, fail)
    signal.alarm(limit)
    # Where no Python code runs, no signal helps: the process ends with its stacks on stderr.
    faulthandler.dump_traceback_later(2 * limit, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, known)


@pytest.fixture(scope="module")
def images(archive_of):
    return archive_of(count=IMAGES, with_projector=False)


@pytest.fixture(scope="module")
def faulty():
    """The class from a module that spawned workers find on their path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "kill"))
        import faulty

        # Workers of the fork server start with everything imported that it finds by itself.
        multiprocessing.set_forkserver_preload(["hellofmt.loading.dataset"])
        yield faulty.FaultyDataset


def damaged(images, row, path):
    data = bytearray(images.read_bytes())
    with open_archive(images) as file:
        data[int(file.index.offset[row]) + 40] ^= 1
        name = file.image_name(row)
    path.write_bytes(data)
    return path, name


@pytest.mark.parametrize(
    ("method", "workers", "fault", "place"),
    [
        pytest.param(
            *cell, marks=() if cell in QUICK else pytest.mark.slow, id="-".join(map(str, cell))
        )
        for cell in CELLS
    ],
)
# Under Python 3.12 and later forking beside threads warns, and four workers on two cores do.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_fault_in_a_worker_is_an_error_in_time(
    images, faulty, tmp_path, method, workers, fault, place
):
    batch = PLACES[place]
    row, note = batch * BATCH + 1, tmp_path / "note"
    path, member = images, None
    if fault == "exception":
        path, member = damaged(images, row, tmp_path / "damaged.hello")
    dataset = faulty(path, fault=fault, row=row, note=note)
    before = set(multiprocessing.active_children())
    kind, text = EXPECTED[fault]
    loader = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, multiprocessing_context=method
    )
    # Others import torch first, which the patience for a stopped worker includes.
    is_forked = method == "fork"
    timeout = 40 if is_forked else IMPORT_SECONDS
    if fault == "stop":
        timeout = 3 if is_forked else 20 * grace()
    got = []
    with pytest.raises(kind, match=text.format(timeout)) as caught:
        got.extend(attentive(loader, timeout=timeout))
    patience = timeout + 2 * grace() if fault == "stop" else 10 * grace()
    assert time.time() - float(note.read_text(encoding="ascii")) < patience
    # Every batch that came is whole, and none came from beyond the fault.
    assert len(got) <= batch
    assert all(len(views) == BATCH for views in got)
    if fault == "exception":
        assert type(caught.value) is CorruptError
        assert caught.value.code == "E_DIGEST_MEMBER"
        assert caught.value.member == member
    assert set(multiprocessing.active_children()) <= before


# torch's own end waits for ten seconds.
@pytest.mark.slow
def test_a_stopped_worker_would_stay_without_help(images, faulty, tmp_path):
    """What ``no_worker_left`` is for: torch's own end leaves the process there."""
    dataset = faulty(images, fault="stop", row=0, note=tmp_path / "note")
    before = set(multiprocessing.active_children())
    with no_worker_left():
        loader = DataLoader(dataset, batch_size=BATCH, num_workers=1, timeout=1)
        with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
            list(loader)
        assert len(set(multiprocessing.active_children()) - before) == 1
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_attentive_changes_nothing_of_a_good_pass(images, faulty, tmp_path, workers):
    dataset = faulty(images, fault="kill", row=-1, note=tmp_path / "note")
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, timeout=17 * (workers > 0))
    before = set(multiprocessing.active_children())
    expected = torch.stack(dataset.__getitems__(range(IMAGES)))
    assert torch.equal(torch.cat(list(attentive(loader))), expected)
    assert loader.timeout == 17 * (workers > 0)
    # A pass that is left early ends its workers too.
    next(attentive(loader))
    assert set(multiprocessing.active_children()) <= before


def test_a_slow_batch_is_waited_for(images, faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "_LOOK_SECONDS", 0.2)
    dataset = faulty(images, fault="slow", row=9, note=tmp_path / "note")
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=1, multiprocessing_context="fork")
    assert len(list(attentive(loader, timeout=30))) == IMAGES // BATCH


def test_a_missing_file_in_a_worker_keeps_its_type(images, faulty, tmp_path):
    dataset = faulty(images, fault="missing", row=9, note=tmp_path / "note")
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(FileNotFoundError, match="in DataLoader worker process"):
        list(attentive(loader, timeout=30))


def test_persistent_workers_are_refused(images, faulty, tmp_path):
    dataset = faulty(images, fault="kill", row=0, note=tmp_path / "note")
    loader = DataLoader(dataset, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="expected workers that end with the pass"):
        next(attentive(loader))
