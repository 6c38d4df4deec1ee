"""Verify files under an address-space limit, each in a forked child; a program of its own.

``ceiling.py WARM... -- FILE...`` verifies the warm files first, so that every lazy import is paid
for, then forks once per file. It prints one JSON line per file: exit code, error code, peak
resident bytes and CPU seconds of that child.
"""

import json
import os
import resource
import sys
import time

from hellofmt.archive import verify_archive
from hellofmt.errors import HelloError

HEADROOM = 192 << 20
"""Address space above what the warm process has; residence is judged by the caller, tighter."""


def verify(path):
    try:
        verify_archive(path, pixels=True)
    except HelloError as error:
        return error.exit_code, error.code
    except BaseException as error:  # A bug, or no memory left: what exit 1 stands for.
        return 1, repr(error)[:200]
    return 0, ""


def address_space():
    with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
        return int(stream.read().split()[0]) * resource.getpagesize()


def measured(path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        limit = address_space() + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        start = time.process_time()
        exit_code, code = verify(path)
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line = {"path": path, "exit": exit_code, "code": code, "peak": peak, "seconds": seconds}
        os.write(write, json.dumps(line).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    return text or json.dumps({"path": path, "exit": 1, "code": f"status {status}", "peak": 0})


def main(arguments):
    at = arguments.index("--")
    for path in arguments[:at]:
        if verify(path) != (0, ""):
            raise SystemExit(f"a warm file was refused: {path}")
    for path in arguments[at + 1 :]:
        sys.stdout.write(measured(path) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
