"""Listings that are kept: used while nothing changed, and made again with a word when it did."""

import os

import numpy as np
import pytest

from hellofmt.sources import kept, open_source

KEPT = kept.KEPT_PATTERN


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch):
    monkeypatch.setattr(kept, "_WORTH_KEEPING", 1)


def settle(root):
    """As if nothing had changed for a minute."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def lists(monkeypatch):
    """How often a folder was listed."""
    made, scandir = [], os.scandir

    def count(path):
        made.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", count)
    return made


def same(one, two):
    assert one.digest() == two.digest()
    assert [one.name_of(row) for row in range(len(one))] == [
        two.name_of(row) for row in range(len(two))
    ]
    assert one.notes == two.notes
    assert np.array_equal(one.labels, two.labels)


def test_a_second_start_lists_nothing(tree, tmp_path, lists):
    root = tree("a/x/1.png", "b/1.png", "b/\u00e9.png")
    (root / os.fsdecode(b"b/\xff.png")).write_bytes((root / "b/1.png").read_bytes())
    settle(root)
    first = open_source(root, work=tmp_path / "work")
    assert len(list((tmp_path / "work").glob(KEPT))) == 1
    lists.clear()
    second = open_source(root, work=tmp_path / "work")
    assert lists == []
    same(first, second)
    assert second.read(3) == first.read(3)
    # Another class list is of the same listing.
    assert open_source(root, work=tmp_path / "work", classes=first.classes[::-1]).labels[0] == 1
    assert lists == []


def add(root):
    (root / "a" / "new.png").write_bytes((root / "a" / "1.png").read_bytes())


def remove(root):
    (root / "a" / "2.png").unlink()


def overwrite(root):
    with (root / "a" / "2.png").open("ab") as stream:
        stream.write(b"more")


@pytest.mark.parametrize(("change", "now"), [(add, 4), (remove, 2), (overwrite, 3)])
def test_what_changed_is_listed_again_and_said(tree, tmp_path, change, now):
    root = tree("a/1.png", "a/2.png", "b/1.png")
    settle(root)
    before = open_source(root, work=tmp_path)
    change(root)
    source = open_source(root, work=tmp_path)
    (note,) = source.notes
    assert f"`{root}` changed since it was listed: 3 images then, {now} now; what was made" in note
    assert source.digest() != before.digest()
    same(open_source(root, work=tmp_path), open_source(root))


def test_what_changed_a_moment_ago_is_not_trusted(tree, tmp_path, lists):
    root = tree("a/1.png", "b/1.png")
    open_source(root, work=tmp_path)
    lists.clear()
    assert open_source(root, work=tmp_path).notes == ()
    assert lists


def test_a_damaged_listing_is_made_again(tree, tmp_path, lists):
    root = tree("a/1.png", "b/1.png")
    settle(root)
    first = open_source(root, work=tmp_path)
    (path,) = tmp_path.glob(KEPT)
    whole = path.read_bytes()
    # Not in place: `first` reads the names in the file.
    path.unlink()
    path.write_bytes(whole[:-3])
    lists.clear()
    same(open_source(root, work=tmp_path), first)
    assert lists


def test_shards_are_indexed_once(shard, image, tmp_path, monkeypatch):
    path = shard([("a.png", image()), ("a.cls", b"0"), ("b.png", image()), ("b.cls", b"1")])
    os.utime(path, ns=(10**18, 10**18))
    first = open_source([path], work=tmp_path)
    monkeypatch.setattr("tarfile.open", None)
    second = open_source([path], work=tmp_path)
    same(first, second)
    assert second.read(1) == image()
    with path.open("ab") as stream:
        stream.write(b"\0" * 512)
    with pytest.raises(TypeError):
        open_source([path], work=tmp_path)
