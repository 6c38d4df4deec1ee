"""The counter RNG against Random123's vector, NumPy's own Philox and exact integers."""

import numpy as np
import pytest

from hellofmt.rng import Stream, below, order, uniform, words


def test_known_answers():
    zero = words(0, 0, 0, 0, 4)
    assert [f"{w:016x}" for w in zero] == [
        "16554d9eca36314c",
        "db20fe9d672d0fdc",
        "d7e772cee186176b",
        "7e68b68aec7ba23b",
    ]
    other = words(1, 2, 3, 4, 4, start=20)
    assert [f"{w:016x}" for w in other] == [
        "6a2477450fc371da",
        "f5d1dab0d6bcbca8",
        "8d37de6b3b8e8fd7",
        "2c3319e4ad372f52",
    ]


@pytest.mark.parametrize(
    ("seed", "epoch", "stream", "index"),
    [(7, 3, 2, 5), (2**64 - 1, 2**32 - 1, 9, 2**40), (0, 1, 1, 0), (2**63, 0, 5, 1)],
)
def test_equals_numpy_philox(seed, epoch, stream, index):
    # NumPy increments before its first block, so block j is what it gives from counter j - 1.
    key = np.array([seed, (epoch << 32) | stream], np.uint64)
    oracle = np.random.Philox(key=key, counter=np.array([8, 0, 0, index], np.uint64))
    assert np.array_equal(words(seed, epoch, stream, index, 41, start=36), oracle.random_raw(41))


def test_a_word_depends_on_its_coordinates_alone():
    indices = np.array([5, 0, 70_000, 5])
    table = words(3, 1, Stream.VIEWS, indices, 11, start=2)
    for row, index in zip(table, indices, strict=True):
        assert np.array_equal(row, words(3, 1, Stream.VIEWS, int(index), 13)[2:])
    long = words(3, 1, Stream.BASE, 9, 300_001)
    assert np.array_equal(long[299_990:], words(3, 1, Stream.BASE, 9, 11, start=299_990))
    many = words(3, 1, Stream.VIEWS, np.arange(70_000), 5)
    assert np.array_equal(many[69_999], words(3, 1, Stream.VIEWS, 69_999, 5))


def test_uniform_and_below_are_exact():
    raw = np.array([0, 1, 2**11 - 1, 2**11, 2**63, 2**64 - 1], np.uint64)
    assert uniform(raw).tolist() == [(int(w) >> 11) / 2**53 for w in raw]
    raw = np.concatenate([raw, words(1, 0, 0, 0, 1000)])
    for n in (1, 2, 3, 10, 997, 21_841, 2**31 - 1, 2**32 - 1):
        assert below(raw, n).tolist() == [(int(w) * n) >> 64 for w in raw]


def test_order_is_a_permutation_that_differs_by_epoch_and_seed():
    first = order(0, 0, 1000)
    assert sorted(first.tolist()) == list(range(1000))
    keys = [int(w) for w in words(0, 0, Stream.ORDER, 0, 1000)]
    assert first.tolist() == sorted(range(1000), key=lambda i: (keys[i], i))
    assert first.tolist() != order(0, 1, 1000).tolist()
    assert first.tolist() != order(1, 0, 1000).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: words(2**64, 0, 0, 0, 1), "seed: expected 0 <= seed < 2**64"),
        (lambda: words(0, -1, 0, 0, 1), "epoch: expected 0 <= epoch < 2**32"),
        (lambda: words(0, 0, 2**32, 0, 1), "stream: expected 0 <= stream < 2**32"),
        (lambda: words(0, 0, 0, 0, -1), "count >= 0"),
        (lambda: words(0, 0, 0, -1, 1), "index: expected integers >= 0"),
    ],
)
def test_coordinates_out_of_range(call, message):
    with pytest.raises(ValueError, match="expected") as caught:
        call()
    assert message in str(caught.value)
