from __future__ import annotations

import io
import struct
import sys
import tarfile
import zlib

import numpy as np
import pytest
import torchvision
from PIL import Image

from hellofmt.archive import ClassLine
from hellofmt.distillation.sources import (
    ArrayImages,
    digits,
    read_image_folder,
    read_source,
    stratified_split,
)
from hellofmt.errors import UserInputError

TWO = (ClassLine("a", ("a",)), ClassLine("b", ("b",)))


def save(path, colour=(10, 20, 30), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "message"),
    [
        (np.zeros((2, 8, 8, 3)), [0, 1], TWO, "pixels: expected uint8 .*, got float64"),
        (np.zeros((2, 8, 8), np.uint8), [0, 1], TWO, r"pixels: expected .* got uint8 \(2, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0], TWO, r"labels: expected int64 \(2,\), got"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 0], TWO[:1], "at least two classes; got 1"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 2], TWO, "labels: expected 0 to 1, got 0 to 2"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 0], TWO, "class `b` has no images"),
    ],
)
def test_unusable_arrays(pixels, labels, classes, message):
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        ArrayImages(pixels, np.array(labels, np.int64), classes)


def test_a_subset_keeps_the_classes(stripes):
    source = stripes()
    part = source.subset(np.array([20, 0, 9], np.int64))
    assert part.labels.tolist() == [2, 0, 1]
    assert np.array_equal(part.pixels[1], source.pixels[0])
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


def test_digits_are_the_real_scans():
    data = digits(8)
    assert data.pixels.shape == (1797, 8, 8, 3)
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The first row of the first scan is 0 0 5 13 9 1 0 0 in sixteenths.
    assert data.pixels[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert np.array_equal(data.pixels[..., 0], data.pixels[..., 2])
    assert [line.key for line in data.classes] == list("0123456789")
    assert digits(16).pixels.shape == (1797, 16, 16, 3)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserInputError, match=r"pip install 'hellofmt\[demo\]'"):
        digits()


def test_a_folder_is_read_by_image_folders_rule(tmp_path):
    save(tmp_path / "b" / "2.png", (1, 2, 3))
    save(tmp_path / "b" / "1.webp", (200, 0, 0))
    save(tmp_path / "a" / "x.JPG", (0, 0, 250))
    (tmp_path / ".hidden").mkdir()
    source = read_image_folder(tmp_path)
    assert [line.key for line in source.classes] == ["a", "b"]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.name == tmp_path.name
    assert source.pixels[2, 0, 0].tolist() == [1, 2, 3]
    assert source.pixels[1, 0, 0, 0] > 150
    swapped = read_image_folder(tmp_path, classes=["b", "a"])
    assert swapped.labels.tolist() == [0, 0, 1]


def test_other_sizes_are_resized_and_cropped_at_the_centre(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "1.png")
    source = read_image_folder(tmp_path, 4)
    assert source.pixels.shape == (2, 4, 4, 3)
    assert source.pixels[0, :, 1:3].min() > 190


def folder_without_classes(root):
    (root / "readme.txt").write_text("x")


def folder_with_one_class(root):
    save(root / "a" / "1.png")


def folder_with_an_empty_class(root):
    save(root / "a" / "1.png")
    (root / "b").mkdir()


def folder_with_text(root):
    save(root / "a" / "1.png")
    save(root / "b" / "1.png")
    (root / "b" / "notes.txt").write_text("x")


def folder_with_a_broken_image(root):
    save(root / "a" / "1.png")
    save(root / "b" / "1.png")
    (root / "b" / "2.png").write_bytes((root / "b" / "1.png").read_bytes()[:40])


def folder_with_a_renamed_format(root):
    save(root / "a" / "1.png")
    save(root / "b" / "1.bmp")
    (root / "b" / "1.bmp").rename(root / "b" / "1.png")


def folder_with_16_bit_colours(root):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    save(root / "a" / "1.png")
    (root / "b").mkdir()
    rows = (b"\0" + bytes(range(48))) * 8
    (root / "b" / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    # It is an image: Pillow reads it, as one of 8 bits.
    assert Image.open(root / "b" / "deep.png").convert("RGB").size == (8, 8)


def folder_with_two_shapes(root):
    save(root / "a" / "1.png")
    save(root / "b" / "1.png", size=(9, 8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (folder_without_classes, "has no class folders"),
        (folder_with_one_class, "at least two classes; got 1"),
        (folder_with_an_empty_class, "class `b` has no images"),
        (folder_with_text, r"notes.txt` is not an image; expected .jpeg, .jpg, .png, .webp"),
        (folder_with_a_broken_image, r"cannot read image `.*2\.png`"),
        (folder_with_a_renamed_format, r"cannot read image `.*1\.png`"),
        (folder_with_16_bit_colours, r"deep\.png` has mode RGB of 16 bits; expected 8 bits"),
        (folder_with_two_shapes, "is 9 x 8 pixels, others are 8 x 8; pass a `size`"),
    ],
)
def test_unusable_folders(tmp_path, build, message):
    build(tmp_path)
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        read_image_folder(tmp_path)


def test_a_folder_must_have_the_data_sets_classes(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "c" / "1.png")
    message = "differ from the data set's, first in `b`; expected 2 classes, got 2"
    with pytest.raises(UserInputError, match=message):
        read_image_folder(tmp_path, classes=["a", "b"])


def test_a_missing_folder_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image_folder(tmp_path / "none")


def test_what_is_converted_is_said(tmp_path):
    save(tmp_path / "a" / "1.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "a" / "2.png")
    (tmp_path / "b").mkdir()
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(tmp_path / "b" / "1.png")
    Image.new("LA", (8, 8), (9, 4)).save(tmp_path / "b" / "2.png")
    Image.new("P", (8, 8)).save(tmp_path / "b" / "3.png")
    source = read_image_folder(tmp_path)
    assert source.notes == (
        "1 of 5 images in grey: converted to RGB",
        "1 of 5 images with a palette: converted to RGB",
        "2 of 5 images with an alpha channel: converted to RGB",
    )
    assert source.pixels[:, 0, 0].tolist()[1:4] == [[7, 7, 7], [1, 2, 3], [9, 9, 9]]
    Image.new("I;16", (8, 8), 300).save(tmp_path / "b" / "4.png")
    with pytest.raises(UserInputError, match=r"E_DATA: .*4\.png` has mode I;16; expected 8 bits"):
        read_image_folder(tmp_path)


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def test_shards_are_read_in_order(tmp_path):
    one, two = tmp_path / "train-0.tar", tmp_path / "train-1.tar"
    shard(one, [("x/b.png", png((1, 1, 1))), ("x/b.cls", b"1"), ("x/b.json", b"{}")])
    shard(two, [("x/a.cls", b"0\n"), ("x/a.png", png((2, 2, 2)))])
    source = read_source([str(one), str(two)])
    assert source.labels.tolist() == [1, 0]
    assert source.pixels[:, 0, 0, 0].tolist() == [1, 2]
    assert [line.key for line in source.classes] == ["0", "1"]
    assert source.name == "train-0"
    named = read_source([str(one), str(two)], classes=TWO)
    assert named.classes == TWO


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a.png", png((1, 1, 1)))], "sample `.*:/a`: expected one image and a `.cls`"),
        (
            [("a.png", png((1, 1, 1))), ("a.cls", b"cat")],
            "expected one image and a `.cls` with a n",
        ),
        ([("a.png", b"nothing"), ("a.cls", b"0")], r"cannot read image `.*:/a\.png`"),
        ([("a.txt", b"")], "has no samples of an image and a `.cls`"),
        ([("a.png", png((1, 1, 1))), ("a.cls", b"0")], "at least two classes; got 1"),
        ([("a.png", png((1, 1, 1))), ("a.cls", b"2")], "class `0` has no images"),
    ],
)
def test_unusable_shards(tmp_path, samples, message):
    shard(tmp_path / "a.tar", samples)
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        read_source([str(tmp_path / "a.tar")])


def test_a_label_beyond_the_class_list(tmp_path):
    shard(tmp_path / "a.tar", [("a.png", png((1, 1, 1))), ("a.cls", b"2")])
    with pytest.raises(UserInputError, match="E_DATA: label 2 of a shard; expected less than 2"):
        read_source([str(tmp_path / "a.tar")], classes=TWO)


def test_a_cut_shard_is_not_read_in_part(tmp_path):
    path = tmp_path / "a.tar"
    samples = [
        (f"{k}.{e}", d) for k in range(4) for e, d in (("png", png((k, 1, 1))), ("cls", b"1"))
    ]
    shard(path, samples)
    whole = path.read_bytes()
    for cut in range(100, 7 * 1024, 512):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserInputError, match=r"E_DATA: .*is not a whole tar file"):
            read_source([str(path)])
    path.write_bytes(b"\x01" * 3000)
    with pytest.raises(UserInputError, match=r"E_DATA: .*is not a whole tar file"):
        read_source([str(path)])


def test_several_folders_are_no_source(tmp_path):
    with pytest.raises(UserInputError, match="E_DATA: several sources; expected one folder"):
        read_source([str(tmp_path), str(tmp_path)])


class Toy(torchvision.datasets.VisionDataset):
    classes = ("cat", "dog")

    def __init__(self, root, train=True):
        super().__init__(root)
        if root == "none":
            raise RuntimeError("Dataset not found.")
        self.train = train

    def __len__(self):
        return 4

    def __getitem__(self, row):
        return Image.new("L", (8, 8), 10 * row + self.train), row % 2


def test_data_sets_of_torchvision(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    source = read_source("torchvision:Toy:here")
    assert source.pixels[:, 0, 0, 0].tolist() == [1, 11, 21, 31]
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert ([line.key for line in source.classes], source.name) == (["cat", "dog"], "toy")
    assert source.notes == ("4 of 4 images in grey: converted to RGB",)
    assert read_source("torchvision:Toy:here:test").pixels[0, 0, 0, 0] == 0
    with pytest.raises(
        UserInputError, match=r"E_DATA: cannot read torchvision's `Toy`: Dataset not"
    ):
        read_source("torchvision:Toy:none")
    monkeypatch.setattr(Toy, "__getitem__", lambda self, k: ("no image", {"boxes": []}))
    with pytest.raises(UserInputError, match="E_DATA: torchvision's `Toy` does not give images wi"):
        read_source("torchvision:Toy:here")
    for name in ("None", "VisionDatasets", "utils"):
        with pytest.raises(UserInputError, match=f"E_OPTION: torchvision has no data set `{name}`"):
            read_source(f"torchvision:{name}:here")
