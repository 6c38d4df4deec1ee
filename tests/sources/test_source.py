"""What every source has in common: views of it, digests, and marks that forks share."""

import copy
import multiprocessing
import os

import numpy as np
import pytest

from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError
from hellofmt.sources import ArrayImages, decode_centre, open_source
from hellofmt.sources.decode import ORIENTED

TWO = (ClassLine("a", ("a",)), ClassLine("b", ("b",)))


@pytest.fixture
def root(tree, image):
    root = tree("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png")
    for number, path in enumerate(sorted(root.glob("*/*"))):
        path.write_bytes(image(colour=(number, 0, 0)))
    return root


def colours(source):
    return [int(decode_centre(source, row, 8)[0, 0, 0]) for row in range(len(source))]


def test_a_subset_of_a_subset_is_a_view_of_the_listing(root):
    source = open_source(root)
    part = source.subset(np.array([4, 2, 0])).subset(np.array([2, 0]))
    assert part.labels.tolist() == [0, 1]
    assert (part.name_of(1), part.path_of(1)) == (f"{root}/b/2.png",) * 2
    assert colours(part) == [0, 4]
    assert part.classes == source.classes


def test_digests(root, tmp_path):
    source = open_source(root)
    digest, portable = source.digest(), source.portable_digest()
    assert open_source(root).digest() == digest
    rows = np.array([0, 4])
    assert len({digest, source.subset(rows).digest(), source.subset(rows[::-1]).digest()}) == 3
    lines = [ClassLine("a", ("x",)), ClassLine("b", ("y",))]
    assert open_source(root, classes=lines).digest() != digest
    # A copy elsewhere is the same set, of other times.
    elsewhere = tmp_path / "other"
    root.rename(elsewhere)
    assert open_source(elsewhere).digest() == digest
    os.utime(elsewhere / "a" / "1.png", ns=(0, 0))
    assert open_source(elsewhere).digest() != digest
    assert open_source(elsewhere).portable_digest() == portable
    with (elsewhere / "a" / "1.png").open("ab") as stream:
        stream.write(b"x")
    assert open_source(elsewhere).portable_digest() != portable


def test_digests_of_arrays_are_of_their_values():
    pixels, labels = np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1])
    digest = ArrayImages(pixels, labels, TWO).digest()
    assert ArrayImages(pixels.copy(), labels, TWO, "other").digest() == digest
    pixels[1, 3, 3, 2] = 1
    assert ArrayImages(pixels, labels, TWO).digest() != digest


def test_what_forks_meet_is_known_to_all(root):
    source = open_source(root, skips_unreadable=True)
    part = source.subset(np.array([0, 1, 3]))

    def work():
        part.note(1, [ORIENTED])
        part.leave_out(2)

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    assert source.unreadable().tolist() == [False, False, False, True, False]
    assert source.conversion_notes() == [
        f"1 of 1 images read {ORIENTED}",
        "images that cannot be read, left out: 1",
        f"left out: `{root}/b/1.png`",
    ]
    assert colours(copy.deepcopy(source)) == [0, 1, 2, 3, 4]


def test_an_unreadable_image_stops_or_is_left_out(root, image):
    (root / "a" / "2.png").write_bytes(image()[:40])
    (root / "a" / "3.png").write_bytes(b"<html>")
    with pytest.raises(UserInputError, match=r"`.*a/3\.png` is not an image .* but a web page"):
        open_source(root)
    source = open_source(root, skips_unreadable=True)
    # The next of its class takes the place of each, and those after the last begin again.
    assert colours(source) == [0, 0, 0, 3, 4]
    assert source.unreadable().tolist() == [False, True, True, False, False]
    assert source.conversion_notes()[-3:] == [
        "images that cannot be read, left out: 2",
        f"left out: `{root}/a/2.png`",
        f"left out: `{root}/a/3.png`",
    ]
    # A part never shows what is outside of it.
    with pytest.raises(UserInputError, match="E_DATA: no image of class `a` can be read"):
        decode_centre(source.subset(np.array([1, 2, 3])), 0, 8)
    (root / "a" / "3.png").unlink()
    source = open_source(root)
    with pytest.raises(UserInputError, match=r"cannot read image `.*a/2\.png`"):
        decode_centre(source, 1, 8)


def test_a_file_that_goes_away(root):
    source, lenient = open_source(root), open_source(root, skips_unreadable=True)
    (root / "b" / "2.png").unlink()
    with pytest.raises(UserInputError, match=r"b/2\.png` was listed and is no longer there"):
        decode_centre(source, 4, 8)
    assert colours(lenient) == [0, 1, 2, 3, 3]


def test_bytes_per_image(root):
    """At most 100: names, places, label and marks, and rows and labels of a subset."""
    source = open_source(root)
    part = source.subset(np.arange(5))
    names = source._names
    arrays = (names.ends, source.labels, source._marks, part._rows, part.labels)
    assert sum(array.nbytes for array in arrays) / 5 + 28 <= 100
