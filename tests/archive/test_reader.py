import hashlib
import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from hellofmt.archive import Limits, open_archive, verify_archive, write_archive
from hellofmt.archive.format.manifest import Shard
from hellofmt.archive.storage.source import LocalSource
from hellofmt.errors import (
    CorruptError,
    HelloIOError,
    LimitError,
    NotHelloError,
    SpecError,
    TrustError,
    UserInputError,
)


def test_everything_reads_back(samples, everything):
    draft = samples.everything()
    with open_archive(everything) as file:
        assert file.path == str(everything)
        assert file.size_bytes == everything.stat().st_size
        assert len(file) == 2
        assert file.extras == {"x_note": "caf\u00e9"}
        assert file.classes.keys == ["n01", "n02"]
        assert file.classes.names == [("tench", "Tinca tinca"), ("gold fish",)]
        assert file.manifest.dataset.ipc == 1
        assert file.manifest.views == draft.views
        assert file.section("card").decode() == draft.card
        assert file.section("license") == b"CC0"
        assert list(file.section_sizes()) == [
            "index", "classes", "adapter", "head", "probes", "base", "card", "license",
        ]  # fmt: skip
        assert file.has_section("card")
        assert not file.has_section("pixels")
        for name, part in (
            ("adapter", draft.projector.adapter_tensors),
            ("head", draft.projector.head_tensors),
            ("base", draft.projector.base_tensors),
        ):
            tensors = file.tensors(name)
            assert set(tensors) == set(part)
            for key, tensor in part.items():
                assert (tensors[key] == tensor.numpy()).all()
        assert (file.tensors("probes")["logits"] == draft.projector.probe_logits).all()
        assert (file.tensors("index")["size"] == file.index.size).all()
        for row, item in enumerate(draft.images.items):
            assert file.index.label[row] == item.label
            assert file.read_image(row) == item.source
            assert file.index.sha256[row].tobytes() == hashlib.sha256(item.source).digest()
            assert (file.decode_image(row) == samples.pattern(row, 8, 8, 3)).all()
            name = f"images/{item.label:04d}/{row:06d}.png"
            assert file.image_name(row) == name
        assert repr(file) == f"<HelloFile {str(everything)!r} {file.id[:19]}... 2 images>"


def test_tar_tools_see_the_same_members(everything):
    with tarfile.open(everything) as tar, open_archive(everything) as file:
        assert tar.getnames() == [
            "__hello__/manifest",
            "__hello__/id",
            *(f"__hello__/{name}" for name in file.section_sizes()),
            *(file.image_name(row) for row in range(len(file))),
        ]
        assert tar.extractfile("__hello__/id").read().decode() == file.id[7:] + "\n"
        assert tar.extractfile(file.image_name(1)).read() == file.read_image(1)
    assert not zipfile.is_zipfile(everything)


def test_offsets_are_those_of_tar(everything):
    with tarfile.open(everything) as tar, open_archive(everything) as file:
        for row, offset in enumerate(file.index.offset):
            assert tar.getmember(file.image_name(row)).offset_data == offset


def test_grey_is_replicated(samples, tmp_path):
    for layout in ("files", "packed"):
        path = tmp_path / f"{layout}.hello"
        write_archive(path, samples.draft(images=samples.images(2, channels=1, layout=layout)))
        with open_archive(path) as file:
            pixels = file.decode_image(1)
        assert pixels.shape == (8, 8, 3)
        assert (pixels == samples.pattern(1, 8, 8, 1)).all()


def test_packed(samples, tmp_path):
    path = tmp_path / "p.hello"
    write_archive(path, samples.draft(images=samples.images(5, layout="auto")))
    with open_archive(path) as file:
        assert file.manifest.images.layout == "packed"
        assert file.manifest.requires == ["images.packed"]
        assert file.image_name(4) == "images/0001/000004.png"
        order = [0, 2, 4, 1, 3]
        for row, source in enumerate(order):
            assert (file.decode_image(row) == samples.pattern(source, 8, 8, 3)).all()
            assert file.read_image(row) == samples.pattern(source, 8, 8, 3).tobytes()
            at = int(file.index.offset[row])
            assert path.read_bytes()[at : at + 192] == file.read_image(row)
        assert file.tensors("pixels")["pixels"].shape == (5, 8, 8, 3)


def test_shard_numbers(samples, tmp_path):
    path = tmp_path / "s.hello"
    shard = Shard(content_id="sha256:" + "0" * 64, count=3, first=4, index=1, total=2_000_000)
    write_archive(path, samples.draft(images=samples.images(2, layout="files"), shard=shard))
    with open_archive(path) as file:
        assert file.image_name(1) == "images/0001/0000005.png"
        assert len(file.read_image(1)) > 0
    assert verify_archive(path).images == 2


def test_projector_alone(samples, tmp_path):
    path = tmp_path / "p.hello"
    write_archive(path, samples.draft(projector=samples.projector("int4")))
    with open_archive(path) as file:
        assert len(file) == 0
        assert file.index is None
        assert file.tensors("adapter")["conv1.weight::A"].shape == (1, 6)
        for call in (file.read_image, file.decode_image, file.image_name):
            with pytest.raises(UserInputError, match="E_OPTION: the archive has no images"):
                call(0)


def test_wrong_names_and_rows(everything):
    with open_archive(everything) as file:
        for row in (-1, 2):
            with pytest.raises(UserInputError, match=f"E_OPTION: row; expected 0 to 1, got {row}"):
                file.read_image(row)
        with pytest.raises(UserInputError, match="no section pixels; it has index, classes,"):
            file.section("pixels")
        with pytest.raises(UserInputError, match="E_OPTION: section card has no tensors"):
            file.tensors("card")


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"", NotHelloError, "begin with __hello__/manifest, the file is empty"),
        (b"just a text\n", NotHelloError, r"E_MAGIC: .*, got just a text\\n$"),
        (b"\x1b[31m" + bytes(4000), NotHelloError, r"E_MAGIC: .*, got \\x1b\[31m"),
        (b"PK\3\4" + bytes(4000), NotHelloError, "E_MAGIC"),
        (b"__hello__", CorruptError, "E_TRUNCATED offset=9: the file is cut; the shortest archive"),
        (b"__hello__/manifest" + bytes(2030), SpecError, "E_HEADER member=__hello__/manifest"),
    ],
)  # fmt: skip
def test_not_an_archive(tmp_path, data, kind, text):
    path = tmp_path / "x.hello"
    path.write_bytes(data)
    with pytest.raises(kind, match=text):
        open_archive(path)


def test_operating_system_errors_stay(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.hello"):
        open_archive(tmp_path / "none.hello")
    with pytest.raises(IsADirectoryError):
        open_archive(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HelloIOError, match="E_READ: not a regular file"):
        open_archive(tmp_path / "pipe")


def test_expect(everything):
    with open_archive(everything) as file:
        known = file.id
    open_archive(everything, expect=known).close()
    other = "sha256:" + "0" * 64
    with pytest.raises(TrustError, match=f"E_PIN: id of .*; expected {other}, got {known}"):
        open_archive(everything, expect=other)
    with pytest.raises(UserInputError, match="E_OPTION: `expect`: expected sha256: and 64 hex"):
        open_archive(everything, expect="abc")


def test_expect_is_checked_before_the_manifest_is_parsed(samples, tmp_path):
    path = tmp_path / "x.hello"
    path.write_bytes(samples.join(b"[not json", {}, bytes(1024)))
    with pytest.raises(TrustError, match="E_PIN"):
        open_archive(path, expect="sha256:" + "0" * 64)
    with pytest.raises(SpecError, match="E_JSON"):
        open_archive(path)


def test_manifest_above_the_limit(samples, tmp_path):
    path = tmp_path / "x.hello"
    path.write_bytes(samples.tar_header("__hello__/manifest", 2**20 + 1) + bytes(4096))
    with pytest.raises(LimitError, match="E_LIMIT_MANIFEST"):
        open_archive(path)
    path.write_bytes(samples.tar_header("__hello__/manifest", 2**20) + bytes(4096))
    with pytest.raises(CorruptError, match=r"E_TRUNCATED .*manifest and id need 1050112 bytes"):
        open_archive(path)


def test_a_manifest_longer_than_the_first_read(samples, tmp_path):
    path = tmp_path / "x.hello"
    extras = {f"x_{i}": "a" * 4000 for i in range(16)}
    extras["x_long"] = "b" * 1000
    images = samples.images(1, layout="files")
    draft = samples.draft(images=images, extras=extras, card="c" * 100)
    write_archive(path, draft)
    with open_archive(path) as file:
        assert file.extras == extras
        assert file.section("card") == b"c" * 100
        assert file.read_image(0) == images.items[0].source
    assert verify_archive(path).images == 1


def test_file_limit(everything):
    with pytest.raises(LimitError, match=r"E_LIMIT_FILE_BYTES: `file_bytes` is .*, cap 1024"):
        open_archive(everything, limits=Limits(file_bytes=1024))


def damaged(path, at, value):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value)


def test_image_is_verified_at_every_read(everything):
    with open_archive(everything) as file:
        good = file.read_image(0)
        at, size = int(file.index.offset[0]), int(file.index.size[0])
        for where, code in (
            (at + 60, "E_DIGEST_MEMBER"),
            (at + size, "E_PADDING"),
            (at - 512 + 110, "E_HEADER"),
        ):
            before = everything.read_bytes()[where : where + 1]
            damaged(everything, where, bytes([before[0] ^ 1]))
            for call in (file.read_image, file.decode_image):
                with pytest.raises((CorruptError, SpecError)) as caught:
                    call(0)
                assert caught.value.code == code
                assert caught.value.member == "images/0000/000000.png"
            damaged(everything, where, before)
        assert file.read_image(0) == good


def test_file_cut_while_open(everything):
    with open_archive(everything) as file:
        assert len(file.index) == 2
        os.truncate(everything, int(file.index.offset[1]))
        with pytest.raises(
            HelloIOError, match=r"E_SHORT_READ offset=.* became shorter while it was"
        ):
            file.read_image(1)


def test_closed(everything):
    file = open_archive(everything)
    file.close()
    file.close()
    with pytest.raises(HelloIOError, match="E_READ: the archive is closed"):
        _ = file.index


def test_read_error(everything, monkeypatch):
    with open_archive(everything) as file:
        assert len(file.index) == 2

        def fail(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(HelloIOError, match=r"E_READ offset=.*Input/output error"):
            file.read_image(0)


def test_short_reads_are_continued(everything, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 100), at))
    assert verify_archive(everything).images == 2


def test_pickle(everything):
    with open_archive(everything, limits=Limits(probes=3)) as file:
        again = ForkingPickler.loads(ForkingPickler.dumps(file))
        with again:
            assert again.id == file.id
            assert again.limits == file.limits
            assert again.read_image(1) == file.read_image(1)
        text = bytes(ForkingPickler.dumps(file))
    damaged(everything, 600, b"\0")
    with pytest.raises(CorruptError):
        ForkingPickler.loads(text)


def test_pickle_refuses_another_file(samples, everything):
    with open_archive(everything) as file:
        text = bytes(ForkingPickler.dumps(file))
    write_archive(everything, samples.draft(images=samples.images(2)), force=True)
    with pytest.raises(TrustError, match="E_PIN"):
        ForkingPickler.loads(text)


def _read_all(file, results):
    results.put([file.read_image(row) for row in range(len(file))])


def test_forked_workers_share_a_file(everything):
    context = multiprocessing.get_context("fork")
    with open_archive(everything) as file:
        wanted = [file.read_image(row) for row in range(len(file))]
        results = context.Queue()
        workers = [context.Process(target=_read_all, args=(file, results)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for _ in workers:
            assert results.get(timeout=20) == wanted
        for worker in workers:
            worker.join(20)
            assert worker.exitcode == 0


def test_threads_share_a_file(everything):
    failures = []
    with open_archive(everything) as file:
        wanted = [file.read_image(row) for row in range(len(file))]

        def read():
            for _ in range(50):
                found = [file.read_image(row) for row in range(len(file))]
                failures.extend([] if found == wanted else [found])

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_sections_of_text_are_checked(samples, everything_bytes, refusal):
    manifest, sections, rest = samples.split(everything_bytes)
    error = refusal(samples.join(manifest, {**sections, "license": b"\xff"}, rest))
    assert (error.code, error.member) == ("E_SCHEMA", "__hello__/license")
    error = refusal(samples.join(manifest, {**sections, "classes": b"a\tb\n"}, rest))
    assert (error.code, error.member) == ("E_CLASSES", "__hello__/classes")


def test_base_tensors_are_pinned(samples, everything_bytes, refusal):
    manifest, sections, rest = samples.split(everything_bytes)
    base = bytearray(sections["base"])
    base[-1] ^= 1
    error = refusal(samples.join(manifest, {**sections, "base": bytes(base)}, rest))
    assert (error.code, error.member) == ("E_TENSOR", "__hello__/base")
    assert "digest of the tensors; expected sha256:" in str(error)


def test_raw_digest_of_a_compressed_section(samples, everything_bytes, refusal):
    manifest, sections, rest = samples.split(everything_bytes)
    card = next(s for s in manifest["sections"] if s["name"] == "card")
    assert card["encoding"] == "zstd"
    card["raw_digest"] = "sha256:" + "0" * 64
    error = refusal(samples.join(manifest, sections, rest))
    assert (error.code, error.member) == ("E_DIGEST_INDEX", "__hello__/card")


def test_index_and_image_disagree(samples, everything_bytes, refusal, tmp_path):
    from hellofmt.archive.format.tensors import StoredTensor, serialize_tensors

    manifest, sections, rest = samples.split(everything_bytes)
    with open_archive(_put(tmp_path, everything_bytes)) as file:
        columns = file.tensors("index")
    columns["width"] = np.array([8, 9], np.uint16)
    tensors = {name: StoredTensor.from_numpy(np.asarray(c)) for name, c in columns.items()}
    data = samples.join(manifest, {**sections, "index": serialize_tensors(tensors)}, rest)
    error = refusal(data)
    assert (error.code, error.member) == ("E_INDEX", "images/0001/000001.png")
    assert "the image is 8 x 8 pixels; the index states 8 x 9" in str(error)
    with open_archive(_put(tmp_path, data)) as file, pytest.raises(SpecError, match="E_INDEX"):
        file.decode_image(1)


def _put(tmp_path, data):
    path = tmp_path / "put.hello"
    path.write_bytes(data)
    return path


def test_opening_is_light():
    program = (
        "import sys, hellofmt.archive as a\n"
        "assert 'numpy' not in sys.modules\n"
        "a.open_archive(sys.argv[1]).close()\n"
        "bad = {'torch', 'open_clip', 'PIL', 'zstandard', 'safetensors'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    # Meta-test: the check sees an import that is there.
    for extra, code in (("", 0), ("import PIL\n", 1)):
        run = subprocess.run(  # noqa: S603
            [sys.executable, "-c", extra + program, os.environ["HELLO_SAMPLE"]],
            capture_output=True,
            check=False,
        )
        assert run.returncode == code, run.stderr


@pytest.fixture(autouse=True)
def _sample(everything, monkeypatch):
    monkeypatch.setenv("HELLO_SAMPLE", str(everything))


def test_local_source_is_a_source(everything):
    source = LocalSource(everything)
    data = everything.read_bytes()
    assert source.size == len(data)
    assert source.read_ranges([(0, 5), (100, 0), (7, 3)]) == [data[:5], b"", data[7:10]]
    assert io.BytesIO(source.read(0, source.size)).read() == data
    source.close()


def test_a_source_that_outlives_os_is_silent_at_exit(everything):
    # ``abc`` is emptied after ``os``: what it holds dies when ``os.close`` is None already.
    program = (
        "import abc, sys\nfrom hellofmt.archive.storage.source import LocalSource\n"
        "abc.kept = LocalSource(sys.argv[1])\n"
    )
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program, str(everything)], capture_output=True, check=True
    )
    assert run.stderr == b""


def test_a_source_that_goes_closes_its_file(everything):
    source = LocalSource(everything)
    fd = source._fd
    os.fstat(fd)
    del source
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
