"""Pack one archive again and again, with a fault at every call of the ``os`` module in turn.

``faulty.py DIRECTORY STEP`` counts the calls of a packing that goes well, then forks once per case,
or per every ``STEP``-th case: each function, each of its calls, each fault. It prints one JSON line
per case with the exit of the child, what the target then held (``old``, ``new``, ``none``,
``other``) and whether a temporary file was left, before and after the next run. It needs no tracer,
but a fault comes before or after a whole call, never within one.
"""

import collections
import errno
import json
import os
import signal
import sys
from pathlib import Path

from packing import pack, temporary

CALLS = (
    *("open", "pwrite", "fsync", "close", "link", "rename", "replace", "unlink", "listdir"),
    *("pread", "fstat", "lstat", "stat"),
)
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EINTR": errno.EINTR}
FAULTS = (*ERRORS, "interrupt", "late interrupt", "kill", "late kill", "short")


def kill():
    # os.getpid is replaced.
    os.kill(int(Path("/proc/self").readlink().name), signal.SIGKILL)


def injected(name, fault, when):
    """The function of that name with the fault at its ``when``-th call."""
    real, hits = getattr(os, name), [0]

    def call(*args, **kwargs):
        hits[0] += 1
        if hits[0] != when:
            return real(*args, **kwargs)
        if fault in ERRORS:
            raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]))
        if fault == "short":
            return real(args[0], args[1][: max(1, len(args[1]) // 2)], *args[2:])
        if fault == "interrupt":
            raise KeyboardInterrupt
        if fault == "kill":
            kill()
        real(*args, **kwargs)
        if fault == "late kill":
            kill()
        # The signal of a user arrives while the call runs and shows when it returns.
        raise KeyboardInterrupt

    return call


def forked(target, version, *, force, fault=None):
    """Exit of a packing in a child, with ``fault`` = (name, fault, when) if any."""
    pid = os.fork()
    if pid == 0:
        if fault is not None:
            setattr(os, fault[0], injected(*fault))
        os._exit(pack(target, version, force=force))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted(target, *, force):
    """How often each function is called when nothing fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        counts = collections.Counter()

        def counting(name, real):
            def call(*args, **kwargs):
                counts[name] += 1
                return real(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, counting(name, getattr(os, name)))
        code = pack(target, 2, force=force)
        os.write(write, json.dumps(counts).encode())
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("packing fails without a fault")
    return json.loads(said)


def prepare(target, known, *, force):
    target.unlink(missing_ok=True)
    if force:
        target.write_bytes(known["old"])


def content(target, known):
    if not target.exists():
        return "none"
    data = target.read_bytes()
    return next((name for name, bytes_ in known.items() if bytes_ == data), "other")


def main(directory, step):
    target = Path(directory) / "t.hello"
    known = {}
    for name, version in (("old", 1), ("new", 2)):
        forked(target, version, force=True)
        known[name] = target.read_bytes()
    cases = []
    for force in (True, False):
        prepare(target, known, force=force)
        for name, count in counted(target, force=force).items():
            faults = FAULTS if name == "pwrite" else FAULTS[:-1]
            cases += [(force, name, fault, n + 1) for n in range(count) for fault in faults]
    for force, *fault in cases[::step]:
        prepare(target, known, force=force)
        line = {"force": force, "call": fault[0], "fault": fault[1], "when": fault[2]}
        line["exit"] = forked(target, 2, force=force, fault=fault)
        line["target"] = content(target, known)
        line["left"] = temporary(target).exists()
        if line["left"]:
            line["again"] = forked(target, 2, force=True)
            line["left again"] = temporary(target).exists()
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
