"""Further columns of the index: written with their images, read by row, refused where wrong."""

from dataclasses import replace

import numpy as np
import pytest

from hellofmt.archive import ImageItem, ImageSet, open_archive, write_archive, write_shards
from hellofmt.errors import CorruptError, UserInputError

ROWS = 5
COLUMNS = {
    "weight": np.linspace(0, 1, ROWS, dtype=np.float32),
    "source": np.arange(ROWS, dtype=np.uint64)[:, None],
    "crop": np.tile(np.array([0, 0, 8, 8], np.int32), (ROWS, 1, 1)),
    "x_name": np.arange(3 * ROWS, dtype=np.uint8).reshape(ROWS, 3),
}


@pytest.fixture
def mixed(samples):
    """Images whose items are not sorted by label: labels 0, 1, 0, 1, 0."""
    return replace(samples.images(ROWS), columns=COLUMNS, order="value")


def test_columns_follow_their_images(samples, mixed, tmp_path):
    path = tmp_path / "x.hello"
    write_archive(path, samples.draft(images=mixed))
    order = [0, 2, 4, 1, 3]
    with open_archive(path) as file:
        assert [c.name for c in file.manifest.images.columns] == sorted(COLUMNS)
        assert file.manifest.images.order == "value"
        found = file.index.columns
        assert list(found) == sorted(COLUMNS)
        for name, values in COLUMNS.items():
            assert np.array_equal(found[name], values[order])
            assert found[name].dtype == values.dtype
            assert not found[name].flags.writeable
        stored = file.tensors("index")
        assert np.array_equal(stored["crop"], found["crop"])


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_a_set_has_the_columns_of_all_its_files(samples, mixed, tmp_path, layout):
    whole = samples.draft(images=replace(mixed, layout=layout))
    write_archive(tmp_path / "one.hello", whole)
    write_shards(tmp_path / "x.hello", whole, 3)
    with (
        open_archive(tmp_path / "one.hello") as one,
        open_archive(str(tmp_path / "x-*-of-00003.hello")) as made,
    ):
        assert made.manifest.images.columns == one.manifest.images.columns
        for name, values in one.index.columns.items():
            assert np.array_equal(made.index.columns[name], values)
    other = replace(mixed, columns=COLUMNS | {"x_name": COLUMNS["x_name"][:, :2]})
    write_shards(tmp_path / "y.hello", replace(whole, images=other), 3)
    second = "-00001-of-00003.hello"
    (tmp_path / f"x{second}").write_bytes((tmp_path / f"y{second}").read_bytes())
    with pytest.raises(CorruptError, match="E_DIGEST_ROOT"):
        open_archive(str(tmp_path / "x-*-of-00003.hello"))


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"weight": np.ones(4, np.float32)}, "column weight: expected 5 rows of float32, "),
        ({"weight": np.ones(5)}, "uint64, got 5 of float64"),
        ({"x_a": ["a"] * 5}, "got 5 of str"),
        ({"score": np.ones(5, np.float32)}, "`score`: expected weight, source, crop, labels or a"),
        ({"weight": np.ones((5, 1), np.float32)}, r"`weight`: expected F32 \[\], got F32 \[1\]"),
        ({"x_A": np.ones(5, np.float32)}, "not in the form this value has"),
        ({"x_a": np.ones((5, 4097), np.uint8)}, "expected at most 4096 bytes, got 4097"),
        ({"weight": np.full(5, -1, np.float32)}, "column weight holds a value below 0"),
        ({"weight": np.full(5, np.nan, np.float32)}, "tensor weight holds a value that is not fin"),
        ({"labels": np.full((5, 1), 2, np.int32)}, "column labels; expected -1 to 1"),
        ({"crop": np.zeros((5, 1, 4), np.int32)}, "column crop; expected top and left from 0"),
    ],
)
def test_what_no_archive_holds_is_refused(samples, tmp_path, columns, text):
    images = replace(samples.images(ROWS), columns=columns)
    with pytest.raises(UserInputError, match=f"E_DATA: .*{text}"):
        write_archive(tmp_path / "x.hello", samples.draft(images=images))
    assert not (tmp_path / "x.hello").exists()


def test_images_may_name_the_archive_of_their_label_function(samples, tmp_path):
    own = "sha256:" + "a" * 64
    images = ImageSet("png", [ImageItem(0, samples.images(1).items[0].source)])
    write_archive(tmp_path / "x.hello", samples.draft(images=images, label_function=own))
    with open_archive(tmp_path / "x.hello") as file:
        assert file.manifest.label_function == own
    both = samples.draft(images=images, projector=samples.projector(), label_function=own)
    with pytest.raises(UserInputError, match="`label_function`: expected only for images without"):
        write_archive(tmp_path / "y.hello", both)
