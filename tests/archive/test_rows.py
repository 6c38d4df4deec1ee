import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hellofmt.archive.format.layout import BLOCK, header, image_name, padded
from hellofmt.archive.format.rows import cut_windows, image_headers, padded_rows, padding_faults


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["png", "jpeg", "webp"]),
    st.sampled_from([1, 9999, 10_000, 10_001, 65_536]),
    st.sampled_from([0, 7, 999_998, 9_999_990]),
    st.lists(st.tuples(st.integers(0, 2**33 - 1), st.floats(0, 1)), min_size=1, max_size=9),
)
def test_headers_are_those_of_the_layout(codec, classes, first, kinds):
    size = np.array([size for size, _ in kinds], np.int64)
    label = np.array([int(place * (classes - 1)) for _, place in kinds], np.int64)
    for total in (first + len(kinds), 10_000_000):
        found = image_headers(label, first, size, codec, classes, total)
        for i, one in enumerate(found):
            name = image_name(int(label[i]), first + i, codec, classes, total)
            assert one.tobytes() == header(name, int(size[i]))


def test_padding_faults():
    size = np.array([1, 511, 512, 513, 1024, 1025])
    last = np.zeros((6, BLOCK), np.uint8)
    for i, used in enumerate((1, 511, 512, 1, 512, 1)):
        last[i, :used] = 255
    assert padding_faults(last, size).tolist() == [False] * 6
    for i, used in enumerate((1, 511, 512, 1, 512, 1)):
        for at in {used, BLOCK - 1} - {BLOCK, used - 1}:
            wrong = last.copy()
            wrong[i, at] ^= 1
            assert padding_faults(wrong, size).tolist() == [row == i for row in range(6)]


def test_padded_rows():
    size = np.arange(1, 2000)
    assert padded_rows(size).tolist() == [padded(n) for n in size.tolist()]


@pytest.mark.parametrize("most", [1, 10, 11, 25, 1000])
def test_windows(most):
    length = np.array([3, 4, 3, 20, 1, 1, 9, 11, 2])
    end = 100 + np.cumsum(length)
    windows = list(cut_windows(end - length, end, most))
    assert [row for window in windows for row in range(*window)] == list(range(9))
    for first, after in windows:
        assert after == first + 1 or length[first:after].sum() <= most
        # None could have been longer.
        assert after == 9 or length[first : after + 1].sum() > most
