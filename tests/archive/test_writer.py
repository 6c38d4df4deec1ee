import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hellofmt.archive import (
    ClassLine,
    Draft,
    ImageItem,
    ImageSet,
    Limits,
    ProjectorPart,
    encode_image,
    open_archive,
    verify_archive,
    write_archive,
)
from hellofmt.archive.format.manifest import Shard
from hellofmt.archive.format.tensors import StoredTensor
from hellofmt.archive.write import images as image_writer
from hellofmt.archive.write import measure, plan
from hellofmt.archive.write import staged as staged_module
from hellofmt.archive.write import writer as writer_module
from hellofmt.archive.write.whole_file import check_target, waiting_file
from hellofmt.errors import HelloIOError, LimitError, UserInputError


def test_golden_bytes(samples, tmp_path):
    # The whole file byte by byte: nothing of it may change without a new minor version.
    path = tmp_path / "x.hello"
    part = samples.projector("int8")
    draft = samples.draft(images=samples.images(2), projector=part, extras={"x_a": "b"})
    archive_id = write_archive(path, draft)
    assert archive_id == "sha256:7480f19403da5a3ba8f257ba8b7425642716e83a295182d05e480cde928a18d2"
    assert (
        hashlib.sha256(path.read_bytes()).hexdigest()
        == "e7f01b2280dc206c9c333ecd14fa5d56326ea995b333075f1da525266bc1f701"
    )
    assert (
        verify_archive(path).content_id
        == "sha256:8fdc391510aaca9c44102ceaf8c7929c724162083c66bca28df9e645f0cf1fef"
    )


@pytest.mark.parametrize("layout", ["files", "packed"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_kinds_of_archives(samples, tmp_path, layout, channels, storage):
    path = tmp_path / "x.hello"
    part = samples.projector(storage, low_rank_head=channels == 3)
    images = samples.images(4, channels=channels, layout=layout)
    archive_id = write_archive(path, samples.draft(images=images, projector=part))
    report = verify_archive(path, expect=archive_id, pixels=True)
    assert report.images == 4
    with open_archive(path) as file:
        for name, tensor in part.head_tensors.items():
            assert (file.tensors("head")[name] == tensor.numpy()).all()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=12
    )
)
def test_images_of_any_size_and_order(samples, tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("set") / "x.hello"
    items = [
        ImageItem(label, samples.png(samples.pattern(i, height, width, 3)))
        for i, (label, height, width) in enumerate(kinds)
    ]
    classes = [ClassLine(f"c{i}", (f"class {i}",)) for i in range(3)]
    draft = samples.draft(images=ImageSet("png", items, "files"))
    draft = Draft(**{**draft.__dict__, "classes": classes})
    write_archive(path, draft)
    order = sorted(range(len(items)), key=lambda i: items[i].label)
    with open_archive(path) as file:
        assert file.index.label.tolist() == [items[i].label for i in order]
        assert [file.read_image(row) for row in range(len(items))] == [
            items[i].source for i in order
        ]
        assert file.index.height.tolist() == [kinds[i][1] for i in order]
        counts = np.bincount([item.label for item in items], minlength=3)
        even = len(set(counts.tolist())) == 1
        assert file.manifest.dataset.ipc == (counts[0] if even else msgspec.UNSET)


def test_sources_of_items(samples, tmp_path):
    data = samples.png(samples.pattern(1, 8, 8, 3))
    (tmp_path / "a.png").write_bytes(data)
    paths = []
    for i, source in enumerate((data, tmp_path / "a.png", lambda: data)):
        paths.append(tmp_path / f"{i}.hello")
        for layout in ("files", "packed"):
            images = ImageSet("png", [ImageItem(0, source), ImageItem(1, source)], layout)
            write_archive(paths[-1], samples.draft(images=images), force=True)
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_other_codecs_stay_files(samples, tmp_path, codec):
    path = tmp_path / "x.hello"
    items = [ImageItem(i, encode_image(samples.pattern(i, 16, 16, 3), codec)) for i in range(2)]
    write_archive(path, samples.draft(images=ImageSet(codec, items)))
    with open_archive(path) as file:
        assert file.manifest.images.codec == codec
        assert [file.read_image(row) for row in range(2)] == [item.source for item in items]


def test_auto_layout_takes_the_smaller(samples, tmp_path):
    path = tmp_path / "x.hello"
    flat = [ImageItem(0, encode_image(np.zeros((64, 64, 3), np.uint8), "png")) for _ in range(3)]
    tiny = [ImageItem(0, samples.png(samples.pattern(i, 8, 8, 3))) for i in range(3)]
    mixed = [*tiny, ImageItem(0, samples.png(samples.pattern(9, 8, 9, 3)))]
    for items, layout in ((flat, "files"), (tiny, "packed"), (mixed, "files")):
        sizes = {}
        for kind in ("auto", "files", "packed"):
            if kind == "packed" and items is mixed:
                continue
            write_archive(path, samples.draft(images=ImageSet("png", items, kind)), force=True)
            sizes[kind] = path.stat().st_size
        assert sizes["auto"] == min(sizes.values()) == sizes[layout]


def test_same_input_same_bytes(samples, tmp_path):
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('s', sys.argv[1])\n"
        "s = importlib.util.module_from_spec(spec); spec.loader.exec_module(s)\n"
        "from hellofmt.archive import write_archive\n"
        "print(write_archive(sys.argv[2], s.everything()))\n"
    )
    made = []
    for seed, zone, mask in (("1", "UTC", 0o022), ("2", "Asia/Tokyo", 0o077)):
        path = tmp_path / f"{seed}.hello"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C"}
        command = [sys.executable, "-c", program, samples.__file__, str(path)]
        subprocess.run(command, check=True, env=environment, umask=mask, capture_output=True)  # noqa: S603
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        made.append(path.read_bytes())
    assert made[0] == made[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_another_user_writes_the_same_bytes(samples, tmp_path):
    draft = samples.everything()
    write_archive(tmp_path / "root.hello", draft)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # noqa: PTH101, S103 (somebody else writes there)
        pid = os.fork()
        if pid == 0:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(not write_archive(f"{folder}/x.hello", draft))
        assert os.waitpid(pid, 0)[1] == 0
        path = Path(folder) / "x.hello"
        assert path.stat().st_uid == 65534
        assert path.read_bytes() == (tmp_path / "root.hello").read_bytes()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_no_overwrite_without_force(samples, tmp_path):
    path = tmp_path / "x.hello"
    path.write_bytes(b"old")
    draft = samples.draft(images=samples.images(1))
    with pytest.raises(
        HelloIOError, match=r"E_TARGET: `.*x.hello` exists; `force` replaces it"
    ) as caught:
        write_archive(path, draft)
    assert caught.value.exit_code == 10
    assert path.read_bytes() == b"old"
    write_archive(path, draft, force=True)
    assert verify_archive(path).images == 1
    assert names(tmp_path) == ["x.hello"]


def test_unusable_targets(samples, tmp_path):
    draft = samples.draft(images=samples.images(1))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name, text in (
        ("folder", "is not a regular file"),
        ("none/x.hello", "is not a directory; expected an existing one"),
        ("file/x.hello", "is inside a file"),
    ):
        with pytest.raises(HelloIOError, match=f"E_TARGET: .*{text}"):
            write_archive(tmp_path / name, draft, force=True)
    assert names(tmp_path) == ["file", "folder"]


def test_link_is_replaced_not_followed(samples, tmp_path):
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "x.hello").symlink_to(tmp_path / "other")
    draft = samples.draft(images=samples.images(1))
    with pytest.raises(HelloIOError, match="E_TARGET"):
        write_archive(tmp_path / "x.hello", draft)
    write_archive(tmp_path / "x.hello", draft, force=True)
    assert (tmp_path / "other").read_bytes() == b"other"
    assert not (tmp_path / "x.hello").is_symlink()


def test_target_made_meanwhile(samples, tmp_path, monkeypatch):
    path = tmp_path / "x.hello"
    verify = writer_module.verify_copy

    def race(*args, **options):
        path.write_bytes(b"theirs")
        return verify(*args, **options)

    monkeypatch.setattr(writer_module, "verify_copy", race)
    with pytest.raises(HelloIOError, match=r"E_TARGET: .* exists"):
        write_archive(path, samples.draft(images=samples.images(1)))
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["x.hello"]


def test_file_system_without_hard_links(samples, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "x.hello"
    write_archive(path, samples.draft(images=samples.images(1)))
    assert verify_archive(path).images == 1
    assert names(tmp_path) == ["x.hello"]


@pytest.mark.parametrize("when", range(4))
def test_interrupt_leaves_nothing(samples, tmp_path, when):
    calls = 0

    def progress(done, total):
        nonlocal calls
        if calls == when:
            raise KeyboardInterrupt
        calls += 1

    path = tmp_path / "x.hello"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_archive(path, samples.draft(images=samples.images(4)), force=True, progress=progress)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.hello"]


def test_progress(samples, tmp_path):
    for layout in ("files", "packed"):
        seen = []
        images = samples.images(3, layout=layout)
        write_archive(
            tmp_path / layout,
            samples.draft(images=images),
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )
        assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("name", "number", "code", "exit_code"),
    [
        ("pwrite", errno.ENOSPC, "E_NOSPACE", 9),
        ("pwrite", errno.EDQUOT, "E_NOSPACE", 9),
        ("pwrite", errno.EIO, "E_WRITE", 9),
        ("fsync", errno.EIO, "E_WRITE", 9),
    ],
)
def test_failing_system_calls(samples, tmp_path, monkeypatch, name, number, code, exit_code):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(HelloIOError) as caught:
        write_archive(tmp_path / "x.hello", samples.draft(images=samples.images(1)))
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert os.strerror(number) in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'x.hello'}: {code}: ")
    assert names(tmp_path) == []


def test_a_folder_without_permission_names_the_target(samples, tmp_path, monkeypatch):
    plain, target = os.open, tmp_path / "x.hello"

    def fail(path, flags, *rest):
        if flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return plain(path, flags, *rest)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(PermissionError) as caught:
        write_archive(target, samples.draft(images=samples.images(1)))
    assert caught.value.filename == str(target)


def test_a_folder_that_takes_no_file_is_refused_first(tmp_path, monkeypatch):
    # Root may write anywhere, so permissions cannot show it.
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    with pytest.raises(HelloIOError, match="E_TARGET: no file can be made in"):
        check_target(tmp_path / "x.hello", force=False)


def test_a_file_that_waits_names_the_target(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "tmp1234")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    target = tmp_path / "x.hello"
    with pytest.raises(HelloIOError, match="E_WRITE") as caught, waiting_file(target):
        pass
    assert str(caught.value).startswith(f"{target}: ")


def test_no_space_to_create(samples, tmp_path, monkeypatch):
    plain = os.open

    def fail(path, flags, *rest):
        if flags & os.O_EXCL:
            raise OSError(errno.ENOSPC, "full")
        return plain(path, flags, *rest)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(HelloIOError, match="E_NOSPACE: writing the archive failed: full"):
        write_archive(tmp_path / "x.hello", samples.draft(images=samples.images(1)))


def test_close_that_reports_a_lost_write(samples, tmp_path, monkeypatch):
    plain, files = os.close, set()
    create = staged_module.create_temporary

    def remember(path):
        fd = create(path)
        files.add(fd)
        return fd

    def close(fd):
        plain(fd)
        if fd in files:
            files.clear()
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(staged_module, "create_temporary", remember)
    monkeypatch.setattr(os, "close", close)
    with pytest.raises(HelloIOError, match="E_WRITE: writing the archive failed: lost"):
        write_archive(tmp_path / "x.hello", samples.draft(images=samples.images(1)))
    assert names(tmp_path) == []


def test_rename_that_fails(samples, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "no rename")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(HelloIOError, match="E_WRITE: writing the archive failed: no rename"):
        write_archive(tmp_path / "x.hello", samples.draft(images=samples.images(1)), force=True)
    assert names(tmp_path) == []


def test_short_writes_are_continued(samples, tmp_path, monkeypatch):
    write_archive(tmp_path / "whole", samples.everything())
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:301], at))
    write_archive(tmp_path / "short", samples.everything())
    assert (tmp_path / "short").read_bytes() == (tmp_path / "whole").read_bytes()


def test_small_flushes_make_the_same_file(samples, tmp_path, monkeypatch):
    write_archive(tmp_path / "whole", samples.everything())
    monkeypatch.setattr(image_writer, "FLUSH_BYTES", 104)
    monkeypatch.setattr(plan, "FLUSH_BYTES", 104)
    write_archive(tmp_path / "flushed", samples.everything())
    assert (tmp_path / "flushed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_durability_unknown(samples, tmp_path, monkeypatch):
    plain = os.fsync

    def fail(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "directory lost")
        plain(fd)

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "x.hello"
    with pytest.raises(HelloIOError, match=r"E_DURABILITY: .*directory lost; durability unknown"):
        write_archive(path, samples.draft(images=samples.images(1)))
    assert verify_archive(path).images == 1
    assert names(tmp_path) == ["x.hello"]


@pytest.mark.parametrize("flush", [104, 2 << 20])
@pytest.mark.parametrize("at", [0, 103, 511, 512, 600, -1])
def test_what_was_written_is_read_back(samples, tmp_path, monkeypatch, flush, at):
    # Header, payload and padding, of windows of many images and of an image in many pieces.
    monkeypatch.setattr(image_writer, "FLUSH_BYTES", flush)
    monkeypatch.setattr(plan, "FLUSH_BYTES", flush)
    draft = samples.draft(images=samples.images(8, layout="files"))
    write_archive(tmp_path / "clean", draft)
    with open_archive(tmp_path / "clean") as file:
        place = int(file.index.offset[0]) - 512 + (at if at >= 0 else 1023)
    pwrite = os.pwrite

    def rot(fd, data, offset):
        broken = bytearray(data)
        if 0 <= place - offset < len(broken):
            broken[place - offset] ^= 1
        return pwrite(fd, broken, offset)

    with monkeypatch.context() as patches:
        patches.setattr(os, "pwrite", rot)
        with pytest.raises(HelloIOError, match=r"E_WRITE.*the file does not hold what was written"):
            write_archive(tmp_path / "x.hello", draft)
    assert names(tmp_path) == ["clean"]


def stale(folder, pid, name="x.hello"):
    path = folder / f".{name}.{pid}.{'0' * 16}.tmp"
    path.write_bytes(b"left over")
    return path


def test_stale_temporary_files(samples, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = stale(tmp_path, dead.pid)
    overflow = stale(tmp_path, 9_999_999_999)
    alive = stale(tmp_path, os.getpid())
    other = stale(tmp_path, dead.pid, "y.hello")
    locked = tmp_path / f".x.hello.{dead.pid}.{'1' * 16}.tmp"
    with locked.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_archive(tmp_path / "x.hello", samples.draft(images=samples.images(1)))
    assert not gone.exists()
    assert not overflow.exists()
    assert alive.exists()
    assert other.exists()
    assert locked.exists()


def test_two_writers(samples, tmp_path):
    # The second writer runs to its end inside the first one: one wins, the other is told.
    path = tmp_path / "x.hello"
    done = []

    def inner(*_):
        if not done:
            done.append(write_archive(path, samples.draft(images=samples.images(2))))

    with pytest.raises(HelloIOError, match="E_TARGET"):
        write_archive(path, samples.draft(images=samples.images(3)), progress=inner)
    assert verify_archive(path, expect=done[0]).images == 2
    assert names(tmp_path) == ["x.hello"]
    done.clear()
    last = write_archive(path, samples.draft(images=samples.images(3)), progress=None, force=True)
    assert verify_archive(path).id == last


def replace(part, **fields):
    return ProjectorPart(**{**part.__dict__, **fields})


def test_refused_drafts(samples, tmp_path):
    part = samples.projector()
    nan = {**part.head_tensors, "bias": StoredTensor.from_numpy(np.full(2, np.nan, np.float32))}
    shard = Shard(content_id="sha256:" + "0" * 64, count=2, first=8, index=2, total=9)
    four = samples.projector("int4")
    odd = {**four.head_tensors, "weight": StoredTensor.from_numpy(np.full((2, 2), 0x99, np.uint8))}
    one = samples.images(1).items[0]
    cases = [
        (samples.draft(), "E_DATA", "expected images, a projector or both"),
        (samples.draft(images=ImageSet("png", [])), "E_DATA", "no images to pack"),
        (samples.draft(images=ImageSet("png", [ImageItem(2, one.source)])), "E_DATA",
         "image 0 has label 2; expected 0 to 1"),
        (samples.draft(images=ImageSet("png", [one, ImageItem(0, b"")])), "E_DATA",
         "image 1 is empty"),
        (samples.draft(images=ImageSet("png", [one, ImageItem(0, b"GIF89a")])), "E_DATA",
         "image 1: E_CODEC: png outside the profile: not a PNG file"),
        (samples.draft(images=ImageSet("jpeg", [one])), "E_DATA",
         "image 0: E_CODEC: jpeg outside the profile"),
        (samples.draft(images=ImageSet("jpeg", [one], "packed")), "E_OPTION",
         "`layout`: packed needs codec png"),
        (samples.draft(images=ImageSet("png", [one, *samples.images(1, side=9).items], "packed")),
         "E_DATA", "image 1 is 9 x 9 x 3; expected 8 x 8 x 3 to pack"),
        (samples.draft(images=samples.images(1), shard=shard), "E_DATA", "`shard.index`"),
        (samples.draft(images=samples.images(1), card="\ud800"), "E_DATA", "lone surrogate"),
        (samples.draft(images=samples.images(1), extras={"x_a": "\ud800"}), "E_DATA", "surrogate"),
        (samples.draft(images=samples.images(1), extras={"a": "b"}), "E_DATA", "unknown field `a`"),
        (samples.draft(projector=replace(part, head_tensors=nan)), "E_DATA", "not finite"),
        (samples.draft(projector=replace(part, head_tensors={})), "E_DATA", "header differs"),
        (samples.draft(projector=replace(four, head_tensors=odd)), "E_DATA", "unused half"),
        (samples.draft(projector=replace(part, probe_logits=np.zeros((1, 3), np.float32))),
         "E_DATA", "expected 8],\"dtype\":\"F32\",\"shape\":[1,2]}}"),
        (samples.draft(projector=replace(part, base_tensors=samples.base("embedded")[1])),
         "E_DATA", "section `base` belongs to no group"),
    ]  # fmt: skip
    for draft, code, text in cases:
        with pytest.raises(UserInputError) as caught:
            write_archive(tmp_path / "x.hello", draft)
        assert caught.value.code == code
        assert text in str(caught.value)
        assert names(tmp_path) == []


def test_images_that_change_while_they_are_packed(samples, tmp_path):
    one, two = (samples.png(samples.pattern(i, 8, 8, 3)) for i in range(2))
    for first, second in ((one, one + b"x"), (one, two)):
        given = iter([first, second, second, second])
        images = ImageSet("png", [ImageItem(0, lambda given=given: next(given))], "files")
        with pytest.raises(UserInputError, match="E_DATA: image 0 changed while it was packed"):
            write_archive(tmp_path / "x.hello", samples.draft(images=images))
        assert names(tmp_path) == []


def test_a_file_that_passes_for_a_zip_file_is_named(samples, tmp_path, caplog):
    write_archive(tmp_path / "fine.hello", samples.draft(images=samples.images(1)))
    assert caplog.text == ""
    write_archive(tmp_path / "x.hello", samples.draft(images=samples.images(1), license="PK\5\6"))
    assert "x.hello`: programs may take it for a ZIP file" in caplog.text
    assert verify_archive(tmp_path / "x.hello").images == 1


def test_missing_image_file(samples, tmp_path):
    images = ImageSet("png", [ImageItem(0, tmp_path / "none.png")])
    with pytest.raises(FileNotFoundError, match=r"none.png"):
        write_archive(tmp_path / "x.hello", samples.draft(images=images))


def test_limits(samples, tmp_path):
    for limits, code in (
        ({"images": 1}, "E_LIMIT_IMAGES"),
        ({"image_bytes": 100}, "E_LIMIT_IMAGE_BYTES"),
        ({"image_pixels": 60}, "E_LIMIT_IMAGE_PIXELS"),
    ):
        for layout in ("files", "packed"):
            with pytest.raises(LimitError) as caught:
                write_archive(
                    tmp_path / "x.hello",
                    samples.draft(images=samples.images(2, layout=layout)),
                    limits=Limits(**limits),
                )
            assert caught.value.code == code
            assert names(tmp_path) == []


def test_ipc_is_what_the_images_have(samples, tmp_path):
    wrong = msgspec.structs.replace(samples.DATASET, ipc=7)
    for count, ipc in ((4, 2), (3, msgspec.UNSET)):
        draft = samples.draft(images=samples.images(count))
        draft = Draft(**{**draft.__dict__, "dataset": wrong})
        path = tmp_path / f"{count}.hello"
        write_archive(path, draft)
        with open_archive(path) as file:
            assert file.manifest.dataset.ipc == ipc


def test_second_name_that_cannot_be_removed(samples, tmp_path, monkeypatch):
    def refuse(path, **_):
        raise OSError(errno.EIO, "no unlink")

    path = tmp_path / "x.hello"
    with monkeypatch.context() as patches:
        patches.setattr(writer_module.Path, "unlink", refuse)
        known = write_archive(path, samples.draft(images=samples.images(1)))
    assert verify_archive(path, expect=known).images == 1
    other = next(name for name in names(tmp_path) if name != "x.hello")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / other).rename(tmp_path / other.replace(str(os.getpid()), str(dead.pid)))
    write_archive(path, samples.draft(images=samples.images(1)), force=True)
    assert names(tmp_path) == ["x.hello"]


def test_path_as_text_and_file_that_grows(samples, tmp_path, monkeypatch):
    data = samples.images(1).items[0].source
    source = tmp_path / "a.png"
    source.write_bytes(data)
    images = ImageSet("png", [ImageItem(0, str(source)), ImageItem(1, source)], "files")
    write_archive(tmp_path / "x.hello", samples.draft(images=images))
    with open_archive(tmp_path / "x.hello") as file:
        assert file.read_images([0, 1]) == [data, data]
    measured = plan.measured
    for changed in (data + b"\0", data[:-1], b""):

        def change(item, position, changed=changed):
            source.write_bytes(data)
            row = measured(item, position)
            source.write_bytes(changed)
            return row

        with monkeypatch.context() as patches:
            patches.setattr(plan, "measured", change)
            with pytest.raises(UserInputError, match=r"image 0 \(.*a.png\) changed while it was"):
                write_archive(tmp_path / "y.hello", samples.draft(images=images))


@pytest.mark.parametrize("layout", ["files", "packed"])
@pytest.mark.parametrize("kind", [bytes, str, type(lambda: b"")])
def test_what_was_walked_over_before_is_held_to_its_digest(
    samples, tmp_path, monkeypatch, layout, kind
):
    data = samples.png(samples.pattern(0, 8, 8, 3))
    (tmp_path / "a").write_bytes(data)
    source = {bytes: data, str: str(tmp_path / "a")}.get(kind, lambda: data)
    walked = []
    monkeypatch.setattr(measure, "check_image_data", lambda *_: walked.append(1))

    def write(digest):
        item = ImageItem(0, source, len(data), digest)
        draft = samples.draft(images=ImageSet("png", [item], layout))
        write_archive(tmp_path / "x.hello", draft, force=True)
        return len(walked)

    assert write(hashlib.sha256(data).digest()) == 0
    assert write(None) == 1
    with pytest.raises(UserInputError, match="changed while it was packed"):
        write(hashlib.sha256(data + b"x").digest())


def test_producer_is_this_package(samples, tmp_path, monkeypatch):
    import hellofmt

    # A program that is shipped without the installer's records must still be able to write.
    monkeypatch.setattr(metadata, "distribution", lambda _: pytest.fail("records were read"))
    draft = samples.draft(images=samples.images(1))
    draft = Draft(**{**draft.__dict__, "producer": None})
    write_archive(tmp_path / "x.hello", draft)
    with open_archive(tmp_path / "x.hello") as file:
        assert file.manifest.producer.name == "hellofmt"
        assert file.manifest.producer.version == hellofmt.__version__
