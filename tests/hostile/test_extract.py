"""`hello extract` touches nothing outside its target, whatever a file is called or claims to be."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from tracing import HERE, can_trace
from zoo import VALID, ZOO

REFUSED = [
    name for name in ZOO if name.startswith(("name_", "header_type_", "pax_", "gnu_", "sections_"))
]
ACCEPTED = [name for name, file in ZOO.items() if not file.code and name != "matmul_bomb"]
SYSCALLS = (
    *("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "link"),
    *("linkat", "symlink", "symlinkat", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("rmdir", "truncate", "chmod", "fchmodat", "chown", "lchown", "fchownat", "utimensat"),
    *("setxattr", "lsetxattr", "write", "pwrite64", "writev", "pwritev", "sendfile", "ftruncate"),
)


@pytest.fixture
def sandbox(tmp_path):
    """Hostile files, a place to work in, and things beside it that must not change."""
    for name in ("in", "work/etc", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "work/etc/passwd").write_text("root")
    (tmp_path / "work/__hello__").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "work/images").symlink_to(tmp_path / "elsewhere")
    for name in REFUSED + ACCEPTED:
        ZOO[name].write(tmp_path / "in" / f"{name}.hello")
    for name, make in VALID.items():
        (tmp_path / "in" / f"valid_{name}.hello").write_bytes(make())
    return tmp_path


def tree(root, *, without=()):
    """Name, type and content of everything below ``root``."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in without]
        for name in folders + files:
            path = os.path.join(folder, name)  # noqa: PTH118
            status = os.lstat(path)
            content = b""
            if os.path.islink(path):  # noqa: PTH114
                content = os.fsencode(os.readlink(path))  # noqa: PTH115
            elif os.path.isfile(path):  # noqa: PTH113
                with open(path, "rb") as stream:  # noqa: PTH123
                    content = stream.read()
            digest = hashlib.sha256(content).hexdigest()
            found[os.path.relpath(path, root)] = (status.st_mode, digest)
    return found


def extract_all(sandbox, *prefix):
    files = sorted((sandbox / "in").iterdir())
    command = [*prefix, sys.executable, HERE / "extracted.py", sandbox / "work", *files]
    # Byte code that Python keeps is a write of its own.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(  # noqa: S603 (our own program)
        command, capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    return json.loads(done.stdout)


def outside(sandbox, paths):
    """Those that are neither an extracted directory nor the temporary one it was made in."""
    stems = "|".join(re.escape(path.stem) for path in (sandbox / "in").iterdir())
    work = re.escape(str(sandbox / "work"))
    temporary = rf"\.({stems})\.[0-9]+\.[0-9a-f]+\.tmp"
    inside = re.compile(rf"{work}/(({stems})|{temporary})(/[^/]+)*")
    strange = {path for path in paths if not inside.fullmatch(path)}
    return {path for path in strange | set(paths) if path in strange or "/../" in path}


def check_results(sandbox, exits):
    assert len(REFUSED) >= 30
    assert {name: exits[name] for name in REFUSED} == {name: ZOO[name].exit for name in REFUSED}
    made = {path.name for path in (sandbox / "work").iterdir()} - {"etc", "images", "__hello__"}
    assert made == {name for name, code in exits.items() if code == 0}
    assert made >= {*ACCEPTED, *(f"valid_{name}" for name in VALID)}
    for name in made:
        root = sandbox / "work" / name
        kinds = [path for path in root.rglob("*") if path.is_symlink() or not path.exists()]
        assert kinds == []
        manifest = (root / "__hello__/manifest").read_bytes()
        digits = (root / "__hello__/id").read_text()
        assert digits == hashlib.sha256(manifest).hexdigest() + "\n"


def test_only_the_target_changes(sandbox):
    before = tree(sandbox)
    result = extract_all(sandbox)
    made = {name for name, code in result["exits"].items() if code == 0}
    assert tree(sandbox, without=made) == before
    assert outside(sandbox, {path for _, path in result["seen"]}) == set()
    # A refused file leaves no trace at all, not even a directory that was removed again.
    touched = {
        re.sub(r"^\.?([a-z0-9_]+).*", r"\1", path.removeprefix(f"{sandbox}/work/"))
        for _, path in result["seen"]
    }
    assert touched.isdisjoint(REFUSED)
    assert touched >= set(ACCEPTED)
    check_results(sandbox, result["exits"])


CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
FD = re.compile(r"^(?:\d+|AT_FDCWD)<((?:[^<>\\]|\\.)*)>")
NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')


def traced_paths(log):
    """Every path that a traced call could have changed."""
    paths = set()
    for line in log.splitlines():
        match = CALL.match(line)
        if match is None or match[1] not in SYSCALLS or re.search(r"= -1 E[A-Z]+", line):
            continue
        name, rest = match[1], match[2]
        if name.startswith("open") and not re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)", rest):
            continue
        where = FD.match(rest)
        if name in ("write", "pwrite64", "writev", "pwritev", "sendfile", "ftruncate"):
            # No angle brackets: a descriptor that strace could not name.
            paths.add(where[1] if where else rest[:40])
            continue
        folder = where[1] if where else ""
        paths |= {
            os.path.normpath(f"{folder}/{text}" if text[:1] != "/" else text)
            for text in NAME.findall(rest)
        }
    return paths


def test_only_the_target_changes_by_the_system_calls(sandbox):
    if not can_trace():
        pytest.skip("strace or ptrace is not there; the audit hook above ran the same cases")
    before = tree(sandbox)
    log = sandbox / "trace.log"
    calls = ",".join(f"?{name}" for name in SYSCALLS)
    strace = [shutil.which("strace"), "-f", "-y", "-qq", "-s", "512", "-e", f"trace={calls}"]
    result = extract_all(sandbox, *strace, "-o", str(log))
    paths = traced_paths(log.read_text(errors="replace"))
    log.unlink()
    made = {name for name, code in result["exits"].items() if code == 0}
    assert tree(sandbox, without=made) == before
    harmless = {path for path in paths if path.startswith(("pipe:", "/dev/null", "socket:"))}
    assert outside(sandbox, paths - harmless) == set()
    assert len(paths) > 10 * len(made)
    check_results(sandbox, result["exits"])


def test_the_watch_sees_a_write_outside(sandbox):
    work = str(sandbox / "work")
    stem = REFUSED[0]
    good = [f"{work}/{stem}/images/0000/000000.png", f"{work}/.{stem}.12.ab.tmp/x"]
    bad = [f"{work}/etc/passwd", f"{work}/{stem}/../x", f"{work}/{stem}x/y", "/etc/passwd", work]
    assert outside(sandbox, {*good, *bad}) == set(bad)
    line = f'12 openat(AT_FDCWD<{work}>, "etc/passwd", O_WRONLY|O_CREAT, 0666) = 3<x>'
    assert traced_paths(line) == {f"{work}/etc/passwd"}
    assert traced_paths('12 unlinkat(5</a/b>, "c", 0) = 0') == {"/a/b/c"}
    assert traced_paths('write(1<pipe:[1]>, "x", 1) = 1') == {"pipe:[1]"}
    assert traced_paths('rename("/a", "/b") = 0') == {"/a", "/b"}
    assert traced_paths('openat(AT_FDCWD</>, "a", O_RDONLY) = 3') == set()
    assert traced_paths('mkdir("/a", 0777) = -1 EEXIST (File exists)') == set()


def test_a_target_that_is_there_is_left_alone(sandbox):
    from click.testing import CliRunner

    from hellofmt_cli.main import hello

    before = tree(sandbox)
    (sandbox / "work/dangling").symlink_to(sandbox / "nowhere")
    source = str(sandbox / "in/valid_images.hello")
    for name in ("etc", "etc/passwd", "images", "dangling"):
        result = CliRunner().invoke(hello, ["extract", source, str(sandbox / "work" / name)])
        assert (result.exit_code, "E_TARGET" in result.stderr) == (10, True)
    (sandbox / "work/dangling").unlink()
    assert tree(sandbox) == before
