"""Packing with ``skips_unreadable``: as if the unreadable images had never been there."""

import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import ClassLine, open_archive
from hellofmt.errors import LimitError, UserInputError
from hellofmt.sources import pack_archive

BAD = ["a/2.png", "a/3.png", "b/1.png", "b/cut.png", "b/deep.png", "c/1.png"]


@pytest.fixture
def root(tree, image):
    root = tree("a/1.png", *BAD, "b/3.png", "d/1.png")
    (root / "a" / "2.png").write_bytes(image()[:40])
    (root / "a" / "3.png").write_bytes(b"<html>")
    flipped = bytearray(image())
    flipped[-20] ^= 1
    (root / "b" / "1.png").write_bytes(flipped)
    (root / "b" / "cut.png").write_bytes(image()[:-12])
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "b" / "deep.png")
    (root / "c" / "1.png").write_bytes(b"")
    (root / "d" / "notes.exe").write_bytes(b"x")
    return root


@pytest.mark.parametrize("options", [{}, {"shards": 2}])
def test_the_same_file_as_without_them(root, tmp_path, options):
    said = []
    made = pack_archive(
        root, tmp_path / "x.hello", skips_unreadable=True, say=said.append, **options
    )
    names = [line for line in said if line.startswith("left out: ")]
    assert names == [f"left out: `{root}/{name}`" for name in ["d/notes.exe", *BAD]]
    assert "images that cannot be read, left out: 6" in said
    assert "classes of which no image can be read: 1: c" in said
    for name in (*BAD, "d/notes.exe"):
        (root / name).unlink()
    (root / "c").rmdir()
    lines = [ClassLine(key, (key,)) for key in "abcd"]
    assert pack_archive(root, tmp_path / "y.hello", classes=lines, **options) == made


@pytest.mark.parametrize("reencode", [None, "png"])
def test_what_can_be_read_is_refused_all_the_same(tree, tmp_path, reencode):
    root = tree("a/1.png", "b/1.png")
    Image.new("RGB", (4100, 8)).save(root / "b" / "2.png")
    with pytest.raises((UserInputError, LimitError), match=r"b/2\.png"):
        pack_archive(root, tmp_path / "x.hello", skips_unreadable=True, reencode=reencode)
    Image.new("P", (8, 8)).save(root / "b" / "2.png")
    options = {"skips_unreadable": True, "say": lambda _: None, "reencode": reencode}
    if reencode is None:
        with pytest.raises(UserInputError, match=r"b/2\.png.* outside the profile.*reencode"):
            pack_archive(root, tmp_path / "x.hello", **options)
    else:
        pack_archive(root, tmp_path / "x.hello", **options)


def test_members_of_shards(shard, image, tmp_path):
    fine, page, cut = image(), b"<html></html>", image()[:50]
    members = [("0.png", fine), ("0.cls", b"0"), ("1.png", page), ("1.cls", b"1")]
    path = shard([*members, ("2.png", cut), ("2.cls", b"1"), ("3.png", fine), ("3.cls", b"1")])
    said = []
    pack_archive(path, tmp_path / "x.hello", skips_unreadable=True, say=said.append)
    names = [line for line in said if line.startswith("left out: ")]
    assert names == [f"left out: `{path}:{name}`" for name in ("1.png", "2.png")]
    with open_archive(tmp_path / "x.hello") as file:
        assert file.index.label.tolist() == [0, 1]


def test_nothing_is_left(tmp_path, tree):
    root = tree("a/1.png", "b/1.png")
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserInputError, match="`set`: no image can be read"):
        pack_archive(root, tmp_path / "x.hello", skips_unreadable=True, say=lambda _: None)
    assert not (tmp_path / "x.hello").exists()
