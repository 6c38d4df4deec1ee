"""A sharded data set read as one archive, and everything that makes files no set."""

import hashlib
import pickle  # noqa: TID251
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import msgspec
import numpy as np
import pytest

from hellofmt.archive import (
    Draft,
    HelloSet,
    ImageSet,
    Limits,
    open_archive,
    shard_path,
    verify_archive,
    write_archive,
    write_shards,
)
from hellofmt.archive.format.digest import set_id
from hellofmt.archive.read import set as set_module
from hellofmt.archive.write.staged import Staged
from hellofmt.errors import (
    CorruptError,
    HelloIOError,
    LimitError,
    SpecError,
    TrustError,
    UserInputError,
)

COUNT = 4
TOTAL = 22


@pytest.fixture
def draft(samples):
    return samples.draft(
        images=samples.images(TOTAL), projector=samples.projector(), card="# tiny", license="CC0"
    )


@pytest.fixture
def whole(draft, tmp_path):
    path = tmp_path / "whole.hello"
    write_archive(path, draft)
    return path


@pytest.fixture
def folder(draft, tmp_path):
    """The set, alone in a folder."""
    folder = tmp_path / "set"
    folder.mkdir()
    write_shards(folder / "tiny.hello", draft, COUNT)
    return folder


def pattern(folder):
    return f"{folder}/tiny-*-of-00004.hello"


def paths(folder):
    return [shard_path(folder / "tiny.hello", i, COUNT) for i in range(COUNT)]


def test_names_and_parts(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        f"tiny-0000{i}-of-00004.hello" for i in range(COUNT)
    ]
    sizes = []
    for i, path in enumerate(paths(folder)):
        with open_archive(path) as file:
            shard = file.manifest.shard
            assert (shard.count, shard.index, shard.first, shard.total) == (4, i, sum(sizes), 22)
            assert file.manifest.dataset.ipc == 11
            sizes.append(len(file))
            assert file.shards == [file]
    assert sizes == [5, 6, 5, 6]


def test_a_set_reads_like_the_whole(folder, whole):
    with open_archive(pattern(folder)) as made, open_archive(whole) as file:
        assert isinstance(made, HelloSet)
        assert (len(made), made.manifest.dataset) == (len(file), file.manifest.dataset)
        assert made.manifest.images.count == file.manifest.images.count
        assert made.manifest.images.span == file.manifest.images.span
        assert made.manifest.shard is msgspec.UNSET
        assert made.classes.keys == file.classes.keys
        assert made.classes.names == file.classes.names
        for name in ("size", "label", "height", "width", "sha256"):
            assert np.array_equal(getattr(made.index, name), getattr(file.index, name)), name
            assert not getattr(made.index, name).flags.writeable
        rows = np.random.default_rng(0).permutation(TOTAL)
        assert made.read_images(rows) == file.read_images(rows)
        for row in range(TOTAL):
            assert made.image_name(row) == file.image_name(row)
            assert np.array_equal(made.decode_image(row), file.decode_image(row))
        for name in ("classes", "adapter", "head", "probes", "card", "license"):
            assert made.has_section(name)
            assert made.section(name) == file.section(name)
        for name in ("adapter", "head", "probes"):
            for key, values in file.tensors(name).items():
                assert np.array_equal(made.tensors(name)[key], values)
        assert made.size_bytes == sum(path.stat().st_size for path in paths(folder))
        assert made.section_sizes()["head"] == 4 * file.section_sizes()["head"]
        assert dict(made.extras) == dict(file.extras)
        for row in (TOTAL, -1):
            with pytest.raises(UserInputError, match="row; expected 0 to 21"):
                made.read_image(row)
            with pytest.raises(UserInputError, match="row; expected 0 to 21"):
                made.image_name(row)


def test_identity_of_a_set(folder, whole):
    ids = []
    for path in paths(folder):
        with open_archive(path) as file:
            ids.append(file.id)
    wanted = hashlib.sha256(("hello/set/1\n" + "\n".join(ids) + "\n").encode()).hexdigest()
    with open_archive(paths(folder)) as made:
        assert made.id == f"sha256:{wanted}" == set_id(ids)
        with open_archive(whole) as file:
            assert made.content_id == file.content_id
    with open_archive(pattern(folder), expect=made.id) as same:
        assert same.content_id == made.content_id
    with pytest.raises(TrustError, match=r"E_PIN: id of the set; expected sha256:0+, got sha256:"):
        open_archive(pattern(folder), expect="sha256:" + "0" * 64)
    with pytest.raises(UserInputError, match="`expect`: expected sha256: and 64 hex digits"):
        open_archive(pattern(folder), expect="0")


def test_every_way_to_name_a_set(folder, monkeypatch):
    wanted = open_archive(pattern(folder))
    monkeypatch.chdir(folder)
    ways = [
        "tiny-*-of-00004.hello",
        "tiny-{00000..00003}-of-00004.hello",
        f"{folder}/tiny-0000[0-3]-of-0000?.hello",
        [str(path) for path in reversed(paths(folder))],
        tuple(paths(folder)),
    ]
    for way in ways:
        with open_archive(way) as made:
            assert (made.id, made.read_image(21)) == (wanted.id, wanted.read_image(21))
    wanted.close()


def test_the_exact_name_of_a_shard_is_that_shard(folder):
    with open_archive(paths(folder)[1]) as file:
        assert not isinstance(file, HelloSet)
        assert file.image_name(0) == "images/0000/000005.png"


def test_a_name_that_looks_like_a_pattern_is_a_name(whole, tmp_path):
    odd = tmp_path / "a[1]*{0..1}.hello"
    shutil.copy(whole, odd)
    with open_archive(str(odd)) as file:
        assert not isinstance(file, HelloSet)
    with open_archive(str(tmp_path / "w*.hello")) as file:
        assert not isinstance(file, HelloSet)
        assert len(file) == TOTAL
    with open_archive([whole], expect=file.id) as file:
        assert len(file) == TOTAL


def test_packed_shards(samples, tmp_path):
    whole = samples.draft(images=samples.images(30, side=4, layout="auto"))
    write_archive(tmp_path / "whole.hello", whole)
    made = write_shards(tmp_path / "p.hello", whole, 3)
    with open_archive(str(tmp_path / "p-*.hello"), expect=made) as file:
        assert file.manifest.images.layout == "packed"
        with open_archive(tmp_path / "whole.hello") as one:
            for row in range(30):
                assert np.array_equal(file.decode_image(row), one.decode_image(row))


def test_verify_a_set(folder, whole):
    seen = []
    report = verify_archive(
        pattern(folder), progress=lambda done, total: seen.append((done, total)), pixels=True
    )
    assert seen == [(i + 1, TOTAL) for i in range(TOTAL)]
    assert report.images == TOTAL
    assert report.checks[0] == "set"
    assert "shard 3 images" in report.checks
    assert report.pixel_digest == verify_archive(whole, pixels=True).pixel_digest
    assert verify_archive(pattern(folder), expect=report.id, level="fast").images == 0
    data = bytearray(paths(folder)[2].read_bytes())
    data[-1600] ^= 1
    paths(folder)[2].write_bytes(data)
    with pytest.raises((CorruptError, SpecError)):
        verify_archive(pattern(folder))


def test_a_set_behind_urls(folder):
    filesystem = fsspec.filesystem("memory")
    for path in paths(folder):
        filesystem.pipe(f"/set/{path.name}", path.read_bytes())
    try:
        with open_archive(pattern(folder)) as wanted:
            for url in ("memory://set/tiny-*-of-00004.hello",
                        "memory://set/tiny-{00000..00003}-of-00004.hello"):  # fmt: skip
                with open_archive(url, expect=wanted.id) as made:
                    rows = [21, 0, 7, 12]
                    assert made.read_images(rows) == wanted.read_images(rows)
        with pytest.raises(FileNotFoundError):
            open_archive("memory://set/other-*.hello")
    finally:
        filesystem.store.clear()
    with pytest.raises(UserInputError, match="web servers list no files"):
        open_archive("http://127.0.0.1:9/tiny-*-of-00004.hello")


def test_pickled_sets_open_again(folder):
    with open_archive(pattern(folder)) as made:
        pickled = pickle.dumps(made)
        with pickle.loads(pickled) as copy:  # noqa: S301
            assert (copy.id, copy.read_image(20)) == (made.id, made.read_image(20))
    paths(folder)[0].unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickled)  # noqa: S301


def test_what_a_set_has_not(folder):
    with open_archive(pattern(folder)) as made:
        for ask in (
            lambda: made.section("index"),
            lambda: made.tensors("index"),
            lambda: made.section_offset("head"),
            lambda: made.manifest_bytes,
            lambda: made.pixels_start,
            lambda: made.source,
        ):
            with pytest.raises(UserInputError, match="each shard of a set has its own; open one"):
                ask()
        with pytest.raises(UserInputError, match="E_OPTION"):
            made.section("base")
        assert "4 shards, 22 images" in repr(made)
    with pytest.raises(HelloIOError, match="closed"):
        made.read_image(0)


def test_incomplete_and_repeated(folder):
    first, second, third, last = paths(folder)
    with pytest.raises(UserInputError, match="shard 2 is missing; expected 4 shards, got 3"):
        open_archive([first, second, last])
    with pytest.raises(UserInputError, match="shard 0 is missing; expected 4 shards, got 1"):
        open_archive([second])
    with pytest.raises(UserInputError, match=r"are both shard 1$"):
        open_archive([first, second, second, third, last])
    third.unlink()
    with pytest.raises(UserInputError, match="shard 2 is missing"):
        open_archive(pattern(folder))
    with pytest.raises(FileNotFoundError):
        open_archive(f"{folder}/tiny-{{00000..00003}}-of-00004.hello")
    with pytest.raises(FileNotFoundError):
        open_archive(f"{folder}/other-*.hello")
    with pytest.raises(UserInputError, match="no files; expected those of a sharded data set"):
        open_archive([])


@pytest.mark.parametrize("braces", ["{3..0}", "{0..10}", "{00..1}", "{0..999999999}"])
def test_braces_that_are_no_range(folder, braces):
    with pytest.raises(UserInputError, match=r"expected digits like \{00000..00015\}"):
        open_archive(f"{folder}/tiny-{braces}-of-00004.hello")


def test_files_that_are_no_shards(folder, whole):
    with pytest.raises(UserInputError, match="is not a shard; expected the files of one data set"):
        open_archive([*paths(folder), whole])


def changed(draft, folder, index, **changes):
    """Write one shard of the set anew, from a draft with some parts changed."""
    with open_archive(paths(folder)[index]) as file:
        shard, dataset = file.manifest.shard, file.manifest.dataset
    items = sorted(draft.images.items, key=lambda item: item.label)
    own = items[shard.first : shard.first + [5, 6, 5, 6][index]]
    parts = {
        "dataset": dataset, "classes": draft.classes, "views": draft.views,
        "projector": draft.projector, "card": draft.card, "license": draft.license,
        "producer": draft.producer, "images": ImageSet("png", own, "files"), "shard": shard,
    }  # fmt: skip
    for name, change in changes.items():
        parts[name] = change(parts[name]) if callable(change) else change
    write_archive(paths(folder)[index], Draft(**parts), force=True)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("dataset", {"dataset": lambda d: msgspec.structs.replace(d, version="2.0.0")}),
        ("views", {"views": lambda v: msgspec.structs.replace(v, size=9)}),
        ("sections", {"card": "# other"}),
        ("x_note", {"extras": {"x_note": "other"}}),
        ("producer", {"producer": lambda p: msgspec.structs.replace(p, version="9")}),
        ("base", {"projector": None}),
    ],
)
def test_shards_of_another_data_set(folder, draft, key, changes):
    changed(draft, folder, 2, **changes)
    with pytest.raises(
        CorruptError, match=rf"`.*tiny-00002.*` .* is of another data set than .*: `{key}` differs$"
    ):
        open_archive(pattern(folder))


def test_shards_of_another_layout(samples, folder, draft):
    changed(draft, folder, 1, images=lambda images: ImageSet("png", images.items, "packed"))
    with pytest.raises(CorruptError, match=r"E_DIGEST_ROOT.*`images` differs"):
        open_archive(pattern(folder))


def test_shards_of_another_count(folder, draft):
    changed(draft, folder, 1, shard=lambda s: msgspec.structs.replace(s, count=5))
    with pytest.raises(UserInputError, match=r"is of 5 shards with 22 images, `.*` of 4 with 22$"):
        open_archive(pattern(folder))


def test_rows_that_do_not_follow(folder, draft):
    changed(draft, folder, 1, shard=lambda s: msgspec.structs.replace(s, first=4))
    with pytest.raises(SpecError, match=r"E_INDEX .*begins at image 4; expected 5$"):
        open_archive(pattern(folder))


def other(samples, draft):
    """The same data set with two images swapped: nothing else differs, not even a size."""
    items = list(draft.images.items)
    items[0], items[2] = items[2], items[0]
    return replace(draft, images=replace(draft.images, items=items))


def test_a_mixture_of_two_sets(samples, folder, draft, tmp_path):
    write_shards(tmp_path / "tiny.hello", other(samples, draft), COUNT)
    shutil.copy(tmp_path / "tiny-00002-of-00004.hello", folder)
    with pytest.raises(CorruptError) as caught:
        open_archive(pattern(folder))
    assert caught.value.code == "E_DIGEST_ROOT"
    contents = [open_archive(p).manifest.shard.content_id for p in paths(folder)]
    assert len(set(contents)) == 2
    assert all(content in str(caught.value) for content in contents)


def test_a_forged_shard_is_found_by_verification(samples, folder, draft):
    items = sorted(other(samples, draft).images.items, key=lambda item: item.label)
    changed(draft, folder, 0, images=ImageSet("png", items[:5], "files"))
    # Each shard is in order, and all name the same set.
    assert len(open_archive(pattern(folder))) == TOTAL
    for level in ("full", "fast"):
        with pytest.raises(CorruptError, match=r"E_DIGEST_ROOT.*name sha256:\w+, but hold sha256:"):
            verify_archive(pattern(folder), level=level)


def test_another_number_of_shards(folder, draft, caplog):
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*tiny-00000-of-00004.hello` exists"):
        write_shards(folder / "tiny.hello", draft, 2)
    (folder / "tiny-extra-00000-of-00004.hello").touch()
    said = []
    write_shards(folder / "tiny.hello", draft, 2, force=True, say=said.append)
    assert sorted(path.name for path in folder.iterdir()) == [
        "tiny-00000-of-00002.hello", "tiny-00001-of-00002.hello", "tiny-extra-00000-of-00004.hello"
    ]  # fmt: skip
    [line] = said
    assert line.startswith("removed 4 shards of another number, `")
    write_shards(folder / "tiny.hello", draft, 3, force=True)
    assert "removed 2 shards" in caplog.text


def test_no_name_appears_before_all_are_complete(draft, tmp_path, monkeypatch):
    seen, plain = [], Staged.publish

    def publish(staged, force):
        seen.append(sorted(p.name for p in tmp_path.iterdir()))
        plain(staged, force=force)

    monkeypatch.setattr(Staged, "publish", publish)
    write_shards(tmp_path / "x.hello", draft, COUNT)
    assert [sum(name.endswith(".tmp") for name in names) for names in seen] == [4, 3, 2, 1]
    assert [sum(name.endswith(".hello") for name in names) for names in seen] == [0, 1, 2, 3]


def test_a_directory_that_is_not_synced_holds_the_whole_set(draft, tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(5, "directory lost")

    monkeypatch.setattr("hellofmt.archive.write.staged.sync_directory", fail)
    with pytest.raises(HelloIOError, match=r"E_DURABILITY: `?.*x-00000-of-00004.hello.* written"):
        write_shards(tmp_path / "x.hello", draft, COUNT)
    assert len(list(tmp_path.iterdir())) == COUNT
    verify_archive(pattern(tmp_path).replace("tiny", "x"))


def test_a_name_that_is_taken_meanwhile(draft, tmp_path):
    target = tmp_path / "x-00002-of-00004.hello"

    def take(done, total):
        target.write_bytes(b"mine")

    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*x-00002-of-00004.hello`"):
        write_shards(tmp_path / "x.hello", draft, COUNT, progress=take)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"mine"


def test_labels_over_all_shards(folder, draft):
    items = sorted(draft.images.items, key=lambda item: item.label)
    changed(draft, folder, 3, images=ImageSet("png", items[:6], "files"))
    with (
        open_archive(pattern(folder)) as made,
        pytest.raises(SpecError, match=r"E_INDEX .*labels are not sorted"),
    ):
        made.read_image(0)


def test_images_per_class_over_all_shards(folder, draft):
    items = sorted(draft.images.items, key=lambda item: item.label)
    changed(draft, folder, 1, images=ImageSet("png", items[4:9] + items[12:13], "files"))
    # Which no single shard can know.
    assert verify_archive(paths(folder)[1]).images == 6
    with (
        open_archive(pattern(folder)) as made,
        pytest.raises(SpecError, match="class 0 has 10 images; `ipc` states 11"),
    ):
        _ = made.index


def test_limits_are_those_of_a_file(folder):
    with open_archive(pattern(folder), limits=Limits(images=6)) as made:
        assert len(made) == 22
    with pytest.raises(LimitError, match=r"E_LIMIT_IMAGES .*`images` is 6, cap 5"):
        open_archive(pattern(folder), limits=Limits(images=5))


def test_more_shards_than_a_process_may_hold_open(folder, whole, monkeypatch):
    monkeypatch.setattr(set_module, "_MOST_OPEN", COUNT - 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.chdir(folder)
    with open_archive("tiny-*-of-00004.hello") as made, open_archive(whole) as one:
        monkeypatch.chdir("/")
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
        rows = list(range(TOTAL))
        assert made.read_images(rows) == one.read_images(rows)
        gone = paths(folder)[1]
        gone.unlink()
        with pytest.raises(HelloIOError, match=r"E_READ: .*tiny-00001.*: No such file"):
            made.read_images(rows)
        # Another file of the same name is noticed by what it holds.
        gone.write_bytes(paths(folder)[0].read_bytes())
        with pytest.raises((CorruptError, SpecError)):
            made.read_images(rows)
    with pytest.raises(HelloIOError, match="the archive is closed"):
        made.shards[0].read_images([0])


def test_no_file_stays_open(folder):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UserInputError):
        open_archive(paths(folder)[:3])
    with pytest.raises(FileNotFoundError):
        open_archive([*paths(folder), folder / "none.hello"])
    with open_archive(pattern(folder)) as made:
        _ = made.index
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_writing_refuses(draft, folder, samples, tmp_path):
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*tiny-00000-of-00004.hello` exists"):
        write_shards(folder / "tiny.hello", draft, COUNT)
    for count in (0, 1, 23):
        with pytest.raises(UserInputError, match=f"`shards`: expected 2 to 22, got {count}"):
            write_shards(tmp_path / "x.hello", draft, count)
    with pytest.raises(UserInputError, match="no images; expected images to divide"):
        write_shards(tmp_path / "x.hello", samples.draft(projector=samples.projector()), 2)
    (tmp_path / "d-00001-of-00002.hello").mkdir()
    with pytest.raises(HelloIOError, match=r"E_TARGET: .*d-00001-of-00002.hello is not a regular"):
        write_shards(tmp_path / "d.hello", draft, 2, force=True)
    before = [path.read_bytes() for path in paths(folder)]
    assert write_shards(folder / "tiny.hello", draft, COUNT, force=True)
    assert [path.read_bytes() for path in paths(folder)] == before


def test_a_failed_set_leaves_no_part(draft, tmp_path):
    calls = []

    def stop(done, total):
        calls.append((done, total))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "x.hello", draft, COUNT, progress=stop)
    assert calls == [(5, 22), (11, 22), (16, 22)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_shards_written_by_other_processes_are_the_same(samples, tmp_path, layout):
    """What they get and give pickles and holds their rows alone; work may be repeated."""
    columns = {"weight": np.arange(TOTAL, dtype=np.float32)}
    images = replace(samples.images(TOTAL, layout=layout), columns=columns)
    draft = samples.draft(images=images, projector=samples.projector())
    for name in ("here", "there"):
        (tmp_path / name).mkdir()

    def spread(work, values):
        for sent in [pickle.dumps((work, value)) for value in values]:
            own, value = pickle.loads(sent)  # noqa: S301
            assert len(value[1]._rows) in {5, 6}
            assert not value[1]._draft.images.items
            own(value)
            # Its process was killed before it could tell.
            own, value = pickle.loads(sent)  # noqa: S301
            yield pickle.loads(pickle.dumps(own(value)))  # noqa: S301

    ids = [
        write_shards(tmp_path / "here" / "x.hello", draft, COUNT),
        write_shards(tmp_path / "there" / "x.hello", draft, COUNT, spread=spread),
    ]
    assert ids[0] == ids[1]
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("here", "there")
    )
    assert len(here) == COUNT
    assert here == there


@pytest.mark.parametrize("calls", [2, 6])
def test_work_that_fails_elsewhere_leaves_no_file(draft, tmp_path, calls):
    left = iter(range(calls))

    def spread(work, values):
        for value in values:
            if next(left, None) is None:
                raise ConnectionError("a machine is gone")
            yield work(value)

    with pytest.raises(ConnectionError):
        write_shards(tmp_path / "x.hello", draft, COUNT, spread=spread)
    assert not list(tmp_path.iterdir())
