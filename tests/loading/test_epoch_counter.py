from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import pytest
from torch import distributed

from hellofmt.loading.epoch_counter import EpochCounter


def epochs_of(counter, rows):
    return counter.epochs(rows, counter)


def test_ranks_never_count_the_same_epoch(as_rank):
    served = {0: [0, 1, 2, 2], 1: [2, 0, 1, 1, 1], 2: [0, 0, 2]}
    views = []
    for rank, rows in served.items():
        counter = EpochCounter(11)
        as_rank(rank, 3)
        epochs = epochs_of(counter, rows)
        # The k-th time, epoch kW + r.
        assert epochs == [rows[:i].count(row) * 3 + rank for i, row in enumerate(rows)]
        views += zip(rows, epochs, strict=True)
    assert len(set(views)) == len(views)


def test_an_epoch_that_was_told_is_the_same_on_every_rank(as_rank):
    views = []
    for rank in range(2):
        counter = EpochCounter(11)
        as_rank(rank, 2)
        for epoch in (3, 4):
            counter.set_epoch(epoch)
            assert epochs_of(counter, [1, 5]) == [epoch, epoch]
            # What fills up shows what nobody else does.
            views += epochs_of(counter, [1, 1])
    assert len(set(views)) == len(views) == 8
    assert min(views) >= 1 << 31
    assert max(views) < 1 << 32


def test_a_rank_that_serves_more_than_its_share_of_an_epoch_warns(as_rank):
    counter = EpochCounter(11)
    as_rank(1, 2)
    counter.set_epoch(3)
    # Of 11 rows its share is 6, and a batch may be filled up.
    epochs_of(counter, [0, 1, 2, 3])
    epochs_of(counter, [4, 5, 6, 7])
    with pytest.warns(
        UserWarning,
        match=r"rank 1 of 2 served 12 rows since set_epoch\(3\), more than its share of 11, so v",
    ):
        epochs_of(counter, [8, 9, 10, 0])
    # Once.
    epochs_of(counter, [1])


def test_a_copy_in_a_process_of_no_group_keeps_the_place(as_rank):
    counter = EpochCounter(11)
    as_rank(1, 4)
    spawned = ForkingPickler.loads(bytes(ForkingPickler.dumps(counter)))
    as_rank(0, 1)
    assert epochs_of(spawned, [0]) == [1]
    # Both count in the same memory.
    assert epochs_of(counter, [0, 1]) == [1, 0]


def test_a_process_that_is_no_worker_counts_for_itself(in_ranks):
    counter = EpochCounter(11)
    counter.set_epoch(4)
    epochs_of(counter, [1])

    def work(rank):
        distributed.barrier()
        counter.set_epoch(5 + rank)
        distributed.barrier()
        return [epochs_of(counter, [1, 2]), epochs_of(counter, [2])[0] >= 1 << 31]

    assert in_ranks(2, work) == [[[5, 5], True], [[6, 6], True]]
    assert epochs_of(counter, [1, 2]) == [5, 4]
