"""Images in memory: what cannot be trained on, and splits."""

import numpy as np
import pytest

from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError
from hellofmt.sources import ArrayImages, stratified_split

TWO = (ClassLine("a", ("a",)), ClassLine("b", ("b",)))


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "message"),
    [
        (np.zeros((2, 8, 8, 3)), [0, 1], TWO, "pixels: expected uint8 .*, got float64"),
        (np.zeros((2, 8, 8), np.uint8), [0, 1], TWO, r"pixels: expected .* got uint8 \(2, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0], TWO, r"labels: expected int64 \(2,\), got"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 0], TWO[:1], "training needs at least two classes"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 2], TWO, "labels: expected 0 to 1, got 0 to 2"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 0], TWO, "class `b` has no images"),
        # Whatever an archive would refuse in the end.
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 1], (TWO[0], TWO[0]), "class 1: duplicate key a"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 1], (TWO[0], ClassLine("caf\udce9", ("x",))),
         r"class 1: not UTF-8: caf\\udce9"),
    ],
)  # fmt: skip
def test_unusable_arrays(pixels, labels, classes, message):
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        ArrayImages(pixels, np.array(labels, np.int64), classes)


def test_a_subset_keeps_the_classes():
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(3, 3)
    source = ArrayImages(pixels, np.array([0, 1, 1, 0], np.int64), TWO)
    part = source.subset(np.array([3, 0, 1], np.int64))
    assert part.labels.tolist() == [0, 0, 1]
    assert part.pixels[:, 0, 0, 0].tolist() == [3, 0, 1]
    assert part.classes == source.classes


def test_a_split_is_stratified_disjoint_and_complete():
    labels = np.repeat([0, 1, 2], [50, 30, 21])
    rest, out = stratified_split(labels, 20, seed=4)
    assert np.bincount(labels[out]).tolist() == [10, 6, 4]
    assert sorted([*rest, *out]) == list(range(101))
    again = stratified_split(labels, 20, seed=4)[1]
    assert np.array_equal(out, again)
    assert not np.array_equal(out, stratified_split(labels, 20, seed=5)[1])


@pytest.mark.parametrize("held_out", [-1, 4])
def test_a_split_out_of_range(held_out):
    with pytest.raises(ValueError, match=f"held_out: expected 0 to 3, got {held_out}"):
        stratified_split(np.array([0, 1, 1]), held_out, seed=0)
