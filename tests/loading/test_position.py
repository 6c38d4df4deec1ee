"""A view is a function of (seed, epoch, index): not of workers, ranks, batches or restarts."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hellofmt.loading import HelloDataset, HelloSampler
from hellofmt.rng import order

ROWS, SEED, GLOBAL_BATCH = 26, 11, 8
STEPS = -(-ROWS // GLOBAL_BATCH)
# Rows, view parameters and stored pixels of the first two epochs; PNG and integers only, so frozen
# and the same on every machine.
GOLDEN_EPOCHS = "84e755466e6dd868e612d158a41a2a99c75184780b7ffefc2d7f044dd79cd31f"


class Told(HelloDataset):
    """Items that say what they are: row, epoch, padding or not, view parameters, view."""

    def __getitems__(self, indices):
        rows, epochs = np.array(indices, np.int64), np.array([i.epoch for i in indices])
        views, table = self.draw(rows, epochs)
        facts = [(int(i), i.epoch, i.is_padding) for i in indices]
        return list(zip(facts, table, views, strict=True))


def told(batch):
    """Items as they were made; stacking would hide which is which."""
    return batch


@pytest.fixture(scope="module")
def path(archive_of):
    return archive_of(
        count=ROWS, with_projector=False, mix="cutmix", mix_probability="0.5", shuffle=2
    )


@pytest.fixture(scope="module")
def expected(path):
    """Parameters and views of every row of three epochs, all rows at once."""
    dataset = HelloDataset(path, labels="none", seed=SEED)
    drawn = [dataset.draw(np.arange(ROWS), epoch) for epoch in range(3)]
    return [table for _, table in drawn], [views for views, _ in drawn]


class Ranks:
    """A training run's loaders, one per rank, and what each has consumed."""

    def __init__(self, path, *, world, batch_size, workers, only=None):
        self.samplers, self.loaders = [], []
        for rank in range(world) if only is None else only:
            dataset = Told(path, labels="none", seed=SEED)
            sampler = HelloSampler(
                dataset, batch_size=batch_size, num_replicas=world, rank=rank, seed=SEED
            )
            loader = DataLoader(
                dataset, batch_sampler=sampler, num_workers=workers, collate_fn=told
            )
            self.samplers.append(sampler)
            self.loaders.append(loader)

    def resume(self, state):
        for sampler in self.samplers:
            sampler.load_state_dict(state)
        return self

    def batches(self, count=None):
        """Global batches of one pass, of which the consumer takes ``count``."""
        streams = [iter(loader) for loader in self.loaders]
        parts = zip(*(itertools.islice(stream, count) for stream in streams), strict=True)
        return [functools.reduce(operator.iadd, part, []) for part in parts]

    def state(self, done):
        states = [json.loads(json.dumps(sampler.state_dict(done))) for sampler in self.samplers]
        assert all(state == states[0] for state in states)
        return states[0]


def check(batches, expected, epoch, start=0, complete=True):
    """Rows in the epoch's order from position ``start`` on, each with its own view."""
    tables, views = expected
    items = functools.reduce(operator.iadd, batches, [])
    for (row, at, _), table, view in items:
        assert at == epoch
        assert np.array_equal(table, tables[epoch][row])
        assert torch.equal(view, views[epoch][row])
    real = [row for (row, _, is_padding), _, _ in items if not is_padding]
    if complete:
        assert real == order(SEED, epoch, ROWS)[start:].tolist()
    return real


@pytest.mark.parametrize("batch_size", [1, 3, 8, 40])
@pytest.mark.parametrize("world", range(1, 9))
def test_ranks_and_batch_sizes_change_no_view(path, expected, world, batch_size):
    ranks = Ranks(path, world=world, batch_size=batch_size, workers=0)
    for epoch in range(2):
        check(ranks.batches(), expected, epoch)


QUICK_WORLDS = {1: (1, 3), 3: (1, 2)}


@pytest.mark.parametrize(
    ("workers", "world"),
    [
        pytest.param(n, world, marks=() if world in QUICK_WORLDS[n] else pytest.mark.slow)
        for n in (1, 3)
        for world in range(1, 9)
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_change_no_view(path, expected, workers, world):
    ranks = Ranks(path, world=world, batch_size=3, workers=workers)
    for epoch in range(2):
        check(ranks.batches(), expected, epoch)


def test_two_epochs_are_the_golden_ones(path):
    ranks = Ranks(path, world=2, batch_size=4, workers=1)
    digest = hashlib.sha256()
    pixels = HelloDataset(path, labels="none").pixels
    for (row, epoch, is_padding), table, _ in itertools.chain.from_iterable(
        itertools.chain(ranks.batches(), ranks.batches())
    ):
        if not is_padding:
            digest.update(np.array([row, epoch, *table], "<i8").tobytes())
            digest.update(hashlib.sha256(pixels(row).tobytes()).digest())
    assert digest.hexdigest() == GOLDEN_EPOCHS


# (workers, ranks) of a run, of the run that resumes it, and of the one that resumes that.
RUNS = (
    ((0, 1), (3, 2), (1, 4)),
    ((3, 2), (0, 8), (1, 1)),
    ((1, 4), (3, 1), (0, 2)),
)


@pytest.mark.parametrize(
    ("runs", "done"),
    [
        # Each position and each change of workers and ranks at least once.
        pytest.param(runs, done, marks=() if (k + done) % 3 == 0 else pytest.mark.slow)
        for k, runs in enumerate(RUNS)
        for done in range(STEPS + 1)
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_run_resumed_twice_elsewhere_goes_on_where_it_was(path, expected, runs, done):
    first, second, third = (
        Ranks(path, workers=workers, world=world, batch_size=GLOBAL_BATCH // world)
        for workers, world in runs
    )
    first.batches()
    seen = check(first.batches(done), expected, 1, complete=False) if done else []
    # Only what was consumed counts: by now workers have made more.
    state = first.state(done) if done else {**first.state(STEPS), "epoch": 1, "next_batch": 0}
    epoch = 1 + done // STEPS
    assert (state["epoch"], state["next_batch"]) == (epoch, done % STEPS)
    second.resume(state)
    seen += check(second.batches(1), expected, epoch, complete=False)
    third.resume(second.state(1))
    if done == STEPS - 1:
        # That was the last batch: what follows is the next epoch, whole.
        assert seen == order(SEED, 1, ROWS).tolist()
        check(third.batches(), expected, 2)
        return
    position = (done % STEPS + 1) * GLOBAL_BATCH
    seen += check(third.batches(), expected, epoch, start=position)
    both = order(SEED, 1, ROWS).tolist() + order(SEED, 2, ROWS).tolist()
    assert seen == both[: len(seen)]
    assert len(seen) == ROWS * (1 + done // STEPS)
