"""Shards: every member belongs to a sample that is read, is skipped and counted, or is named."""

import os

import fsspec
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from hellofmt.errors import UserInputError
from hellofmt.sources import open_source, shards
from hellofmt.sources.shards import ShardSource, list_shards


def listed(path):
    return list_shards([str(path)])[0]


def refused(path):
    with pytest.raises(UserInputError) as caught:
        list_shards([str(path)])
    assert caught.value.code == "E_DATA"
    return caught.value.message


def names_of(listing, path):
    assert listing.names.folders == (str(path),)
    names = [listing.names.name(row) for row in range(len(listing.names))]
    return list(zip(names, (listing.keys[place] for place in listing.key_of), strict=True))


def test_keys_end_at_the_first_dot_as_in_webdataset(shard, image):
    members = [
        ("x/b.png", image()),
        ("x/b.cls", b"1"),
        ("x/b.seg.png", b"mask"),
        ("x/c.CLS", b"0\n"),
        ("x/c.JPG", image("JPEG")),
        ("x/c.json", b"{}"),
    ]
    path = shard(members)
    listing = listed(path)
    assert names_of(listing, path) == [("x/b.png", "1"), ("x/c.jpg", "0")]
    source = ShardSource(listing)
    assert [source.read(row) for row in range(2)] == [members[0][1], members[4][1]]
    assert source.name_of(1) == f"{path}:x/c.jpg"
    assert ([line.key for line in listing.lines], listing.keys) == (["0", "1"], ["0", "1"])
    assert (listing.is_numbered, listing.name) == (True, "s")
    assert listing.notes == (f"files that are not images skipped: 2, such as `{path}:x/b.seg.png`",)
    with path.open("rb") as stream:
        theirs = list(group_by_keys(tar_file_expander([{"url": "", "stream": stream}])))
    assert [sample["__key__"] for sample in theirs] == ["x/b", "x/c"]


def test_samples_whose_key_holds_a_dot_are_read_and_said(shard, image):
    members = []
    for number in range(6):
        stem = f"img{number}" if number % 3 else f"img.v1.{number}"
        members += [(f"{stem}.jpg", image("JPEG", (number, 0, 0))), (f"{stem}.cls", b"%d" % number)]
    # Two in a row have one key for WebDataset.
    for stem, label in (("img.a", b"0"), ("img.b", b"1")):
        members += [(f"{stem}.cls", label), (f"{stem}.png", image())]
    path = shard(members)
    listing = listed(path)
    assert names_of(listing, path) == [
        ("img.v1.0.jpg", "0"), ("img1.jpg", "1"), ("img2.jpg", "2"), ("img.v1.3.jpg", "3"),
        ("img4.jpg", "4"), ("img5.jpg", "5"), ("img.a.png", "0"), ("img.b.png", "1"),
    ]  # fmt: skip
    kind = "samples whose key holds a dot, where WebDataset would end it"
    assert listing.notes == (f"{kind}: 4, such as `{path}:img.v1.0`",)


def test_hidden_members_are_skipped_and_counted(shard, image):
    # What macOS's tar adds to every file.
    path = shard(
        [
            ("./._a.png", b"\0\5\x16\7"),
            ("./a.png", image()),
            ("./a.cls", b"0"),
            ("__MACOSX/a.png", b"x"),
            (".data/b.cls", b"1"),
            (".data/b.png", image()),
        ]
    )
    listing = listed(path)
    assert names_of(listing, path) == [("./a.png", "0"), (".data/b.png", "1")]
    assert listing.notes == (f"hidden entries skipped: 2, such as `{path}:./._a.png`",)


def test_content_decides_what_an_image_is(shard, image):
    path = shard([("a.gif", image()), ("a.cls", b"0")])
    assert ShardSource(listed(path)).read(0) == image()
    path = shard(
        [("a.jpg", image("GIF")), ("a.cls", b"0"), ("b.bmp", image("BMP")), ("b.cls", b"0")]
    )
    assert refused(path).startswith(
        f"`{path}:a.jpg` is not an image in PNG, JPEG or WebP, nor are 1 more (1 bmp, 1 jpg)"
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], "s.tar:a`: expected one image and a `.cls`, got png"),
        ([("a.cls", b"1")], "s.tar:a`: expected one image and a `.cls`, got cls"),
        ([("a.bmp", b"x")], "expected one image and a `.cls`, got bmp"),
        ([("a.v1.jpg", b"x")], "s.tar:a`: expected one image and a `.cls`, got v1.jpg"),
        ([("a.v1.cls", b"1")], "s.tar:a.v1`: expected one image and a `.cls`, got cls"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "got cls, jpg, png"),
        (
            [("a.png", b"x"), ("a.cls", b"1"), ("a.PNG", b"x")],
            "s.tar:a.PNG` is twice in its sample",
        ),
        ([("a.png", b"x"), ("a.cls", b"cat")], "at most 6 digits, got `cat`"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "expected a class number"),
        ([("a.png", b"x"), ("a.cls", b"9999999")], "of at most 6 digits"),
        ([("a.txt", b"x")], "s.tar`: no image with a `.cls`"),
        ([], "s.tar`: no image with a `.cls`"),
    ],
)
def test_samples_that_are_refused(shard, members, message):
    assert message in refused(shard(members))


@pytest.fixture
def stored(monkeypatch):
    """Write a file to the memory that fsspec serves."""
    memory = fsspec.filesystem("memory")

    def write(name, data):
        memory.pipe(f"/{name}", data)
        return f"memory://{name}"

    yield write
    memory.store.clear()


def test_shards_behind_urls(stored, shard, image, monkeypatch):
    monkeypatch.setattr(shards, "_WINDOW_BYTES", 1000)
    urls = []
    for number in range(3):
        members = [
            (f"{number}{name}", data)
            for name, data in [("a.png", image(colour=(number, 0, 0))), ("a.cls", b"0"),
                               ("b.jpg", image("JPEG", size=(90, 90))), ("b.cls", b"1")]
        ]  # fmt: skip
        urls.append(stored(f"s-{number}.tar", shard(members).read_bytes()))
    source = open_source(urls)
    assert source.labels.tolist() == [0, 1] * 3
    assert source.name_of(3) == "memory://s-1.tar:1b.jpg"
    for row in (4, 0, 5):
        data = image(colour=(row // 2, 0, 0)) if row % 2 == 0 else image("JPEG", size=(90, 90))
        assert source.read(row) == data
    assert open_source("memory://s-{0..2}.tar").digest() == source.digest()
    assert open_source("memory://s-*.tar").digest() == source.digest()


def test_a_shard_that_becomes_shorter(shard, image):
    path = shard([("a.png", image()), ("a.cls", b"0"), ("b.png", image()), ("b.cls", b"1")])
    source = open_source(path)
    os.truncate(path, 2560 + 40)
    assert source.read(0) == image()
    with pytest.raises(UserInputError, match=r"s\.tar` became shorter .* `b\.png` has 40 of"):
        source.read(1)
    with pytest.raises(UserInputError, match="damaged tar file"):
        open_source(path)
