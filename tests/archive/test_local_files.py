"""Files on systems that lack what Linux has, long names, and things that are no regular files."""

import contextlib
import os
import stat

import pytest

from hellofmt.archive.storage import local_files
from hellofmt.archive.storage.local_files import (
    create_new,
    is_alive,
    leftovers,
    lock_byte,
    lock_file,
    new_directory,
    open_new,
    open_regular,
    read_at,
    read_file,
    sync_directory,
    sync_file,
    temporary_path,
    write_at,
    write_small_file,
)
from hellofmt.errors import HelloIOError


@pytest.fixture(params=["here", "without positioned calls and locks"])
def system(request, monkeypatch):
    if request.param != "here":
        for name in ("pread", "pwrite"):
            monkeypatch.delattr(os, name)
        monkeypatch.setattr(local_files, "fcntl", None)
        monkeypatch.setattr(local_files, "_DIRECTORY", 0)


@pytest.mark.usefixtures("system")
def test_reads_and_writes_at_an_offset(tmp_path):
    fd = open_new(tmp_path / "x")
    try:
        assert write_at(fd, b"0123456789", 0) == 10
        assert write_at(fd, memoryview(b"ab"), 4) == 2
        assert read_at(fd, 4, 3) == b"3ab6"
        assert read_at(fd, 9, 8) == b"89"
        assert read_at(fd, 9, 10) == b""
        assert lock_file(fd)
        assert lock_byte(fd, 3)
        sync_file(fd)
        sync_directory(tmp_path)
    finally:
        os.close(fd)
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "x")


@pytest.mark.usefixtures("system")
def test_a_small_file_is_old_new_or_none(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_small_file(path, b"one", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*x` exists; `force` replaces it"):
        write_small_file(path, b"two")
    write_small_file(path, b"three", force=True)
    assert read_file(path) == b"three"

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_small_file(path, b"four", force=True)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"three"]


def test_a_taken_name_is_refused_also_without_links(tmp_path, monkeypatch):
    (tmp_path / "t").write_bytes(b"new")
    (tmp_path / "x").write_bytes(b"old")

    def refuse(*_):
        raise PermissionError

    for patched in (False, True):
        if patched:
            monkeypatch.setattr(type(tmp_path), "hardlink_to", refuse)
        with pytest.raises(HelloIOError, match="E_TARGET"):
            create_new(tmp_path / "t", tmp_path / "x")
    create_new(tmp_path / "t", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a" * 250, "a" * 255, "\u732b" * 85, "x.hello"])
def test_temporary_names_fit(tmp_path, name, monkeypatch):
    target, other = tmp_path / name, tmp_path / f"{name[:-1]}z"
    temporary = temporary_path(target)
    assert len(os.fsencode(temporary.name)) <= 255
    if name == "x.hello":
        assert temporary.name.startswith(".x.hello.")
    # What a dead process left is known by its name, also where that was cut, and no other's is.
    with monkeypatch.context() as patches:
        # Above the largest process id of any system.
        patches.setattr(os, "getpid", lambda: 2**22 + 1)
        dead = temporary_path(target)
    for path in (temporary, dead):
        path.write_bytes(b"")
    assert leftovers(target) == [dead]
    assert leftovers(other) == []


@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "socket"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, what):
    path = tmp_path / "x"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(tmp_path):
            bound.bind("x")
    else:
        path = what
    for read in (read_file, open_regular):
        # A socket cannot even be opened.
        with pytest.raises((HelloIOError, OSError), match=r"not a regular file|No such dev"):
            read(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_processes(monkeypatch):
    assert is_alive(os.getpid())
    assert is_alive(1)
    assert not is_alive(1 << 40)
    # There signal 0 is CTRL+C.
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    assert not is_alive(os.getpid())


@pytest.mark.usefixtures("system")
def test_a_new_directory_has_the_mode_of_the_mask_and_is_complete_or_absent(tmp_path):
    target = tmp_path / "out"
    before = os.umask(0o027)
    try:
        with new_directory(target) as folder:
            (folder / "a").write_text("x")
            assert not target.exists()
            assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert (target / "a").read_text() == "x"
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    with pytest.raises(HelloIOError, match="exists"), new_directory(target):
        pytest.fail("an existing directory was given to fill")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "other"):
        raise KeyboardInterrupt
    with pytest.raises(HelloIOError, match="exists"), new_directory(tmp_path / "late"):
        (tmp_path / "late").mkdir()
    with pytest.raises(OSError, match="name too long"), new_directory(tmp_path / ("x" * 256)):
        pytest.fail("filled for nothing")
    with pytest.raises(FileNotFoundError) as caught, new_directory(tmp_path / "no" / "out"):
        pytest.fail("a directory without a parent was given to fill")
    assert caught.value.filename == str(tmp_path / "no" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "out"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "out"
    dead = 1 << 22
    while is_alive(dead):
        dead += 1
    names = {
        f".out.{dead}.0000000000000000.tmp": False,
        f".out.{dead}.1111111111111111.tmp": True,
        f".out.{os.getpid()}.0000000000000000.tmp": True,
        f".other.{dead}.0000000000000000.tmp": True,
    }
    for name in names:
        (tmp_path / name / "content").mkdir(parents=True)
    # Without locks nothing tells a killed process from one of another host.
    with monkeypatch.context() as patched:
        patched.setattr(local_files, "fcntl", None)
        with new_directory(target):
            pass
    target.rmdir()
    assert all((tmp_path / name).exists() for name in names)
    # A process of another host or container, which has no id here, holds its lock.
    held = os.open(tmp_path / f".out.{dead}.1111111111111111.tmp", os.O_RDONLY)
    assert lock_file(held)
    with new_directory(target):
        pass
    os.close(held)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_new_directory_in_a_working_directory_that_is_gone_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as caught, new_directory("out"):
        pass
    assert caught.value.filename == "out"
