from __future__ import annotations

import copy
import functools
import hashlib
import json
import multiprocessing
import operator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader, DistributedSampler, Subset

from hellofmt.errors import StateError, UserInputError
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.loading.sampler import HelloSampler
from hellofmt.rng import order

ID = "sha256:" + "0" * 64
# Frozen: another order is another training run from the same seed.
GOLDEN_ORDER = "95c4f19139c55a8e6abe7a3e5a180019667009d78ccf6c4f1353f7e2f5c3eca0"


@dataclass
class Rows:
    """What a sampler needs of a data set; an item tells its row and epoch."""

    count: int
    id: str = ID

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor([index, index.epoch, index.is_padding])


def sampler_of(count, batch_size, **options):
    return HelloSampler(Rows(count), batch_size=batch_size, **options)


def ints(batches):
    return [[int(i) for i in batch] for batch in batches]


def test_the_order_is_the_golden_one():
    rows = [i for batch in sampler_of(10_000, 64, seed=7) for i in batch]
    assert hashlib.sha256(np.array(rows, "<i8").tobytes()).hexdigest() == GOLDEN_ORDER
    assert np.array_equal(rows, order(7, 0, 10_000))


WORLDS = (1, 2, 3, 4, 8)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [1, 3, 7, 31, 48, 64, 97])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_ranks_are_disjoint_complete_and_equally_long(count, batch_size, drop_last):
    for world in WORLDS:
        options = {"num_replicas": world, "seed": 3, "drop_last": drop_last}
        if drop_last and count < batch_size * world:
            continue
        ranks = [sampler_of(count, batch_size, rank=r, **options) for r in range(world)]
        passes = [list(sampler) for sampler in ranks]
        lengths = {len(batches) for batches in passes} | {len(sampler) for sampler in ranks}
        assert len(lengths) == 1
        # Every rank's batch b has the same number of rows, or an all_reduce would hang.
        for batches in zip(*passes, strict=True):
            assert len({len(batch) for batch in batches}) == 1
        everything = [i for batches in passes for batch in batches for i in batch]
        real = [int(i) for i in everything if not i.is_padding]
        padding = len(everything) - len(real)
        whole = count - count % (batch_size * world)
        if drop_last:
            assert sorted(real) == sorted(order(3, 0, count)[:whole].tolist())
            assert padding == 0
            assert {sampler.dropped for sampler in ranks} == {count - whole}
        else:
            assert sorted(real) == list(range(count))
            assert padding <= world - 1
            assert {sampler.dropped for sampler in ranks} == {0}
        for sampler, batches in zip(ranks, passes, strict=True):
            flags = [[i.is_padding for i in batch] for batch in batches]
            assert [sum(batch) for batch in flags] == [
                sampler.padding(b) for b in range(len(sampler))
            ]
            assert all(batch == sorted(batch) for batch in flags)


def test_the_same_global_batch_on_any_number_of_ranks():
    whole = ints(sampler_of(50, 24, seed=1))
    for world in (2, 3, 4, 8):
        ranks = [
            ints(sampler_of(50, 24 // world, seed=1, num_replicas=world, rank=r))
            for r in range(world)
        ]
        joined = [functools.reduce(operator.iadd, parts, []) for parts in zip(*ranks, strict=True)]
        assert joined[:2] == whole[:2]
        assert joined[2][:2] == whole[2]


def test_padding_repeats_the_start_of_the_order():
    for count, world in ((10, 4), (1, 8), (3, 8)):
        ranks = [list(sampler_of(count, 4, num_replicas=world, rank=r)) for r in range(world)]
        padding = [int(i) for batches in ranks for i in batches[-1] if i.is_padding]
        expected = np.resize(order(0, 0, count), len(padding)).tolist()
        assert len(padding) == -count % world
        assert padding == expected


def test_one_rank_ends_with_a_short_batch():
    batches = list(sampler_of(10, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert not any(i.is_padding for batch in batches for i in batch)


def test_every_pass_is_the_next_epoch():
    sampler = sampler_of(20, 8, seed=5)
    for epoch in range(3):
        batches = list(sampler)
        assert functools.reduce(operator.iadd, ints(batches), []) == order(5, epoch, 20).tolist()
        assert {i.epoch for batch in batches for i in batch} == {epoch}
    sampler.set_epoch(9)
    assert functools.reduce(operator.iadd, ints(sampler), []) == order(5, 9, 20).tolist()
    assert functools.reduce(operator.iadd, ints(sampler), []) == order(5, 10, 20).tolist()


def test_sequential_order_still_counts_epochs():
    sampler = sampler_of(5, 2, shuffle=False)
    for epoch in range(2):
        batches = list(sampler)
        assert ints(batches) == [[0, 1], [2, 3], [4]]
        assert batches[0][0].epoch == epoch


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {}),
        (2, {}),
        (2, {"persistent_workers": True}),
    ],
)
def test_the_epoch_reaches_every_kind_of_worker(workers, options):
    sampler = sampler_of(9, 4, seed=2)
    loader = DataLoader(Rows(9), batch_sampler=sampler, num_workers=workers, **options)
    for epoch in (0, 1, 6):
        if epoch == 6:
            sampler.set_epoch(6)
        got = torch.cat(list(loader))
        assert got[:, 0].tolist() == order(2, epoch, 9).tolist()
        assert got[:, 1].tolist() == [epoch] * 9


def test_an_index_survives_pickling_and_copying():
    index = EpochIndex(7, 3, is_padding=True)
    queue = multiprocessing.SimpleQueue()
    queue.put([index])
    for twin in (queue.get()[0], copy.copy(index), copy.deepcopy(index)):
        assert (int(twin), twin.epoch, twin.is_padding) == (7, 3, True)
    assert [10, 20][EpochIndex(1, 0)] == 20


@pytest.mark.parametrize("done", [0, 1, 3, 6, 7])
@pytest.mark.parametrize("world", [1, 2])
def test_resuming_gives_the_rest_bit_for_bit(done, world):
    def fresh(rank):
        return sampler_of(54, 8 // world, seed=4, num_replicas=world, rank=rank)

    for rank in range(world):
        reference = fresh(rank)
        list(reference)
        expected = list(reference)[done:] + list(reference)
        first = fresh(rank)
        first.set_epoch(1)
        stream = iter(first)
        # Workers run ahead: two batches more were asked for than were finished.
        for _ in range(min(done + 2, 7)):
            next(stream)
        state = json.loads(json.dumps(first.state_dict(done)))
        assert len(json.dumps(state)) < 1024
        second = fresh(rank)
        second.load_state_dict(state)
        got = (list(second) if done < 7 else []) + list(second)
        assert ints(got) == ints(expected)
        assert [[i.epoch for i in b] for b in got] == [[i.epoch for i in b] for b in expected]


def test_resuming_twice_and_announcing_the_epoch():
    sampler = sampler_of(54, 8, seed=4)
    whole = ints(sampler)
    state = sampler_of(54, 8, seed=4).state_dict(2)
    second = sampler_of(54, 8, seed=4)
    second.load_state_dict(state)
    stream = iter(second)
    next(stream)
    again = second.state_dict(1)
    assert again == {**state, "next_batch": 3}
    third = sampler_of(54, 8, seed=4)
    third.load_state_dict(again)
    # The usual loop announces its epoch, which must not lose the position in it.
    third.set_epoch(0)
    assert len(third) == 7
    assert ints(third) == whole[3:]
    third.load_state_dict(again)
    with pytest.warns(UserWarning, match="discards the position that was loaded, batch 3 of epoc"):
        third.set_epoch(1)
    assert functools.reduce(operator.iadd, ints(third), []) == order(4, 1, 54).tolist()


def test_another_number_of_ranks_may_resume_the_same_global_batch():
    state = sampler_of(48, 12, seed=4).state_dict(1)
    ranks = [sampler_of(48, 6, seed=4, num_replicas=2, rank=r) for r in range(2)]
    for sampler in ranks:
        sampler.load_state_dict(state)
    joined = [a + b for a, b in zip(*(ints(s) for s in ranks), strict=True)]
    assert joined == ints(sampler_of(48, 12, seed=4))[1:]


def state_of(**changes):
    return {**sampler_of(48, 8).state_dict(2), **changes}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (state_of(id="sha256:" + "1" * 64), "E_STATE_DIGEST: state of another file; expected"),
        (state_of(seed=1), "E_STATE_SHAPE: `seed` differs; expected 0, got 1"),
        (state_of(order="sequential"), "E_STATE_SHAPE: `order` differs; expected shuffled, got se"),
        (
            state_of(global_batch=16),
            "E_STATE_SHAPE: `global_batch` differs inside an epoch; expected 8, got 16",
        ),
        (
            state_of(next_batch=6),
            "E_STATE_SHAPE: `next_batch` is beyond the epoch; expected 0 to 5, got 6",
        ),
        (state_of(v=2), "E_STATE_SHAPE: `v` differs; expected 1, got 2"),
        (
            state_of(epoch=-1),
            "E_STATE_SHAPE: `epoch` is out of range; expected an integer from 0 to 4294967295",
        ),
        (state_of(epoch=True), "E_STATE_SHAPE: `epoch` is out of range"),
        ({}, "E_STATE_SHAPE: unknown form of state; expected the keys"),
        (state_of(x=1), "E_STATE_SHAPE: unknown form of state; expected the keys"),
    ],
)
def test_a_state_of_something_else_is_refused(state, expected):
    sampler = sampler_of(48, 8)
    with pytest.raises(StateError) as caught:
        sampler.load_state_dict(state)
    assert str(caught.value).startswith(expected)
    assert ints(sampler) == ints(sampler_of(48, 8))


def test_another_global_batch_may_start_an_epoch():
    state = sampler_of(48, 8).state_dict(6)
    assert (state["epoch"], state["next_batch"]) == (1, 0)
    sampler = sampler_of(48, 16)
    sampler.load_state_dict(state)
    assert functools.reduce(operator.iadd, ints(sampler), []) == order(0, 1, 48).tolist()


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (4, {"batch_size": 0}, "`batch_size`: expected at least 1, got 0"),
        (0, {"batch_size": 1}, "`dataset`: expected at least 1 row, got 0"),
        (4, {"batch_size": 1, "seed": -1}, "`seed`: expected 0 <= seed < 2"),
        (4, {"batch_size": 1, "num_replicas": 0}, "`num_replicas`: expected at least 1, got 0"),
        (4, {"batch_size": 1, "num_replicas": 2, "rank": 2}, "`rank`: expected 0 to 1, got 2"),
        (
            7,
            {"batch_size": 4, "num_replicas": 2, "drop_last": True},
            r"7 rows are fewer than one global batch; expected at least 8 \(4 x 2 ranks\)",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(count, options, expected):
    with pytest.raises(ValueError, match=expected):
        HelloSampler(Rows(count), **options)


def test_calls_out_of_range_are_refused():
    sampler = sampler_of(10, 4)
    with pytest.raises(ValueError, match="`epoch`: expected 0 <= epoch < 2"):
        sampler.set_epoch(2**32)
    with pytest.raises(ValueError, match="`batches_done`: expected 0 to 3, got 4"):
        sampler.state_dict(4)
    with pytest.raises(ValueError, match="`batches_done`: expected 0 to 3, got -1"):
        sampler.state_dict(-1)


def run_rank(_rank):
    batches = list(HelloSampler(Rows(11), batch_size=2, seed=6))
    return ints(batches), sum(i.is_padding for batch in batches for i in batch)


@pytest.mark.parametrize("world", [2, 3])
def test_rank_and_world_come_from_torch_distributed(in_ranks, world):
    got = in_ranks(world, run_rank)
    for rank in range(world):
        expected = sampler_of(11, 2, seed=6, num_replicas=world, rank=rank)
        assert got[rank][0] == ints(expected)
    assert sum(pads for _, pads in got) == -11 % world


def test_ranks_are_asked_when_a_pass_begins(as_rank):
    sampler = sampler_of(11, 2, seed=6)
    assert len(sampler) == 6
    as_rank(1, 3)
    assert len(sampler) == 2
    assert ints(sampler) == ints(sampler_of(11, 2, seed=6, num_replicas=3, rank=1))
    assert sampler.state_dict()["global_batch"] == 6
    assert sampler.padding(1) == sampler_of(11, 2, num_replicas=3, rank=1).padding(1)
    as_rank(0, 2)
    # The pass that is over was of 3 ranks, and the next one is of 2.
    state = sampler.state_dict()
    assert (state["global_batch"], state["epoch"], state["next_batch"]) == (6, 1, 0)
    sampler.load_state_dict(state)
    fresh = sampler_of(11, 2, seed=6, num_replicas=2, rank=0)
    fresh.set_epoch(1)
    assert ints(sampler) == ints(fresh)


def test_what_drop_last_drops_is_as_many_ranks_as_there_are(as_rank):
    sampler = sampler_of(7, 2, drop_last=True)
    assert (len(sampler), sampler.dropped) == (3, 1)
    as_rank(0, 2)
    assert (len(sampler), sampler.dropped) == (1, 3)
    as_rank(0, 4)
    with pytest.raises(ValueError, match="7 rows are fewer than one global batch; expected at l"):
        next(iter(sampler))


def test_a_position_among_other_ranks_is_refused_whenever_it_shows(as_rank):
    state = sampler_of(48, 4, num_replicas=2, rank=0).state_dict(3)
    sampler = sampler_of(48, 4)
    text = "`global_batch` differs inside an epoch; expected 4, got 8; without a process group ther"
    with pytest.raises(StateError, match=text):
        sampler.load_state_dict(state)
    as_rank(0, 2)
    sampler.load_state_dict(state)
    as_rank(0, 4)
    with pytest.raises(StateError, match="expected 16, got 8"):
        next(iter(sampler))


def shards(processes, **options):
    """Batches of each process, and lengths, as Accelerate makes them."""
    samplers = [sampler_of(30, 4, seed=1) for _ in range(processes)]
    return [
        BatchSamplerShard(sampler, processes, rank, **options)
        for rank, sampler in enumerate(samplers)
    ]


def test_accelerate_gets_undivided_batches_and_its_own_length(as_rank):
    as_rank(0, 3)
    got = [ints(shard) for shard in shards(3)]
    for rank, batches in enumerate(got):
        # The last global batch is short, and filled up by Accelerate.
        expected = ints(sampler_of(30, 4, seed=1, num_replicas=3, rank=rank))
        assert batches[:2] == expected[:2]
    assert {row for batches in got for batch in batches for row in batch} == set(range(30))
    assert [len(shard) for shard in shards(3)] == [3, 3, 3]
    # Not asked by Accelerate.
    assert len(sampler_of(30, 4)) == 3


def test_accelerate_and_the_state(as_rank):
    as_rank(1, 2)
    shard = shards(2)[1]
    whole = ints(shard)
    sampler = shard.batch_sampler
    assert sampler.state_dict(2) == sampler_of(30, 4, seed=1, num_replicas=2, rank=0).state_dict(2)
    with pytest.raises(ValueError, match="`batches_done`: expected the number of batches that the"):
        sampler.state_dict()
    again = shards(2)[1]
    again.batch_sampler.load_state_dict(sampler.state_dict(2))
    assert ints(again)[:1] == whole[2:3]
    pieces = shards(2, split_batches=True)[1]
    list(pieces)
    assert pieces.batch_sampler.state_dict(2)["global_batch"] == 4
    twice = shards(2)[0]
    twice.batch_sampler = sampler_of(30, 4, num_replicas=2, rank=0)
    with pytest.raises(UserInputError, match="E_OPTION: `num_replicas` of a sampler that Acceler"):
        list(twice)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("my.hello", r"expected a HelloDataset, got str: pass HelloDataset\(PATH\)"),
        (Path("my.hello"), r"got PosixPath: pass HelloDataset\(PATH\)"),
        (Subset(Rows(4), [1]), "got Subset: pass its `.dataset`, whole"),
        (DataLoader(Rows(4)), "got DataLoader: pass its `.dataset`, whole"),
        ([1, 2, 3], "expected a HelloDataset, got list"),
        (None, "expected a HelloDataset, got NoneType"),
        (
            DistributedSampler(Rows(4), num_replicas=1, rank=0),
            r"`dataset` is a DistributedSampler, .* pass Trainer\(use_distributed_sampler=False\)",
        ),
    ],
)
def test_what_is_no_data_set_is_refused(dataset, expected):
    with pytest.raises(UserInputError, match=f"E_OPTION: .*{expected}"):
        HelloSampler(dataset, batch_size=2, drop_last=False)
