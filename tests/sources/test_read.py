"""What a user types, and the kind of source that it is."""

import os

import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import ClassLine, open_archive
from hellofmt.errors import UserInputError
from hellofmt.sources import list_source, open_source, pack_archive


@pytest.fixture
def archive(tree, image, tmp_path):
    root = tree("a/1.png", "b/1.png")
    (root / "b" / "2.png").write_bytes(image(colour=(1, 2, 3)))

    def write(layout):
        pack_archive(root, tmp_path / f"{layout}.hello", layout=layout, force=True)
        return tmp_path / f"{layout}.hello"

    return write


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_an_archive_is_a_source_for_every_command(archive, layout, pixels):
    source = open_source(archive(layout))
    assert source.labels.tolist() == [0, 1, 1]
    assert pixels(source)[:, 0, 0].tolist() == [[10, 20, 30], [10, 20, 30], [1, 2, 3]]
    assert (source.classes, source.name) == (
        (ClassLine("a", ("a",)), ClassLine("b", ("b",))),
        layout,
    )
    swapped = open_source(archive(layout), classes=source.classes[::-1])
    assert swapped.labels.tolist() == [1, 0, 0]


def test_a_folder_and_shards_give_the_same_pixels(tree, shard, image, pixels):
    root = tree("0/1.png", "1/1.png")
    (root / "1" / "2.webp").write_bytes(image("PNG", (9, 9, 9)))
    members = [
        (f"{number}.{field}", data)
        for number, (label, name) in enumerate((("0", "1.png"), ("1", "1.png"), ("1", "2.webp")))
        for field, data in (("png", (root / label / name).read_bytes()), ("cls", label.encode()))
    ]
    one, two = shard(members[:2], "t-0.v1.tar"), shard(members[2:], "t-1.tar")
    folder, shards = open_source(root), open_source([one, str(two)])
    assert np.array_equal(pixels(folder), pixels(shards))
    assert np.array_equal(folder.labels, shards.labels)
    assert folder.classes == shards.classes
    assert (folder.name, shards.name) == ("set", "t-0")


def test_a_label_beyond_the_class_list(shard, image):
    path = shard([("a.png", image()), ("a.cls", b"2")])
    lines = [ClassLine("a", ("a",)), ClassLine("b", ("b",))]
    with pytest.raises(
        UserInputError, match=r"E_DATA: .* are numbers up to 2, .*expected less than 2"
    ):
        open_source(path, classes=lines)
    with pytest.raises(UserInputError, match="E_DATA: class `0` has no images"):
        open_source(path)


def test_what_is_no_source(tmp_path, tree, shard, image, archive):
    root, tar = tree("a/1.png", "b/1.png"), shard([("a.png", image()), ("a.cls", b"0")])
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "link.tar").symlink_to("s.tar")
    for paths, message in (
        ([], "no source; expected a folder, shards or an archive"),
        ([root, root], "several sources; expected one folder, or shards"),
        ([tar, archive("files")], "files.hello` is an archive; expected it alone"),
        ([tar, tmp_path / "link.tar"], "s.tar` is one of the sources more than once"),
        ([tmp_path / "pipe.tar"], "pipe.tar`: neither a folder nor a regular file"),
    ):
        with pytest.raises(UserInputError) as caught:
            open_source(paths)
        assert message in str(caught.value)
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "none")


def test_an_archive_is_read_while_it_is_open(archive):
    path = archive("files")
    with open_archive(path) as file:
        assert open_source(path).read(2) == file.read_image(2)


def test_what_is_converted_is_said(tree, pixels):
    root = tree("a/1.png")
    (root / "b").mkdir()
    Image.new("L", (8, 8), 7).save(root / "a" / "2.png")
    Image.new("LA", (8, 8), (9, 4)).save(root / "b" / "2.png")
    source = open_source(root)
    assert source.conversion_notes() == []
    assert pixels(source)[1:, 0, 0].tolist() == [[7, 7, 7], [9, 9, 9]]
    assert source.conversion_notes() == [
        "1 of 3 images in grey: converted to RGB",
        "1 of 3 images with an alpha channel: dropped, the colours under it show",
    ]


def test_a_mistyped_torchvision_is_answered_with_the_nearest():
    with pytest.raises(
        UserInputError, match=r"E_OPTION: .*no such file.*did you mean `torchvision`"
    ):
        open_source("torchvison:CIFAR10:here")
    with pytest.raises(UserInputError, match=r"E_OPTION: .*`CIFAR11`.*did you mean `CIFAR10`\?"):
        open_source("torchvision:CIFAR11:here")


@pytest.mark.parametrize(
    "text",
    ["", "s-{000..003}.tar", "*.tar", "hfs:cifar10"],
)
def test_what_is_no_path_is_not_looked_for(text, tmp_path, monkeypatch, tree):
    # An empty text would be the current folder.
    tree("a/1.png", "b/1.png")
    monkeypatch.chdir(tmp_path / "set")
    message = "E_OPTION: .*no such file; expected a folder, an archive, every shard by its name"
    with pytest.raises(UserInputError, match=message):
        list_source(text)


def test_a_path_may_hold_what_paths_seldom_do(tree):
    root = tree("a/1.png", "b/1.png")
    (root.parent / "data:{1}").symlink_to(root)
    assert len(open_source(root.parent / "data:{1}")) == 2
    with pytest.raises(FileNotFoundError):
        open_source(root / "none")
