"""Epochs from a remote archive: the same batches, fetched ahead, each byte once."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pickle  # noqa: TID251
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from hellofmt.archive import ClassLine, Dataset, Draft, ImageItem, ImageSet, open_archive
from hellofmt.archive.read import stream
from hellofmt.archive.read.stream import open_stream
from hellofmt.archive.storage import remote, spool
from hellofmt.archive.storage.local_files import lock_byte, unlock_byte
from hellofmt.archive.write.shards import write_shards
from hellofmt.errors import CorruptError, HelloIOError
from hellofmt.loading import HelloDataset, HelloLoader, HelloSampler
from hellofmt.loading.drawing import READ_AHEAD
from hellofmt.loading.views.table import rows_shown

COUNT, BATCH = 60, 2
SERVER = Path(__file__).parents[1] / "hostile" / "bad_http.py"


@pytest.fixture(scope="module")
def server_type():
    spec = importlib.util.spec_from_file_location("bad_http", SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Server


@pytest.fixture
def serve(server_type):
    servers = []

    def start(path, lie=None):
        servers.append(server_type(Path(path).read_bytes(), lie))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.0005)


@pytest.fixture(scope="module")
def path(archive_of):
    """Sixty images of 12 KB, three of which are a page, half of the views mixed."""
    return archive_of(count=COUNT, side=64, layout="files", mix="cutmix", mix_probability="0.5")


def batches_of(source, **options):
    data = HelloDataset(source, labels="hard", seed=5, **options)
    sampler = HelloSampler(data, batch_size=BATCH, seed=5)
    return DataLoader(data, batch_sampler=sampler)


def assert_equal(got, wanted):
    got, wanted = list(got), list(wanted)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def images_at(path):
    """First and last offset of the images."""
    with open_archive(path) as file:
        return int(file.index.offset[0]), int(file.index.offset[-1] + file.index.size[-1])


def times_fetched(server, path):
    """How often each byte of the images was asked for."""
    start, end = images_at(path)
    times = np.zeros(len(server.data), np.int64)
    for first, last in server.ranges:
        times[first:last] += 1
    return times[start:end]


def rows_fetched(server, path):
    """Rows all of whose bytes were asked for."""
    with open_archive(path) as file:
        times, start = times_fetched(server, path), images_at(path)[0]
        offsets, sizes = file.index.offset - start, file.index.size
    return {
        row
        for row, (at, size) in enumerate(zip(offsets, sizes, strict=True))
        if times[at : at + size].all()
    }


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def idle():
    return not any(t.name == "hellofmt-stream" for t in threading.enumerate())


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_epochs_are_bit_equal_and_each_byte_comes_once(path, serve, labels):
    server = serve(path)
    options = {"batch_size": 4, "labels": labels, "seed": 3}
    far, near = HelloLoader(server.url, **options), HelloLoader(path, **options)
    for _ in range(3):
        assert_equal(far, near)
    # Every row is shown in an epoch, so all that lies before the end of the file is needed.
    assert (times_fetched(server, path) == 1).all()
    wait_until(idle)


def test_a_plain_data_loader_gets_the_same_and_fetches_once(path, serve):
    server = serve(path)
    far, near = (DataLoader(HelloDataset(s, labels="hard"), 7) for s in (server.url, path))
    for _ in range(2):
        assert_equal(far, near)
    assert (times_fetched(server, path) == 1).all()


def test_what_is_not_decoded_into_memory_is_still_fetched_once(path, serve):
    server = serve(path)
    far, near = (batches_of(s, cache=0) for s in (server.url, path))
    for _ in range(2):
        assert_equal(far, near)
    assert (times_fetched(server, path) == 1).all()


def test_packed_images_stream_as_well(archive_of, serve):
    path = archive_of(count=COUNT, side=64, layout="packed", mix="cutmix", mix_probability="0.5")
    server = serve(path)
    far, near = (batches_of(s, cache=0) for s in (server.url, path))
    for _ in range(2):
        assert_equal(far, near)
    assert (times_fetched(server, path) == 1).all()


def test_the_shards_of_a_set_stream_as_well(path, serve, tmp_path):
    facts = Dataset(name="x", version="1", license="CC0-1.0", method="test", sources=[])
    classes = (ClassLine("a", ("a",)), ClassLine("b", ("b",)))
    with open_archive(path) as file:
        views = file.manifest.views
        items = [ImageItem(row // 30, file.read_image(row)) for row in range(COUNT)]
    draft = Draft(facts, classes, views, images=ImageSet("png", items, "files", order="value"))
    write_shards(tmp_path / "x.hello", draft, 3)
    paths = sorted(tmp_path.glob("x-*.hello"))
    servers = [serve(one) for one in paths]
    far = batches_of([server.url for server in servers], cache=0)
    near = batches_of(paths)
    for _ in range(2):
        assert_equal(far, near)
    for server, one in zip(servers, paths, strict=True):
        assert (times_fetched(server, one) == 1).all()
    # Of the first five of each class nothing else is fetched, but for what opening reads at once.
    few = [serve(one) for one in paths]
    assert_equal(batches_of([one.url for one in few], cache=0, ipc=5), batches_of(paths, ipc=5))
    fetched = [set(rows_fetched(*pair)) for pair in zip(few, paths, strict=True)]
    opening = fetched[2]
    assert max(opening) < 5
    assert [rows - opening for rows in fetched] == [
        set(range(5)) - opening,
        {*range(10, 15)},
        set(),
    ]


def shown(data, sampler_batches):
    """Rows that batches show, partners included."""
    found = set()
    for batch in sampler_batches:
        rows = np.array(batch, np.int64)
        table = data.table(rows, np.array([i.epoch for i in batch]))
        found |= set(rows_shown(table))
    return found


def test_the_next_eight_batches_are_fetched_and_no_more(path, serve, monkeypatch):
    # Each row a page of its own, so that nothing is fetched for its neighbour's sake.
    monkeypatch.setattr(stream, "_PAGE_BYTES", 1)
    server = serve(path)
    loader = batches_of(server.url)
    data, order = loader.dataset, list(batches_of(path).batch_sampler)
    before = rows_fetched(server, path)
    for done, _ in enumerate(loader, 1):
        wait_until(idle)
        wanted = shown(data, order[: done + 8])
        assert rows_fetched(server, path) == wanted | before
        if done == 3:
            break
    assert len(rows_fetched(server, path)) < COUNT


@pytest.mark.parametrize("split_batches", [False, True])
def test_accelerate_fetches_on_each_rank_what_it_shows(path, serve, monkeypatch, split_batches):
    monkeypatch.setattr(stream, "_PAGE_BYTES", 1)
    server = serve(path)
    data = HelloDataset(server.url, labels="none")
    sampler = HelloSampler(data, batch_size=BATCH, drop_last=True)
    before = rows_fetched(server, path)
    shard = BatchSamplerShard(sampler, 2, 1, split_batches=split_batches)
    batches = []
    for batch in shard:
        data.__getitems__(batch)
        batches.append(batch)
    wait_until(idle)
    assert rows_fetched(server, path) == shown(data, batches) | before
    assert len(rows_fetched(server, path)) < COUNT


def test_what_is_needed_first_is_fetched_first(path, serve, monkeypatch):
    monkeypatch.setattr(stream, "_THREADS", 1)
    monkeypatch.setattr(stream, "_CHUNK_BYTES", 1)
    server = serve(path)
    with open_archive(server.url) as file:
        made = open_stream(file)
        rows = np.array([50, 12, 58, 33, 13, 50])
        server.ranges.clear()
        made.prefetch(np.array([1, 2]))
        made.prefetch(rows)
        wait_until(idle)
        pages = list(dict.fromkeys(made._page_of[rows].tolist()))
        first = [int(file.index.offset[made._firsts[p]]) - 512 for p in pages]
        # Of the first announcement at most one page had begun.
        assert [at for at, _ in server.ranges][-len(first) :] == first
        assert len(server.ranges) <= len(first) + 1


def test_somebody_who_waits_goes_before_what_is_only_announced(path, serve, monkeypatch):
    monkeypatch.setattr(stream, "_THREADS", 1)
    monkeypatch.setattr(stream, "_CHUNK_BYTES", 1)
    server = serve(path)
    server.delay = 0.02
    with open_archive(server.url) as file:
        made = open_stream(file)
        server.ranges.clear()
        made.prefetch(np.arange(COUNT - 20))
        assert made.read([COUNT - 1]) == [open_archive(path).read_image(COUNT - 1)]
        assert len(server.ranges) <= 3


@pytest.mark.parametrize("persistent", [False, True])
def test_forked_workers_share_what_was_fetched(path, serve, persistent):
    server = serve(path)
    loaders = []
    for source in (server.url, path):
        data = HelloDataset(source, labels="hard", seed=5, cache=0)
        sampler = HelloSampler(data, batch_size=BATCH, seed=5)
        loaders.append(
            DataLoader(
                data,
                batch_sampler=sampler,
                num_workers=2,
                multiprocessing_context="fork",
                persistent_workers=persistent,
                timeout=60,
            )
        )
    for _ in range(2):
        assert_equal(*loaders)
    assert (times_fetched(server, path) == 1).all()


def _read_all(url, folder, barrier, rows):
    with open_archive(url, cache_dir=folder) as file:
        made = open_stream(file)
        barrier.wait(30)
        made.prefetch(rows)
        for row in rows.tolist():
            assert made.read([row])


def test_processes_with_one_cache_folder_fetch_once(path, serve, tmp_path):
    server = serve(path)
    server.delay = 0.002
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    everyone = [
        context.Process(
            target=_read_all,
            args=(server.url, str(tmp_path), barrier, np.random.default_rng(k).permutation(COUNT)),
        )
        for k in range(3)
    ]
    for one in everyone:
        one.start()
    for one in everyone:
        one.join(60)
    assert [one.exitcode for one in everyone] == [0, 0, 0]
    head = 1 << 16
    start, _ = images_at(path)
    times = times_fetched(server, path)[max(0, head - start) :]
    assert times.max() == times.min() == 1
    # Later nothing at all comes, apart from the head.
    server.ranges.clear()
    assert_equal(batches_of(server.url, cache_dir=tmp_path), batches_of(path))
    assert times_fetched(server, path)[max(0, head - start) :].max() == 0


def test_a_copy_without_the_folder_does_not_fetch_twice(path, serve, tmp_path):
    server = serve(path)
    data = HelloDataset(server.url, labels="hard", seed=5)
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    server.ranges.clear()
    next(iter(HelloSampler(data, batch_size=BATCH)))
    time.sleep(0.05)
    assert idle()
    assert server.ranges == []
    # A copy that shares the folder is worth fetching for.
    data = HelloDataset(server.url, labels="hard", cache_dir=tmp_path)
    pickle.dumps(data)
    next(iter(HelloSampler(data, batch_size=BATCH)))
    wait_until(lambda: server.ranges)
    wait_until(idle)
    assert_equal([copy[3]], [HelloDataset(path, labels="hard", seed=5)[3]])


def test_a_sampler_that_was_copied_fetches_nothing(path, serve):
    server = serve(path)
    data = HelloDataset(server.url, labels="hard")
    copy = pickle.loads(pickle.dumps(HelloSampler(data, batch_size=BATCH)))  # noqa: S301
    server.ranges.clear()
    assert len(list(copy)) == COUNT // BATCH
    assert idle()
    assert server.ranges == []


@pytest.mark.parametrize("done", [0, 1, 17, 30])
def test_a_resumed_epoch_fetches_only_its_rest(path, serve, done):
    near = HelloLoader(path, batch_size=BATCH, labels="hard", seed=5)
    steps = iter(near)
    for _ in range(done):
        next(steps)
    state = json.loads(json.dumps(near.state_dict()))
    server = serve(path)
    far, rest = (
        HelloLoader(s, batch_size=BATCH, labels="hard", seed=5) for s in (server.url, path)
    )
    far.load_state_dict(state)
    rest.load_state_dict(state)
    assert_equal(far, rest)
    times = times_fetched(server, path)
    assert times.max() == 1
    order = list(HelloSampler(rest.dataset, batch_size=BATCH, seed=5))
    if 0 < done < 30:
        assert shown(rest.dataset, order[done:]) <= rows_fetched(server, path)


def test_a_spool_that_is_full_costs_only_bytes(path, serve, monkeypatch):
    with open_archive(path) as file:
        half = int(file.index.size.sum()) // 2
    monkeypatch.setattr(spool, "SPOOL_BYTES", half)
    server = serve(path)
    far, near = (batches_of(s, cache=0) for s in (server.url, path))
    rows = far.dataset._images.stream._store.rows
    assert 0 < rows < COUNT
    for _ in range(2):
        assert_equal(far, near)
    with open_archive(path) as file:
        start = images_at(path)[0]
        kept = times_fetched(server, path)[: int(file.index.offset[rows - 3]) - start]
        lost = times_fetched(server, path)[int(file.index.offset[rows + 3]) - start :]
    assert kept.max() == 1
    # A row that is shown twice in an epoch, and again in the next.
    assert lost.max() > 1


@pytest.mark.parametrize("fault", ["none", "short"])
def test_a_disk_that_is_full_is_no_error(path, serve, monkeypatch, fault):
    def write(fd, data, at):
        if fault == "none":
            raise OSError(28, "No space left on device")
        return real(fd, data[: max(1, len(data) // 2)], at)

    real = os.pwrite
    monkeypatch.setattr(spool.os, "pwrite", write)
    server = serve(path)
    assert_equal(batches_of(server.url), batches_of(path))
    if fault == "short":
        assert (times_fetched(server, path) == 1).all()


def test_spooled_bytes_are_verified(path, serve):
    server = serve(path)
    with open_archive(server.url) as file, open_archive(path) as near:
        made = open_stream(file)
        wanted = near.read_images(range(COUNT))
        assert made.read(range(COUNT)) == wanted
        os.pwrite(made._store.lock_fd, b"damage", int(made._store._starts[7]) + 100)
        server.ranges.clear()
        assert made.read(range(COUNT)) == wanted
        assert len(server.ranges) == 1


class Cut:
    """A server that breaks when it is told to."""

    def __init__(self):
        self.is_broken = False

    def __call__(self, request):
        if self.is_broken:
            request.answer("500 Internal Server Error", b"", Content_Range=None)
        return self.is_broken


def test_a_server_that_breaks_is_an_error_at_the_batch_that_needs_it(path, serve):
    cut = Cut()
    server = serve(path, cut)
    loader = batches_of(server.url, cache=0)
    stream_ = iter(loader)
    near = list(batches_of(path))
    assert_equal([next(stream_)], near[:1])
    wait_until(idle)
    # What was fetched ahead is here; the rest is not.
    cut.is_broken = True
    got = 1
    started = time.monotonic()
    with pytest.raises(HelloIOError, match=r"E_HTTP: http://127\.0\.0\.1:.*status 500"):  # noqa: PT012
        while True:
            assert_equal([next(stream_)], near[got : got + 1])
            got += 1
    assert got > READ_AHEAD
    assert time.monotonic() - started < 10
    wait_until(idle)
    cut.is_broken = False
    # The error was of its time, and what was fetched is not fetched again.
    state = HelloLoader(path, batch_size=BATCH, labels="hard", seed=5)
    steps = iter(state)
    for _ in range(got):
        next(steps)
    loader.batch_sampler.load_state_dict(state.state_dict())
    assert_equal(loader, near[got:])
    times = times_fetched(server, path)
    assert times.min() == 1


def test_a_failure_ahead_that_passes_is_none(path, serve):
    cut = Cut()
    server = serve(path, cut)
    with open_archive(server.url) as file, open_archive(path) as near:
        made = open_stream(file)
        cut.is_broken = True
        made.prefetch(np.arange(30, 40))
        wait_until(idle)
        assert made._tasks().failed
        cut.is_broken = False
        assert made.read([33, 34]) == near.read_images([33, 34])


def test_a_damaged_image_harms_only_the_batches_that_show_it(path, serve, tmp_path):
    data = bytearray(path.read_bytes())
    bad = 40
    with open_archive(path) as file:
        data[int(file.index.offset[bad]) + 200] ^= 1
        name = file.image_name(bad)
    damaged = tmp_path / "damaged.hello"
    damaged.write_bytes(data)
    server = serve(damaged)
    far = batches_of(server.url)
    near = batches_of(path)
    order = list(HelloSampler(near.dataset, batch_size=BATCH, seed=5))
    good = list(near)
    bad_batches = [k for k, batch in enumerate(order) if bad in shown(near.dataset, [batch])]
    assert 0 < len(bad_batches) < 5
    sampler = HelloSampler(far.dataset, batch_size=BATCH, seed=5)
    for k, batch in enumerate(sampler):
        if k in bad_batches:
            with pytest.raises(CorruptError, match="E_DIGEST_MEMBER") as caught:
                far.dataset.__getitems__(batch)
            assert caught.value.member == name
        else:
            items = far.dataset.__getitems__(batch)
            assert torch.equal(torch.stack([i for i, _ in items]), good[k][0])


PROGRAM = """
import os, sys, threading, time
import numpy as np
from hellofmt.archive import open_archive
from hellofmt.archive.read.stream import open_stream

file = open_archive(sys.argv[1])
made = open_stream(file)
made.prefetch(np.arange(len(file) - 20, len(file)))
print("announced", flush=True)
if sys.argv[2] == "read":
    made.read([len(file) - 1])
if sys.argv[2] == "fork":
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        # Its parent's threads and locks are not here, the row that the server gives is.
        assert threading.active_count() == 1 and made.read([5])
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.parametrize("what", ["exit", "read", "fork"])
def test_nothing_waits_for_a_server_that_says_nothing(path, serve, what):
    with open_archive(path) as file:
        late = int(file.index.offset[COUNT - 20]) - 512

    def stall(request):
        if request.end <= late:
            return False
        request.hang()
        return True

    server = serve(path, stall)
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", PROGRAM, server.url, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "announced\n"
        started = time.monotonic()
        if what == "read":
            wait_until(lambda: len(server.ranges) > 1)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - started < 8
    if what == "read":
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert process.returncode == -signal.SIGINT
    else:
        assert (process.returncode, errors) == (0, "")


def test_a_stopped_process_is_not_waited_for_without_end(path, serve, tmp_path, monkeypatch):
    server = serve(path)
    with open_archive(server.url, cache_dir=tmp_path) as file:
        made = open_stream(file)
        page = int(made._page_of[50])
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            lock_byte(made._store.lock_fd, page)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        try:
            assert not lock_byte(made._store.lock_fd, page)
            assert lock_byte(made._store.lock_fd, page - 1)
            unlock_byte(made._store.lock_fd, page - 1)
            monkeypatch.setattr(stream, "_LOCK_SECONDS", 0.1)
            assert made.read([50]) == [open_archive(path).read_image(50)]
        finally:
            os.write(go[1], b"x")
            os.waitpid(child, 0)
            for end in (*ready, *go):
                os.close(end)


def test_local_archives_have_no_stream(path, projector_only, pictures_of):
    assert HelloDataset(path)._images.stream is None
    given = HelloDataset(projector_only, images=pictures_of(5))
    assert [list(map(int, b)) for b in HelloSampler(given, batch_size=2, shuffle=False)] == [
        [0, 1],
        [2, 3],
        [4],
    ]


# torchdata's stateful protocol, Lightning's and Accelerate's habits.


@runtime_checkable
class Stateful(Protocol):
    """As torchdata defines it."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("done", [0, 1, 4, 29])
def test_a_sampler_keeps_the_stateful_protocol(path, done):
    def fresh():
        data = HelloDataset(path, labels="hard", seed=5)
        return data, HelloSampler(data, batch_size=BATCH, seed=5)

    _, whole = fresh()
    first = list(whole)
    _, sampler = fresh()
    assert isinstance(sampler, Stateful)
    # What StatefulDataLoader does: it asks after each batch it takes, and later restores the
    # sampler before it calls iter() on it, twice with workers.
    steps = iter(sampler)
    states = [sampler.state_dict()]
    for _ in range(done):
        next(steps)
        states.append(sampler.state_dict())
    assert states[-1]["next_batch"] == done
    _, other = fresh()
    other.load_state_dict(json.loads(json.dumps(states[-1])))
    assert other.state_dict() == states[-1]
    iter(other)
    rest = [*other]
    assert rest == first[done:]
    assert [i.epoch for i in rest[0]] == [0] * BATCH
    assert other.state_dict()["epoch"] == 1
    assert next(iter(other))[0].epoch == 1


def test_loaders_keep_the_stateful_protocol_and_the_usual_names(path):
    loader = HelloLoader(path, batch_size=BATCH, labels="hard")
    assert isinstance(loader, Stateful)
    assert len(loader) == len(loader.batch_sampler) == COUNT // BATCH
    # Lightning: loader.sampler.set_epoch, or loader.batch_sampler.sampler's where there is one.
    for has_epoch in (loader, loader.sampler, loader.batch_sampler):
        has_epoch.set_epoch(3)
        assert loader.state_dict()["epoch"] == 3
    data = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)
    assert data.batch_sampler is loader.sampler
    assert len(data) == len(loader)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(
    ("workers", "done"),
    [(0, 0), (0, 11), (0, 30), pytest.param(2, 0, marks=pytest.mark.slow), (2, 11)],
)
def test_a_stateful_data_loader_resumes(path, workers, done):
    def fresh():
        data = HelloDataset(path, labels="hard", seed=5)
        sampler = HelloSampler(data, batch_size=BATCH, seed=5)
        return StatefulDataLoader(data, batch_sampler=sampler, num_workers=workers)

    loader = fresh()
    epochs = [list(loader), list(loader)]
    loader = fresh()
    steps = iter(loader)
    for _ in range(done):
        next(steps)
    if done == COUNT // BATCH:
        assert next(steps, None) is None
    state = loader.state_dict()
    again = fresh()
    again.load_state_dict(state)
    if done < COUNT // BATCH:
        assert_equal(again, epochs[0][done:])
    # A state of a *finished* epoch is not tried with workers: torchdata 0.11 begins the next epoch,
    # throws it away and begins again, which a sampler that counts its epochs cannot know.
    assert_equal(again, epochs[1])
