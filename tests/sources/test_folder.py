"""A folder: every entry is an image, skipped and counted, or an error that names it."""

import os
import shutil

import pytest
import torchvision

from hellofmt.errors import UserInputError
from hellofmt.sources.crops import decode_centre
from hellofmt.sources.files import FileSource
from hellofmt.sources.folder import list_folder


def listed(root):
    return list_folder(root)[0]


def refused(root):
    with pytest.raises(UserInputError) as caught:
        listed(root)
    assert caught.value.code == "E_DATA"
    return caught.value.message


def paths_of(listing):
    return [listing.names.path(row) for row in range(len(listing.names))]


def names_of(listing, root):
    keys = [listing.keys[place] for place in listing.key_of]
    return list(zip(keys, (os.path.relpath(path, root) for path in paths_of(listing)), strict=True))


def test_nested_folders_are_read_in_image_folders_order(tree):
    root = tree("b/2.png", "a/images/3.PNG", "a/z.png", "a/a-b/1.png", "a/a/1.png", "B/1.png")
    listing = listed(root)
    reference = torchvision.datasets.ImageFolder(root)
    assert listing.keys == reference.classes
    assert list(zip(paths_of(listing), listing.key_of, strict=True)) == reference.samples
    assert listing.notes == (
        f"images that lie deeper than their class folder: 3, such as `{root}/a/a/1.png`",
    )
    assert listing.name == "set"


def test_hidden_entries_and_text_are_skipped_and_counted(tree, image):
    root = tree("a/1.png", "b/1.png", ".ipynb_checkpoints/1.png", "a/.ipynb_checkpoints/1.png",
                "a/._1.png", "__MACOSX/a/1.png", "b/.DS_Store")  # fmt: skip
    for name in ("a/a_boxes.txt", "README", "LICENSE.md", "classes.csv", "a/Thumbs.db",
                 "desktop.ini", "b/n1.xml", "a/1.json"):  # fmt: skip
        (root / name).write_text("x")
    listing = listed(root)
    assert names_of(listing, root) == [("a", "a/1.png"), ("b", "b/1.png")]
    assert listing.notes == (
        f"hidden entries skipped: 5, such as `{root}/.ipynb_checkpoints`",
        f"files that are not images skipped: 8, such as `{root}/LICENSE.md`",
    )


def test_content_decides_what_an_image_is(tree, image):
    root = tree("a/1.png", "b/right.jpg")
    for name, kind in (("a/2.jpg", "PNG"), ("a/3.GIF", "JPEG"), ("b/4.png", "WEBP"),
                       ("b/right.jpg", "JPEG"), ("b/right.JFIF", "JPEG")):  # fmt: skip
        (root / name).write_bytes(image(kind))
    source = FileSource(listed(root))
    for row in range(len(source)):
        assert decode_centre(source, row, 8)[0, 0].tolist() == pytest.approx([10, 20, 30], abs=3)
    assert source.conversion_notes() == [
        "3 of 6 images of another type than their names say: read by content"
    ]


def test_other_types_are_refused_with_a_count(tree, image):
    root = tree("a/1.png", "b/1.png")
    for number in range(4):
        (root / "a" / f"b{number}.bmp").write_bytes(image("BMP"))
    (root / "b" / "g.gif").write_bytes(image("GIF"))
    (root / "b" / "t.tiff").write_bytes(image("TIFF"))
    (root / "b" / "x.jpg").write_bytes(image("GIF"))
    (root / "b" / "empty.png").write_bytes(b"")
    text = refused(root)
    assert text.startswith(
        f"`{root}/a/b0.bmp` is not an image in PNG, JPEG or WebP, nor are 7 more"
    )
    assert "(4 bmp, 1 gif, 1 jpg, 1 png, 1 tiff): " in text


@pytest.mark.parametrize("name", ["b/model.pt", "n01.tar", "b/README2", "b/1.jpg~", "b/noname"])
def test_files_of_no_known_kind_are_refused(tree, name):
    root = tree("a/1.png", "b/1.png", name)
    assert refused(root).startswith(f"`{root}/{name}` is not an image in PNG, JPEG or WebP")


def test_images_outside_the_class_folders(tree):
    root = tree("a/1.png", "1.png", "2.JPG")
    assert refused(root) == (
        f"images that lie in no class folder: 2, such as `{root}/1.png`; expected one folder per"
        " class"
    )


@pytest.mark.parametrize("parts", [("train", "val"), ("Train", "test", "extra"), ("val",)])
def test_parts_of_a_data_set_are_no_classes(tree, parts):
    root = tree(*(f"{part}/{key}/1.png" for part in parts for key in "ab"))
    with pytest.raises(UserInputError, match=r"E_DATA: .* holds parts of a data set, not classes"):
        listed(root)
    # One of them beside others may be a class, as of vehicles.
    assert listed(tree("../other/train/1.png", "../other/bus/1.png").parent / "other").keys == [
        "bus",
        "train",
    ]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", " but empty; convert or"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            r" but a git-LFS pointer .*pull..; conv",
        ),
        (b"\n<!DOCTYPE html>", " but a web page"),
        (b"BM", "; convert or remove"),
    ],
)
def test_what_lies_there_instead_of_an_image_is_said(tree, data, shown):
    root = tree("a/1.png", "b/1.png")
    (root / "a" / "1.png").write_bytes(data)
    with pytest.raises(UserInputError, match=f"an image in PNG, JPEG or WebP{shown}"):
        listed(root)


def test_empty_class_folders(tree):
    root = tree("a/1.png")
    (root / "c" / "deep").mkdir(parents=True)
    (root / "b").mkdir()
    (root / "b" / "notes.txt").write_text("x")
    assert refused(root) == f"class folders without an image: 2: {root}/b, {root}/c"


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / ".git").mkdir()])
def test_no_class_folder(tmp_path, make):
    make(tmp_path)
    (tmp_path / "readme.txt").write_text("x")
    assert refused(tmp_path) == f"`{tmp_path}`: no class folder; expected one folder per class"


@pytest.mark.parametrize(
    ("link", "target", "same"),
    [
        ("a/self", ".", "set/a"),
        ("a/up", "..", "set"),
        ("a/far", "../..", ""),
        ("a/twin", "deep", "set/a/deep"),
        ("b/other", "../a/deep", "set/a/deep"),
        ("c", "a", "set/a"),
    ],
)
def test_no_folder_counts_twice(tree, link, target, same):
    root = tree("a/1.png", "a/deep/1.png", "b/1.png")
    (root / link).symlink_to(target)
    text = refused(root)
    assert f"`{root / link}`" in text
    assert f"`{root.parent / same}`" in text
    assert "would count twice" in text


def test_links_into_another_set_are_followed(tree, tmp_path):
    root = tree("a/1.png")
    shutil.move(root / "a", tmp_path / "elsewhere")
    (root / "a").symlink_to(tmp_path / "elsewhere")
    (root / "b").mkdir()
    (root / "b" / "1.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert names_of(listed(root), root) == [("a", "a/1.png"), ("b", "b/1.png")]


def test_a_link_to_an_image_of_the_source_is_said(tree, tmp_path):
    root, other = tree("a/1.png", "b/1.png"), tmp_path / "other.png"
    other.write_bytes((root / "a" / "1.png").read_bytes())
    (root / "a" / "2.png").symlink_to(other)
    assert listed(root).notes == ()
    (root / "b" / "3.png").symlink_to(root / "a" / "1.png")
    listing = listed(root)
    assert len(listing.names) == 4
    (note,) = listing.notes
    assert note.startswith("links to images of the source itself, which count twice: 1, such as `")
    assert note.endswith("3.png`")


def test_links_to_nothing_and_special_files(tree):
    root = tree("a/1.png", "b/1.png")
    (root / "b" / "2.png").symlink_to("nowhere")
    assert refused(root) == f"`{root}/b/2.png`: no regular file"
    (root / "b" / "2.png").unlink()
    os.mkfifo(root / "b" / "2.txt")
    assert refused(root) == f"`{root}/b/2.txt`: no regular file"


def test_a_folder_that_may_not_be_read_is_no_empty_one(tree, monkeypatch):
    root = tree("a/1.png", "b/1.png", "b/deep/1.png")
    scandir = os.scandir

    def deny(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(PermissionError, match="deep"):
        listed(root)


def test_a_name_that_is_not_utf8_is_shown(tmp_path, image):
    root = tmp_path / os.fsdecode(b"f\xe9")
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.png").write_bytes(image())
    assert listed(root).name == r"f\udce9"
