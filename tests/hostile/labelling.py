"""Do to files what a person does who trusts none, each in a forked child; a program of its own.

``labelling.py WARM FILE...`` does it to a valid file first, so that every lazy import is paid for,
then forks once per file. One JSON line per file: exit code and code of every action, CPU seconds,
peak resident bytes of that child.
"""

import json
import os
import re
import resource
import sys
import time

import torch
from click.testing import CliRunner

from hellofmt.errors import HelloError
from hellofmt.loading import HelloDataset
from hellofmt.projector import Labeler
from hellofmt_cli.main import hello


def command(*arguments):
    done = CliRunner().invoke(hello, arguments)
    # A slow command says what it is at first.
    last = done.stderr.splitlines()[-1] if done.exit_code else ""
    found = re.match(r"Error: .*?\b(E_[A-Z_]+)\b", last)
    return done.exit_code, found[1] if found else last


def outcome(act, *arguments):
    try:
        made = act(*arguments)
    except HelloError as error:
        return error.exit_code, error.code
    except BaseException as error:  # A bug, which is what exit 1 stands for.
        return 1, repr(error)[:200]
    return made if isinstance(made, tuple) else (0, "")


def first_item(path):
    HelloDataset(path)[0]


ACTIONS = {
    "verify": lambda path: command("verify", "--probes", path),
    "inspect": lambda path: command("inspect", "--classes", "--json", path),
    "dataset": first_item,
    "labeler": Labeler.from_file,
}


def act_on(path):
    done, slowest = {}, 0.0
    for name, act in ACTIONS.items():
        start = time.process_time()
        done[name] = outcome(act, path)
        slowest = max(slowest, time.process_time() - start)
    return done, slowest


def measured(path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        done, seconds = act_on(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line = {"path": path, "done": done, "seconds": seconds, "peak": peak}
        os.write(write, json.dumps(line).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    return text or json.dumps({"path": path, "done": {"all": (1, f"status {status}")}})


def main(paths):
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    done, _ = act_on(paths[0])
    if any(code for code, _ in done.values()):
        raise SystemExit(f"the warm file was refused: {done}")
    for path in paths:
        sys.stdout.write(measured(path) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
