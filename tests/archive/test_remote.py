"""URLs of fsspec's storages, the cache of what came from them, and merged reads."""

import io
import itertools
import os
import pickle  # noqa: TID251
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry

from hellofmt.archive import open_archive, verify_archive, write_archive
from hellofmt.archive.storage import remote
from hellofmt.archive.storage.cache import DigestCache
from hellofmt.archive.storage.source import (
    LocalSource,
    cut_ranges,
    display_name,
    is_url,
    merge_ranges,
)
from hellofmt.errors import CorruptError, HelloIOError, TrustError, UserInputError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.0005)


@pytest.fixture
def local(samples, tmp_path):
    path = tmp_path / "x.hello"
    write_archive(path, samples.draft(images=samples.images(40), projector=samples.projector()))
    return path


@pytest.fixture
def memory(local):
    """The archive as `memory://`, and the file system that holds it."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/data/x.hello", local.read_bytes())
    yield filesystem
    filesystem.store.clear()


URL = "memory://data/x.hello"


def contents(file):
    with file:
        names = file.section_sizes()
        return [file.section(name) for name in names], file.read_images(range(len(file)))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("https://host/x.hello", True),
        ("S3://bucket/x", True),
        ("simplecache::https://host/x", True),
        ("tar://x.hello::file:///all.tar", True),
        ("x.hello", False),
        ("/a/b::c", False),
        ("a:b/x.hello", False),
        ("./https:/host", False),
        (Path("https://host/x"), False),
    ],
)
def test_what_is_a_url(name, is_one):
    assert is_url(name) is is_one


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("https://me:word@host:8/x.hello?token=1#f", "https://host:8/x.hello"),
        ("tar://x.hello::https://me:w@host/all.tar?k=v", "tar://x.hello::https://host/all.tar"),
        ("simplecache::s3://bucket/x", "simplecache::s3://bucket/x"),
        ("http://[::1", "http://...::1"),
        ("dir/x?y.hello", "dir/x?y.hello"),
    ],
)
def test_names_in_messages_have_no_secrets(name, shown):
    assert display_name(name) == shown


def test_a_storage_gives_what_the_file_gives(memory, local):
    assert contents(open_archive(URL)) == contents(open_archive(local))
    assert verify_archive(URL).id == verify_archive(local).id


def test_a_file_url_is_the_local_file(local):
    with open_archive(local.as_uri()) as file:
        assert isinstance(file.source, LocalSource)
        assert file.path == str(local)


def test_an_archive_inside_a_tar(local, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(local, "deep/x.hello")
    url = f"tar://deep/x.hello::file://{tmp_path}/all.tar"
    assert contents(open_archive(url)) == contents(open_archive(local))


def test_reads_go_by_range(memory, local, monkeypatch):
    asked = []
    cat = type(memory).cat_file

    def counted(self, path, start=None, end=None, **options):
        asked.append(end - start)
        return cat(self, path, start, end, **options)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    with open_archive(URL) as file:
        file.read_image(20)
    assert sum(asked) < local.stat().st_size + 2000
    assert len(asked) <= 2


@pytest.mark.parametrize(
    ("url", "kind", "text"),
    [
        ("memory://data/none.hello", FileNotFoundError, None),
        ("memory://data", IsADirectoryError, None),
        ("nothing://x", UserInputError, "E_OPTION: nothing://: Protocol not known: nothing"),
    ],
)
def test_what_cannot_be_opened(memory, url, kind, text):
    with pytest.raises(kind, match=text):
        open_archive(url)


@pytest.mark.parametrize(
    ("url", "module"), [("s3://bucket/x.hello", "s3fs"), ("http://host/x.hello", "aiohttp")]
)
def test_a_missing_package_is_one_line_that_names_the_extra(url, module, monkeypatch):
    for name in [*sys.modules]:
        if name.split(".")[0] == module or name == "fsspec.implementations.http":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for protocol in ("s3", "http", "https"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(UserInputError) as caught:
        open_archive(url)
    assert str(caught.value).endswith("; pip install 'hellofmt[remote]'")
    assert module in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_are_for_urls(local):
    with pytest.raises(UserInputError, match="`storage_options`; expected none: a local file"):
        open_archive(local, storage_options={"key": 1})


class Flaky:
    """A storage that fails or lies as told, once per entry."""

    def __init__(self, memory, outcomes):
        self.memory, self.outcomes, self.calls = memory, list(outcomes), 0

    def cat_ranges(self, paths, starts, ends, **options):
        self.calls += 1
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        found = self.memory.cat_ranges(paths, starts, ends, **options)
        return [outcome(one) for one in found] if outcome else found

    def __getattr__(self, name):
        return getattr(self.memory, name)


@pytest.fixture
def flaky(memory, monkeypatch):
    def use(*outcomes):
        made = Flaky(memory, outcomes)
        monkeypatch.setattr(remote, "_place", lambda *_: (made, "/data/x.hello"))
        return made

    return use


def short(data):
    return data[:-1]


def longer(data):
    return data + b"x"


def test_accidents_of_a_storage_are_tried_again(flaky, local):
    storage = flaky(short, OSError("reset"), TimeoutError("slow"), RuntimeError("?"), short)
    with open_archive(URL) as file:
        assert file.id == verify_archive(local).id
    assert storage.calls == 6


@pytest.mark.parametrize(
    ("outcome", "code", "text", "calls"),
    [
        (short, "E_SHORT_READ", "memory://data/x.hello: expected", 6),
        (longer, "E_READ", "memory://data/x.hello: expected", 1),
        (OSError("reset"), "E_READ", "memory://data/x.hello: reset", 6),
        (TimeoutError("slow"), "E_TIMEOUT", "memory://data/x.hello: slow", 6),
    ],
)
def test_lasting_faults_of_a_storage(flaky, outcome, code, text, calls):
    storage = flaky(*[outcome] * 10)
    with pytest.raises(HelloIOError, match=f"^{code}: {text}"):
        open_archive(URL)
    assert storage.calls == calls


def test_a_file_that_vanishes_is_missing_at_once(flaky):
    storage = flaky(lambda _: FileNotFoundError(2, "gone"))
    with pytest.raises(FileNotFoundError):
        open_archive(URL)
    assert storage.calls == 1


def test_pickled_archives_open_again(memory, local, tmp_path):
    options = {"skip_instance_cache": False}
    with open_archive(URL, storage_options=options, cache_dir=tmp_path / "cache") as file:
        copy = pickle.loads(pickle.dumps(file))  # noqa: S301
        assert (copy.id, copy.path) == (file.id, URL)
        assert copy.read_images([3, 1]) == file.read_images([3, 1])
        assert copy._access.storage_options == options
        assert copy._access.cache_dir == str(tmp_path / "cache")
        pickled = pickle.dumps(file)
    memory.pipe("/data/x.hello", local.read_bytes().replace(b'"tiny"', b'"tyni"', 1))
    with pytest.raises((CorruptError, TrustError)):
        pickle.loads(pickled)  # noqa: S301


def cached(folder):
    return sorted(path for path in (folder / "sha256").rglob("*") if path.is_file())


def test_the_cache_spares_reads(memory, local, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    wanted = contents(open_archive(local))
    assert contents(open_archive(URL, cache_dir=folder)) == wanted
    kept = cached(folder)
    # Every section and every image that differs, under its digest.
    with open_archive(local) as file:
        digests = {bytes(row).hex() for row in file.index.sha256}
        digests |= {section.digest[7:] for section in file.manifest.sections}
    assert {path.name for path in kept} == digests
    monkeypatch.setenv("HELLOFMT_CACHE", str(folder))
    with open_archive(URL) as file:
        asked = []
        monkeypatch.setattr(file.source, "read_ranges", lambda r: asked.extend(r) or [])
        assert file.read_images(range(40)) == wanted[1]
        assert asked == []


def test_an_empty_name_is_no_cache(memory, tmp_path, monkeypatch):
    monkeypatch.setenv("HELLOFMT_CACHE", str(tmp_path / "cache"))
    contents(open_archive(URL, cache_dir=""))
    verify_archive(URL)
    assert not (tmp_path / "cache").exists()


def test_local_files_are_not_cached(local, tmp_path):
    contents(open_archive(local, cache_dir=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "pipe", "link"])
def test_a_damaged_entry_is_fetched_again(memory, local, tmp_path, damage):
    folder = tmp_path / "cache"
    wanted = contents(open_archive(URL, cache_dir=folder))
    for path in cached(folder):
        data = path.read_bytes()
        path.unlink()
        if damage == "flip":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        elif damage == "cut":
            path.write_bytes(data[:-1])
        elif damage == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(local)
    assert contents(open_archive(URL, cache_dir=folder)) == wanted
    if damage != "link":
        assert contents(open_archive(URL, cache_dir=folder)) == wanted
        assert all(path.is_file() for path in cached(folder))


def test_a_cache_that_cannot_be_written_is_none(memory, local, tmp_path):
    (tmp_path / "cache").write_text("a file")
    wanted = contents(open_archive(local))
    assert contents(open_archive(URL, cache_dir=tmp_path / "cache")) == wanted


def test_the_cache_keeps_its_bound_and_what_was_used_last(tmp_path):
    import hashlib

    cache = DigestCache(tmp_path, limit=10_000)
    entries = [np.full(1000, i, np.uint8).tobytes() for i in range(30)]
    digests = [hashlib.sha256(entry).digest() for entry in entries]
    for i, (digest, entry) in enumerate(zip(digests, entries, strict=True)):
        cache.put(digest, entry)
        path = cache._path(digest)
        os.utime(path, (i, i))
        if i >= 1:
            # In use all the time.
            assert cache.get(digests[0], 1000) == entries[0] or i > 3
    assert sum(path.stat().st_size for path in cached(tmp_path)) <= 11_000
    assert cache.get(digests[0], 1000) == entries[0]
    assert cache.get(digests[29], 1000) == entries[29]
    assert cache.get(digests[5], 1000) is None
    assert cache.get(digests[29], 999) is None
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("gap", [0, 10, 4096])
def test_merged_ranges_give_the_same_bytes(gap):
    generator = np.random.default_rng(gap)
    data = generator.integers(0, 256, 100_000, np.uint8).tobytes()
    for _ in range(50):
        count = generator.integers(1, 30)
        ranges = [
            (int(at), int(size))
            for at, size in zip(
                generator.integers(0, 90_000, count),
                generator.integers(1, 5000, count),
                strict=True,
            )
        ]
        merged = merge_ranges(ranges, gap)
        assert merged == sorted(merged)
        for (at, size), (after, _) in itertools.pairwise(merged):
            assert after - (at + size) > gap
        blocks = [data[at : at + size] for at, size in merged]
        assert cut_ranges(ranges, merged, blocks) == [data[at : at + size] for at, size in ranges]


def test_merged_ranges_stay_below_8_mib(monkeypatch):
    mib = 1 << 20
    neighbours = [(i * mib, mib) for i in range(20)]
    assert [size for _, size in merge_ranges(neighbours, 0)] == [8 * mib, 8 * mib, 4 * mib]
    # One that is larger by itself stays whole, and what lies within it costs nothing.
    assert merge_ranges([(0, 20 * mib), (mib, 3), (20 * mib, 5)], 0) == [
        (0, 20 * mib),
        (20 * mib, 5),
    ]
    ranges = [(0, 6 * mib), (5 * mib, 4 * mib), (5 * mib + 1, 2)]
    merged = merge_ranges(ranges, 0)
    source = io.BytesIO(np.arange(9 * mib, dtype=np.uint32).astype(np.uint8).tobytes())
    data = source.getvalue()
    blocks = [data[at : at + size] for at, size in merged]
    assert cut_ranges(ranges, merged, blocks) == [data[at : at + size] for at, size in ranges]


def test_many_images_at_once(everything, samples, tmp_path):
    path = tmp_path / "m.hello"
    write_archive(path, samples.draft(images=samples.images(30)))
    with open_archive(path) as file:
        rows = [29, 3, 4, 5, 3, np.int64(0)]
        assert file.read_images(rows) == [file.read_image(int(row)) for row in rows]
        for pixels, row in zip(file.decode_images(rows), rows, strict=True):
            assert np.array_equal(pixels, file.decode_image(int(row)))
        assert file.read_images([]) == []
        for row in (30, -1):
            with pytest.raises(UserInputError, match=f"row; expected 0 to 29, got {row}"):
                file.read_images([0, row])
