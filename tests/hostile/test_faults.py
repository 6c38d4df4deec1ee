"""`write_archive` leaves the old file or the complete new one, whatever fails and whenever.

Three ways to make it fail: faults injected into system calls by strace; the same through a replaced
``os`` module, which runs where nobody may trace; and the states of a disk after a power cut,
enumerated from a recording of what was written and synchronised in which order.
"""

import collections
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import packing
import pytest
from tracing import HERE, can_trace

PACKING = HERE / "packing.py"
KILLED = {"kill", "late kill", "SIGKILL"}


def verdict(case, before, again):
    """What is wrong with the outcome of one case, or an empty string."""
    killed = case["fault"] in KILLED
    expected = {-9, 0} if killed else {0, 9, 130}
    if case["exit"] not in expected:
        return "exit"
    if case["target"] not in (before, "new"):
        return "neither the old nor the new file"
    if case["exit"] == 0 and case["target"] != "new":
        return "exit 0 without the new file"
    # The new file is complete once it has its name; its other one the next run removes.
    complete = (case["call"], case["exit"], case["target"]) == ("unlink", 0, "new")
    if case["left"] and not (killed or complete):
        return "a temporary file is left"
    if case["left"] and again != (0, False):
        return "the next run does not clean up"
    return ""


def test_every_call_of_the_os_module(tmp_path):
    """Every second case; all of them run with the slow tests."""
    cases = faulty(tmp_path, 2)
    assert len(cases) > 120
    assert {case["call"] for case in cases} >= {"open", "pwrite", "fsync", "close", "replace"}


@pytest.mark.slow
def test_every_case_of_the_os_module(tmp_path):
    assert len(faulty(tmp_path, 1)) > 240


def faulty(directory, step):
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, HERE / "faulty.py", directory, str(step)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = []
    for case in cases:
        again = (case.get("again"), case.get("left again"))
        if why := verdict(case, "old" if case["force"] else "none", again):
            wrong.append((why, case))
    assert wrong == []
    outcomes = collections.Counter((case["exit"], case["target"]) for case in cases)
    # A fault early leaves the old file, a fault late the new one: both ends were reached.
    assert outcomes[9, "old"] > 1
    assert outcomes[-9, "old"] > 1
    assert outcomes[-9, "new"] + outcomes[9, "new"] + outcomes[130, "new"] > 1
    return cases


def test_a_writer_that_is_not_careful_is_caught():
    good = {"call": "fsync", "fault": "EIO", "exit": 9, "target": "old", "left": False}
    assert verdict(good, "old", (None, None)) == ""
    for change in (
        {"target": "other"},
        {"target": "none"},
        {"exit": 1},
        {"exit": 0},
        {"left": True},
        {"left": True, "call": "unlink"},
        {"left": True, "exit": 0, "target": "new"},
        {"exit": -9},
        {"fault": "SIGKILL", "left": True, "exit": -9},
    ):
        assert verdict(good | change, "old", (0, True)) != ""


SYSCALLS = {
    "openat": ("ENOSPC", "EIO", "EINTR"),
    "pwrite64": ("ENOSPC", "EIO", "EINTR"),
    "fsync": ("EIO", "ENOSPC"),
    "close": ("EIO", "ENOSPC", "EINTR"),
    "rename": ("EIO", "ENOSPC"),
    "link": ("EIO", "ENOSPC"),
    "unlink": ("EIO",),
    "pread64": ("EIO",),
    "flock": ("EIO",),
}


class Tracer:
    """Packs under strace; versions 1 and 2 stand for the old and the new file."""

    def __init__(self, directory):
        self.target = directory / "t.hello"
        self.log = directory.parent / "trace.log"
        self.directory = directory
        self.prefix = self._tracing(self.target, packing.temporary(self.target), directory)
        self.known = {}
        for name, version in (("old", "1"), ("new", "2")):
            self.run(version)
            self.known[name] = self.target.read_bytes()

    def _tracing(self, *paths):
        command = [shutil.which("strace"), "-f", "-qq", "-o", str(self.log)]
        return command + [option for path in paths for option in ("-P", str(path))]

    def run(self, version, *options, new=False, trace=()):
        command = [*trace, sys.executable, PACKING, *(["--new"] if new else []), *options]
        return subprocess.run(  # noqa: S603 (our own program)
            [*command, self.target, version], capture_output=True, check=False, timeout=60
        ).returncode

    def prepare(self, *, new):
        self.target.unlink(missing_ok=True)
        packing.temporary(self.target).unlink(missing_ok=True)
        if not new:
            self.target.write_bytes(self.known["old"])

    def calls(self, *, new):
        """How often each call touches the target, its directory or the temporary file."""
        self.prepare(new=new)
        trace = [*self.prefix, "-e", f"trace={','.join(f'?{name}' for name in SYSCALLS)}"]
        assert self.run("2", new=new, trace=trace) == 0
        words = [line.split()[1] for line in self.log.read_text().splitlines()]
        # A call during which another thread made one stands in two lines; the second has no name.
        return collections.Counter(word.partition("(")[0] for word in words if word != "<...")

    def inject(self, call, fault, when, *, new):
        """One case, as ``faulty.py`` prints them."""
        self.prepare(new=new)
        what = f"signal={fault}" if fault.startswith("SIG") else f"error={fault}"
        prefix, nth = self.prefix, when
        if call == "fsync" and when == 2:
            # strace counts in each thread, and the file is synchronised in one of its own: the
            # directory's is the first of the other.
            prefix, nth = self._tracing(self.directory), 1
        trace = [*prefix, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={nth}"]
        code = self.run("2", new=new, trace=trace)
        case = {"force": not new, "call": call, "fault": fault, "when": when, "exit": code}
        case["target"] = "none"
        if self.target.exists():
            data = self.target.read_bytes()
            same = (name for name, known in self.known.items() if known == data)
            case["target"] = next(same, "other")
        temporary = packing.temporary(self.target)
        case["left"] = temporary.exists()
        again = (self.run("2"), temporary.exists()) if case["left"] else (None, None)
        why = verdict(case, "none" if new else "old", again)
        return (why, case) if why else None

    def cases(self):
        """Every call, every fault, every N that is reached."""
        for new in (False, True):
            for call, count in sorted(self.calls(new=new).items()):
                for when in range(1, count + 1):
                    for fault in (*SYSCALLS[call], "SIGKILL", "SIGINT"):
                        yield call, fault, when, new


@pytest.fixture
def tracer(tmp_path):
    if not can_trace():
        pytest.skip("strace or ptrace is not there; the replaced os module runs the same cases")
    directory = tmp_path / "work"
    directory.mkdir()
    return Tracer(directory)


def test_system_calls_that_fail(tracer):
    """A sample that has every call and every fault; all of them run with the slow tests."""
    chosen, seen = [], collections.Counter()
    for case in tracer.cases():
        call, fault, _, _ = case
        if seen[call] < 1 or seen[fault] < 2:
            chosen.append(case)
            seen.update((call, fault))
    assert len(chosen) >= 12
    wrong = [tracer.inject(call, fault, n, new=new) for call, fault, n, new in chosen]
    assert [found for found in wrong if found] == []


@pytest.mark.slow
def test_every_system_call_fails_in_turn(tracer):
    cases = list(tracer.cases())
    assert len(cases) > 100
    wrong = [tracer.inject(call, fault, n, new=new) for call, fault, n, new in cases]
    assert [found for found in wrong if found] == []


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    target = tmp_path / "t.hello"
    command = [sys.executable, PACKING, target]
    known = {}
    for name, version in (("old", "1"), ("new", "2")):
        subprocess.run([*command, version], check=True)  # noqa: S603 (our own program)
        known[name] = target.read_bytes()
    start = time.perf_counter()
    subprocess.run([*command, "2"], check=True)  # noqa: S603 (our own program)
    length = time.perf_counter() - start
    choose, seen = random.Random(7), collections.Counter()  # noqa: S311 (repeatable on purpose)
    for _ in range(300):
        target.write_bytes(known["old"])
        child = subprocess.Popen([*command, "2"])  # noqa: S603 (our own program)
        time.sleep(choose.uniform(0.4, 1.05) * length)
        child.send_signal(signal.SIGKILL)
        code = child.wait()
        data = target.read_bytes()
        seen["new" if data == known["new"] else "old" if data == known["old"] else "other"] += 1
        assert code in (0, -9)
        assert code == -9 or data == known["new"]
    assert set(seen) == {"old", "new"}
    subprocess.run([*command, "2"], check=True)  # noqa: S603 (our own program)
    assert [path.name for path in tmp_path.iterdir()] == ["t.hello"]


def limited(target, limit):
    """Exit of a packing that may write files of ``limit`` bytes at most."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os._exit(packing.pack(target, 2, force=True))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_file_that_may_not_grow(tmp_path):
    # The kernel writes what still fits and refuses the rest: short writes and then an error.
    target = tmp_path / "t.hello"
    target.write_bytes(b"old")
    assert limited(tmp_path / "full.hello", 1 << 30) == 0
    size = (tmp_path / "full.hello").stat().st_size
    for limit in (0, 1, 511, 512, 6144, size // 2, size - 1):
        assert limited(target, limit) == 9
        assert target.read_bytes() == b"old"
    assert limited(target, size) == 0
    assert target.stat().st_size == size
    assert {path.name for path in tmp_path.iterdir()} == {"t.hello", "full.hello"}


@pytest.mark.usefixtures("fixed_names")
def test_a_device_is_no_target():
    assert packing.pack(Path("/dev/full"), 1, force=True) == 10


class Recording:
    """What a packing did to files, in order; ``None`` marks the return of `write_archive`."""

    def __init__(self, monkeypatch):
        self.done = []
        self._names = {}
        for name in ("open", "pwrite", "fsync", "close", "link", "rename", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name, real):
        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            if name == "open":
                self._names[result] = os.fspath(args[0])
                if args[1] & os.O_CREAT:
                    self.done.append(("create", os.fspath(args[0])))
            elif name == "pwrite":
                self.done.append(("write", self._names[args[0]], args[2], bytes(args[1][:result])))
            elif name == "fsync":
                self.done.append(("sync", self._names[args[0]]))
            elif name in ("link", "rename", "replace"):
                kind = "link" if name == "link" else "rename"
                self.done.append((kind, os.fspath(args[0]), os.fspath(args[1])))
            elif name == "unlink":
                self.done.append(("unlink", os.fspath(args[0])))
            return result

        return call


def parts_of(offset, data):
    """What a power cut may leave of one write: nothing, a beginning, an end, all."""
    yield ()
    for cut in (512, 4096):
        if cut < len(data):
            yield ((offset, data[:cut]),)
            yield ((offset + cut, data[cut:]),)
    yield ((offset, data),)


def written(pieces):
    out = bytearray()
    for offset, data in pieces:
        out.extend(bytes(max(0, offset + len(data) - len(out))))
        out[offset : offset + len(data)] = data
    return bytes(out)


def states(done, target, before):
    """Everything the target may hold after a power cut following these operations.

    Writes are certain once their file was synchronised, names once the directory was. Until then
    any subset of them may have reached the disk, a write in part, names in any order: more than any
    real file system does, so what holds here holds there.
    """
    folder = os.path.dirname(target)  # noqa: PTH120 (as the recording has them)
    files, names = collections.defaultdict(list), []
    inode_of, sure = {target: "before"}, {target: "before"}
    synced = set()
    for kind, path, *rest in done:
        if kind == "create":
            inode_of[path] = path
            names.append({path: path})
        elif kind == "write":
            files[inode_of[path]].append((rest[0], rest[1]))
            synced.discard(inode_of[path])
        elif kind == "sync" and path == folder:
            for change in names:
                sure.update(change)
            names = []
        elif kind == "sync":
            synced.add(inode_of[path])
        elif kind == "link":
            inode_of[rest[0]] = inode_of[path]
            names.append({rest[0]: inode_of[path]})
        elif kind == "rename":
            inode_of[rest[0]] = inode_of.pop(path)
            names.append({rest[0]: inode_of[rest[0]], path: None})
        elif kind == "unlink":
            inode_of.pop(path)
            names.append({path: None})
    found = set()
    for kept in itertools.chain.from_iterable(
        itertools.permutations(names, n) for n in range(len(names) + 1)
    ):
        table = dict(sure)
        for change in kept:
            table.update(change)
        inode = table[target]
        if inode in (None, "before"):
            found.add(before if inode else None)
        elif inode in synced:
            found.add(written(files[inode]))
        else:
            for chosen in itertools.product(*(parts_of(*piece) for piece in files[inode])):
                found.add(written(itertools.chain.from_iterable(chosen)))
    return found


def recorded(tmp_path, monkeypatch, *, force):
    """The operations of one packing, the target's path, its content before and after."""
    target = tmp_path / "t.hello"
    before = None
    if force:
        assert packing.pack(target, 1, force=True) == 0
        before = target.read_bytes()
    with monkeypatch.context() as patches:
        recording = Recording(patches)
        assert packing.pack(target, 2, force=force) == 0
    return recording.done, str(target), before, target.read_bytes()


@pytest.fixture
def fixed_names(monkeypatch):
    """Undo what ``packing.pack`` does to the names of temporary files."""
    monkeypatch.setattr(packing.secrets, "token_hex", packing.secrets.token_hex)
    monkeypatch.setattr(os, "getpid", os.getpid)


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.usefixtures("fixed_names")
def test_a_power_cut_leaves_the_old_or_the_new_file(tmp_path, monkeypatch, force):
    done, target, before, after = recorded(tmp_path, monkeypatch, force=force)
    assert [kind for kind, *_ in done].count("sync") == 2
    seen = set()
    for end in range(len(done) + 1):
        seen |= states(done[:end], target, before)
        assert seen <= {before, after}
    # Cuts on both sides of the moment were enumerated; after the return only the new one is left.
    assert seen == {before, after}
    assert states(done, target, before) == {after}


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.usefixtures("fixed_names")
def test_without_synchronisation_a_power_cut_shows(tmp_path, monkeypatch, force):
    done, target, before, after = recorded(tmp_path, monkeypatch, force=force)
    lazy = [step for step in done if step[0] != "sync" or step[1] == str(tmp_path)]
    seen = set().union(*(states(lazy[:end], target, before) for end in range(len(lazy) + 1)))
    assert b"" in seen
    assert any(0 < len(state) < len(after) for state in seen if state)
    forgetful = [step for step in done if step != ("sync", str(tmp_path))]
    assert before in states(forgetful, target, before)
