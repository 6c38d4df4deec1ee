"""Label functions of several archives joined in one, and what does not go together."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from hellofmt.archive import ClassLine, open_archive, write_archive
from hellofmt.errors import UserInputError
from hellofmt.sources import pack_archive


@pytest.fixture
def stored(samples, tmp_path):
    """Write a projector alone: ``stored(name, storage, ...)``."""

    def write(name, storage="float16", part=None, **changes):
        path = tmp_path / f"{name}.hello"
        part = part or samples.projector(storage)
        write_archive(path, replace(samples.draft(projector=part), **changes))
        return path

    return write


def test_joined_bit_for_bit_with_new_names(stored, samples, tmp_path, tree):
    late, early = stored("late", part=samples.projector(kind="embedded")), stored("early", "int4")
    lines = []
    pack_archive(None, tmp_path / "x.hello", projector=[late, ("early_2", early)], say=lines.append)
    assert lines == []
    with (
        open_archive(tmp_path / "x.hello") as file,
        open_archive(late) as a,
        open_archive(early) as b,
    ):
        assert [f.name for f in file.manifest.functions] == ["default", "early_2"]
        assert file.manifest.functions[1].head == b.manifest.functions[0].head
        assert (file.manifest.base, file.manifest.dataset.name) == (a.manifest.base, "tiny")
        for kind in ("adapter", "head", "probes"):
            assert file.section(kind) == a.section(kind)
            assert file.section(f"{kind}_early_2") == b.section(kind)
        assert file.section("base") == a.section("base")
    # And all of them beside images.
    keys = [line.key for line in samples.CLASSES]
    root = tree(*(f"{key}/0.png" for key in keys))
    pack_archive(root, tmp_path / "y.hello", projector=tmp_path / "x.hello")
    with open_archive(tmp_path / "y.hello") as file:
        assert len(file) == len(keys)
        assert [f.name for f in file.manifest.functions] == ["default", "early_2"]


def test_views_that_are_dropped_are_said(stored, samples, tmp_path):
    views = msgspec.structs.replace(samples.VIEWS, size=7)
    lines, other = [], stored("b", views=views)
    projector = [stored("a"), ("b", other)]
    pack_archive(None, tmp_path / "x.hello", projector=projector, say=lines.append)
    assert lines == [f"{other}: its views differ from the first's, which are taken"]


def test_what_does_not_go_together_is_refused(stored, samples, tmp_path):
    part = samples.projector()
    weights = msgspec.structs.replace(part.base, tensors="sha256:" + "1" * 64)
    digest = samples.base_digest(weights.arch, weights.preprocess, weights.tensors)
    other = replace(part, base=msgspec.structs.replace(weights, digest=digest))
    lines = [ClassLine(line.key, ("same key", "other name")) for line in samples.CLASSES]
    a, renamed = stored("a"), stored("d", classes=lines)
    swapped = stored("c", classes=tuple(reversed(samples.CLASSES)))
    bare = tmp_path / "bare.hello"
    write_archive(bare, samples.draft(images=samples.images(1)))
    both = tmp_path / "both.hello"
    pack_archive(None, both, projector=[a, ("b", a)])
    for projector, text in (
        ([a, ("b", stored("b", part=other))], f"one base; expected tiny {part.base.digest}, got"),
        ([a, ("b", swapped)], "have one class list; class 0: expected "),
        ([a, ("b", renamed)], "(same key, other name)"),
        ([a, a], "`: a second label function called default; expected another name; "),
        ([a, both], "`: a second label function called default"),
        ([a, ("x", both)], "has 2 label functions; expected one to be called x"),
        ([a, ("B", a)], "expected 1 to 32 of a-z, 0-9 and _, got B"),
        ([a, bare], "no label function in this archive"),
        ([], "no archive to take a label function from"),
        (None, "expected images or a projector to pack"),
    ):
        with pytest.raises(UserInputError) as caught:
            pack_archive(None, tmp_path / "x.hello", projector=projector)
        assert text in str(caught.value)
        # A file with several functions cannot be named anew.
        assert ("NAME=FILE" in caught.value.advice) == (projector == [a, a])
        assert not (tmp_path / "x.hello").exists()
    with pytest.raises(UserInputError, match="`shards`: no images to divide"):
        pack_archive(None, tmp_path / "x.hello", projector=a, shards=2)


def test_images_that_belong_to_a_label_function(stored, samples, tmp_path, tree):
    keys = [line.key for line in samples.CLASSES]
    root = tree(*(f"{key}/{i}.png" for key in keys for i in range(2)))
    owner, images = stored("owner"), tmp_path / "images.hello"
    pack_archive(root, images, belongs_to=owner, ordered=True)
    with open_archive(owner) as file, open_archive(images) as made:
        owner_id = file.id
        assert made.manifest.label_function == owner_id
        assert made.manifest.functions is msgspec.UNSET
        assert (made.manifest.views, made.manifest.images.order) == (file.manifest.views, "value")
    # Kept by a copy, checked where the two are joined, and gone then.
    pack_archive(images, tmp_path / "copy.hello")
    pack_archive(tmp_path / "copy.hello", tmp_path / "both.hello", projector=owner)
    with (
        open_archive(tmp_path / "copy.hello") as copy,
        open_archive(tmp_path / "both.hello") as both,
    ):
        assert (copy.manifest.label_function, copy.manifest.images.order) == (owner_id, "value")
        assert both.manifest.label_function is msgspec.UNSET
        assert len(both.manifest.functions) == 1
    with pytest.raises(UserInputError, match=f"belong to the label function of archive {owner_id}"):
        pack_archive(images, tmp_path / "x.hello", projector=stored("other", "int8"))
    with pytest.raises(
        UserInputError, match="`belongs_to`: names what stays in another file; expected none beside"
    ):
        pack_archive(images, tmp_path / "x.hello", projector=owner, belongs_to=owner)
    lines = []
    other = [ClassLine(line.key, line.names) for line in reversed(samples.CLASSES)]
    pack_archive(images, tmp_path / "x.hello", classes=other, say=lines.append)
    assert lines == [
        f"the classes change, so the label function of archive {owner_id} is no longer named"
    ]


def test_columns_of_an_archive_are_kept_with_their_images(samples, tmp_path):
    columns = {
        "labels": np.array([[1, -1], [0, -1], [-1, 0]], np.int32),
        "x_row": np.arange(3, dtype=np.uint64),
    }
    images = replace(samples.images(3), columns=columns)
    write_archive(tmp_path / "a.hello", samples.draft(images=images))
    other = [ClassLine("new", ("new",)), *reversed(samples.CLASSES)]
    pack_archive(tmp_path / "a.hello", tmp_path / "b.hello", classes=other)
    with open_archive(tmp_path / "a.hello") as a, open_archive(tmp_path / "b.hello") as b:
        assert a.index.columns["x_row"].tolist() == [0, 2, 1]
        # Classes 0 and 1 are now 2 and 1.
        assert b.index.label.tolist() == [1, 2, 2]
        assert b.index.columns["x_row"].tolist() == [1, 0, 2]
        assert b.index.columns["labels"].tolist() == [[2, -1], [1, -1], [-1, 2]]
        for row, at in enumerate([2, 0, 1]):
            assert np.array_equal(b.decode_image(row), a.decode_image(at))
