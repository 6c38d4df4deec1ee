"""Rules for the whole suite: what CI promises to run may not be skipped silently."""

import multiprocessing
import os
import signal
from importlib import metadata

import pytest

from hellofmt_cli import console

# What `HELLOFMT_REQUIRE=interp,aot` names must run: a skip there is an error, not a shrug.
_REQUIRED = frozenset(filter(None, os.environ.get("HELLOFMT_REQUIRE", "").split(",")))


# What `HELLOFMT_VERSIONS=triton==3.6.0` names is what these tests are run for.
_VERSIONS = os.environ.get("HELLOFMT_VERSIONS", "")


def pytest_sessionstart():
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # In the background of a shell. An ignored signal stays ignored in every program that a test
        # starts, also in those it interrupts; a handler does not outlive their exec. This one does
        # nothing, so the suite itself is as deaf as it was.
        signal.signal(signal.SIGINT, lambda _number, _frame: None)
    for requirement in filter(None, _VERSIONS.split(",")):
        name, _, wanted = requirement.partition("==")
        if metadata.version(name) != wanted:
            message = f"HELLOFMT_VERSIONS demands {requirement}, got {metadata.version(name)}"
            raise pytest.UsageError(message)


def pytest_collection_modifyitems(items):
    """Files whose tests fork ranks come first: torch refuses gradients in processes that are
    forked once something has started autograd's threads, as torch.compile does."""
    forking = {item.path for item in items if "in_ranks" in item.fixturenames}
    items.sort(key=lambda item: item.path not in forking)


@pytest.fixture(autouse=True)
def patient_console(request, monkeypatch):
    """Name no stage that is slow only because the machine is busy; the console's tests do."""
    if request.path.name != "test_console.py":
        for name in ("_NAMED_SECONDS", "_FIRST_SECONDS"):
            monkeypatch.setattr(console, name, 3600.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and _REQUIRED & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but HELLOFMT_REQUIRE demands it"
    return report


_RANKS_SECONDS = 300


def _rank(work, rank, world, store, end):
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    try:
        end.send(work(rank))
        # Who leaves while others still connect makes them fail.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def in_ranks(tmp_path_factory):
    """``in_ranks(world, work)``: what ``work(rank)`` returns in each forked process over gloo."""

    def run(world, work):
        context, started = multiprocessing.get_context("fork"), []
        store = tmp_path_factory.mktemp("ranks") / "store"
        try:
            for rank in range(world):
                mine, theirs = context.Pipe(duplex=False)
                arguments = (work, rank, world, store, theirs)
                process = context.Process(target=_rank, args=arguments)
                process.start()
                # Closed here, the end of a rank that dies is an EOFError and no endless wait.
                theirs.close()
                started.append((process, mine))
            for _, mine in started:
                # Processes that wait for each other would wait for half an hour.
                assert mine.poll(_RANKS_SECONDS), "a rank gave nothing in time"
            got = [mine.recv() for _, mine in started]
            for process, _ in started:
                process.join(60)
            assert [process.exitcode for process, _ in started] == [0] * world
            return got
        finally:
            for process, mine in started:
                process.kill()
                process.join()
                mine.close()

    return run


@pytest.fixture
def as_rank(monkeypatch):
    """``as_rank(rank, world)``: this process as one of a process group."""
    from torch import distributed

    def become(rank, world):
        monkeypatch.setattr(distributed, "is_initialized", lambda: world > 1)
        monkeypatch.setattr(distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(distributed, "get_world_size", lambda: world)

    return become
