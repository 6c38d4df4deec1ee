"""Images that the user has already: what is read of them, what is refused, what is said."""

from __future__ import annotations

import io
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from hellofmt.errors import UserInputError
from hellofmt.loading import HelloDataset

KEYS = ["n1", "n2", "n3"]
IMAGE, CLASS = datasets.Image(), datasets.ClassLabel(names=KEYS)


def picture(number, mode="RGB"):
    pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def made(columns, **features):
    """A data set of Hugging Face with these columns."""
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def pictures(number=3):
    return [picture(i) for i in range(number)]


def shown(path, images, row=0, **options):
    """The pixels of a row, as the data set holds them."""
    return HelloDataset(path, images=images, labels="none", **options).pixels(row)


def test_columns_are_found_by_type_and_said(projector_only, caplog):
    columns = {"note": ["a", "b", "c"], "scan": pictures(), "kind": [2, 0, 1]}
    images = made(columns, note=datasets.Value("string"), scan=IMAGE, kind=CLASS)
    dataset = HelloDataset(projector_only, images=images, labels="hard", views=None)
    assert [record.getMessage() for record in caplog.records] == [
        (
            "images: a Hugging Face data set; reading `scan` (Image) for images,"
            " `kind` (ClassLabel) for classes"
        )
    ]
    assert len(dataset) == 3
    assert dataset.targets == [2, 0, 1]
    for row in range(3):
        assert np.array_equal(dataset.pixels(row), np.asarray(picture(row)))
        assert dataset[row][1] == columns["kind"][row]


def test_classes_of_other_names_are_taken_by_number_and_said(projector_only, caplog):
    kind = datasets.ClassLabel(names=["tench", "shark", "cock"])
    images = made({"scan": pictures(), "kind": [2, 0, 1]}, scan=IMAGE, kind=kind)
    dataset = HelloDataset(projector_only, images=images, labels="hard", views=None)
    assert dataset[0][1] == 2
    assert caplog.messages[0].endswith(
        "classes, which are called otherwise than the archive's: number 0 is its first"
    )


def test_a_format_changes_nothing_and_a_transform_is_refused(projector_only):
    images = made({"scan": pictures(), "kind": [2, 0, 1]}, scan=IMAGE, kind=CLASS)
    for form in ("torch", "numpy"):
        got = shown(projector_only, images.with_format(form), 1)
        assert np.array_equal(got, np.asarray(picture(1)))
    with pytest.raises(
        UserInputError, match=r"E_OPTION: .* transform; .* images.with_format\(None"
    ):
        shown(projector_only, images.with_transform(lambda rows: rows))


def test_a_column_of_classes_may_be_missing_where_none_is_needed(projector_only, caplog):
    images = made({"scan": pictures()}, scan=IMAGE)
    assert np.array_equal(shown(projector_only, images, 1), np.asarray(picture(1)))
    assert caplog.messages[0].endswith("reading `scan` (Image) for images, no column for classes")
    # What `datasets` writes where nobody knows.
    images = made({"scan": pictures(), "kind": [-1, -1, -1]}, scan=IMAGE, kind=CLASS)
    assert np.array_equal(shown(projector_only, images), np.asarray(picture(0)))


REFUSED = {
    "no image": (
        {"path": ["a"], "kind": [0]},
        {"path": datasets.Value("string"), "kind": CLASS},
        (
            r"expected one of type Image, got 0: `path` \(Value\), `kind` \(ClassLabel\); pass"
            r" images.cast_column\(NAME, datasets.Image\(\)\)"
        ),
    ),
    "two images": (
        {"left": pictures(1), "right": pictures(1), "kind": [0]},
        {"left": IMAGE, "right": IMAGE, "kind": CLASS},
        (
            r"expected one of type Image, got 2: `left` \(Image\), `right` \(Image\), `kind`"
            r" \(ClassLabel\); pass images.select_columns\(\[IMAGE, CLASS\]\)"
        ),
    ),
    "no class": (
        {"scan": pictures(1), "number": [0]},
        {"scan": IMAGE, "number": datasets.Value("int64")},
        (
            r"expected one of type ClassLabel, got 0: `scan` \(Image\), `number` \(Value\); pass"
            r" images.cast_column\(NAME, datasets.ClassLabel\(names=\[...\]\)\)"
        ),
    ),
    "two classes": (
        {"scan": pictures(1), "fine": [0], "coarse": [0]},
        {"scan": IMAGE, "fine": CLASS, "coarse": CLASS},
        r"expected one of type ClassLabel, got 2: .* pass images.select_columns",
    ),
    "other classes": (
        {"scan": pictures(1), "kind": [0]},
        {"scan": IMAGE, "kind": datasets.ClassLabel(names=["a", "b"])},
        "classes of `images`; expected the archive's 3, got 2",
    ),
    "another order": (
        {"scan": pictures(1), "kind": [0]},
        {"scan": IMAGE, "kind": datasets.ClassLabel(names=["n1", "n3", "n2"])},
        "order of the classes of `images`; expected the archive's, in which class 1 is n2, got n3",
    ),
    "converted by its feature": (
        {"scan": pictures(1), "kind": [0]},
        {"scan": datasets.Image(mode="L"), "kind": CLASS},
        "column `scan` of `images`; expected images as they are stored, got mode L",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_columns_that_do_not_tell_are_refused(projector_only, case):
    columns, features, expected = REFUSED[case]
    with pytest.raises(UserInputError, match=f"E_DATA: .*{expected}"):
        HelloDataset(projector_only, images=made(columns, **features), labels="hard")


def test_two_columns_of_classes_are_refused_for_any_labels(projector_only):
    columns, features, expected = REFUSED["two classes"]
    with pytest.raises(UserInputError, match=expected):
        HelloDataset(projector_only, images=made(columns, **features), labels="none")


def deep_colours():
    """A PNG of 16 bits per channel, which Pillow opens as 8."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    pixels = np.random.default_rng(0).integers(0, 1 << 16, (8, 8, 3)).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
DEEP = {
    "grey": lambda: [Image.fromarray(RAMP)],
    "32 bits": lambda: [Image.fromarray(RAMP.astype(np.int32))],
    "float": lambda: [Image.fromarray(RAMP.astype(np.float32))],
    "array": lambda: [RAMP],
    "colours": lambda: [Image.open(io.BytesIO(deep_colours()))],
    "colours of Hugging Face": lambda: made(
        {"scan": [{"bytes": deep_colours(), "path": None}]}, scan=IMAGE
    ),
    "grey of Hugging Face": lambda: made({"scan": [Image.fromarray(RAMP)]}, scan=IMAGE),
}


@pytest.mark.parametrize("case", DEEP)
def test_more_than_eight_bits_are_refused(projector_only, case):
    with pytest.raises(UserInputError, match=r"E_DATA: image `?0`?.* (16 bits|I;16|I|F|uint16)\b"):
        shown(projector_only, DEEP[case]())


def test_what_is_lost_is_said_once(projector_only, caplog):
    images = [picture(0, "L"), picture(1, "RGBA"), picture(2, "RGBA")]
    dataset = HelloDataset(projector_only, images=images, labels="none")
    for row in range(3):
        dataset.pixels(row)
    assert caplog.messages == [
        (
            "images: image 1 with an alpha channel: dropped, the colours under it show;"
            " others are not reported"
        )
    ]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("folder", "expected a data set with a length and items, got str; for a folder per class"),
        (iter([]), "expected a data set with a length and items, got list_iterator"),
        (
            datasets.DatasetDict(train=made({"scan": pictures(1)}, scan=IMAGE)),
            "expected one data set, got DatasetDict of 'train'; pass one of them",
        ),
        (
            made({"scan": pictures(1)}, scan=IMAGE).to_iterable_dataset(),
            "expected a data set with a length and items, got IterableDataset",
        ),
    ],
)
def test_what_is_no_data_set_of_images_is_refused(projector_only, images, expected):
    with pytest.raises(UserInputError, match=f"E_OPTION: `images`; {expected}"):
        HelloDataset(projector_only, images=images, labels="none")
