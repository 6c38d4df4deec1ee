"""Data sets of torchvision: their classes, what is converted, and what they are refused for."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError
from hellofmt.sources import list_source, open_source
from hellofmt.sources.torchvision import _place


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


def test_data_sets_of_torchvision(monkeypatch, pixels):
    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    source = open_source("torchvision:Toy:here")
    assert pixels(source)[:, 0, 0, 0].tolist() == [1, 11, 21, 31]
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert ([line.key for line in source.classes], source.name) == (["cat", "dog"], "toy")
    assert source.conversion_notes() == ["4 of 4 images in grey: converted to RGB"]
    assert source.name_of(2) == "Toy image 2"
    assert pixels(open_source("torchvision:Toy:here:test"))[0, 0, 0, 0] == 0
    with pytest.raises(
        UserInputError, match=r"E_DATA: cannot read torchvision's `Toy`: Dataset not"
    ):
        open_source("torchvision:Toy:none")
    with pytest.raises(
        UserInputError, match=r"E_OPTION: .*`Toy` has no split `val`; expected `train`"
    ):
        open_source("torchvision:Toy:here:val")
    for name in ("None", "VisionDatasets", "utils"):
        with pytest.raises(UserInputError, match=f"E_OPTION: torchvision has no data set `{name}`"):
            open_source(f"torchvision:{name}:here")
    with pytest.raises(UserInputError, match=r"E_OPTION: .*`FakeData` does not read images from a"):
        open_source("torchvision:FakeData:here")
    # It needs a second path.
    with pytest.raises(UserInputError, match=r"E_DATA: cannot read torchvision's `CocoDetection`"):
        open_source("torchvision:CocoDetection:here")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((Image.new("L", (8, 8)), {"boxes": []}), "Toy image 0: expected an image with one class"),
        ((Image.new("L", (8, 8)), 7), "labels 7 to 7; expected 0 to 1"),
        (("no image", 0), "image `Toy image 0`: expected a PIL image .* got str"),
        ((Image.new("I;16", (8, 8)), 0), "image `Toy image 0` has mode I;16; expected 8 bits"),
    ],
)
def test_items_that_are_refused(monkeypatch, pixels, item, message):
    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    monkeypatch.setattr(Toy, "__getitem__", lambda _self, _row: item)
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        pixels(list_source("torchvision:Toy:here"))


def test_a_class_list_finds_the_names_of_a_data_set(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    lines = [ClassLine("dog", ("a dog",)), ClassLine("cat", ("a cat",))]
    source = open_source("torchvision:Toy:here", classes=lines)
    assert source.labels.tolist() == [1, 0, 1, 0]
    assert source.classes == tuple(lines)
    # Without names of its own, its labels are places in the list.
    monkeypatch.setattr(Toy, "classes", ())
    source = open_source("torchvision:Toy:here", classes=lines)
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert "`toy` are numbers, taken as places in the class list: `0` is `dog`" in source.notes[0]
    assert [line.key for line in open_source("torchvision:Toy:here").classes] == ["0", "1"]
    monkeypatch.setattr(Toy, "classes", ("cat", "cow"))
    with pytest.raises(
        UserInputError, match="E_DATA: 1 of 2 classes of `toy` are not in the class"
    ):
        open_source("torchvision:Toy:here", classes=lines)


@pytest.fixture
def imagenet(tmp_path):
    """Three classes as torchvision unpacks ImageNet; two of them are called crane."""
    names = {
        "n01440764": ("tench", "Tinca tinca"),
        "n02012849": ("crane",),
        "n03126707": ("crane",),
    }
    for number, key in enumerate(names):
        (tmp_path / "train" / key).mkdir(parents=True)
        image = Image.fromarray(np.full((8, 8, 3), 50 * number, np.uint8))
        image.save(tmp_path / "train" / key / f"{key}_0.JPEG", "PNG")
    torch.save((names, ["n01440764"]), tmp_path / "meta.bin")
    return tmp_path


def test_imagenet_has_wordnet_ids_for_keys(imagenet, pixels):
    source = open_source(f"torchvision:ImageNet:{imagenet}:train")
    assert source.classes == (
        ClassLine("n01440764", ("tench", "Tinca tinca")),
        ClassLine("n02012849", ("crane",)),
        ClassLine("n03126707", ("crane",)),
    )
    assert source.labels.tolist() == [0, 1, 2]
    reversed_ = open_source(f"torchvision:ImageNet:{imagenet}", classes=source.classes[::-1])
    assert reversed_.labels.tolist() == [2, 1, 0]
    assert pixels(reversed_)[:, 0, 0, 0].tolist() == [0, 50, 100]


def test_files_that_torchvision_opens_are_converted_as_ours(imagenet, pixels):
    path = imagenet / "train" / "n02012849" / "n02012849_0.JPEG"
    Image.new("RGBA", (8, 8), (9, 8, 7, 0)).save(path, "PNG")
    source = open_source(f"torchvision:ImageNet:{imagenet}")
    assert pixels(source)[1, 0, 0].tolist() == [9, 8, 7]
    assert source.conversion_notes() == [
        "3 of 3 images of another type than their names say: read by content",
        "1 of 3 images with an alpha channel: dropped, the colours under it show",
    ]
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(path, "PNG")
    with pytest.raises(UserInputError, match=r"E_DATA: image `.*n02012849_0.JPEG` has mode I;16"):
        pixels(open_source(f"torchvision:ImageNet:{imagenet}"))
    path.write_bytes(b"")
    with pytest.raises(UserInputError, match=r"E_DATA: cannot read image `.*n02012849_0.JPEG`"):
        pixels(open_source(f"torchvision:ImageNet:{imagenet}"))


def test_duplicate_names_without_ids_are_refused_before_an_image_is_read(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    monkeypatch.setattr(Toy, "classes", ("crane", "crane"))
    monkeypatch.setattr(Toy, "__getitem__", None)
    with pytest.raises(
        UserInputError, match="E_DATA: the classes of `toy`: class 1: duplicate key crane"
    ):
        open_source("torchvision:Toy:here")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data", ("data", "")),
        ("data:test", ("data", "test")),
        ("C:\\data", ("C:\\data", "")),
        ("c:/data:test", ("c:/data", "test")),
        ("d:test", ("d", "test")),
    ],
)
def test_a_drive_of_windows_is_part_of_the_root(text, place):
    assert _place(text) == place
