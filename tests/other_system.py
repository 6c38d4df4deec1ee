"""Run by ``test_other_systems``: the way of a file, on a Python that lacks what Windows lacks.

Arguments: a folder of images, and an empty folder to work in. Prints ``done`` at the end. Libraries
that ask for Linux's calls because they see Linux are imported before those go.
"""

import os
import select
import signal
import sys
from pathlib import Path

import torch
import torchvision  # noqa: F401

MODULES = ("triton", "fcntl", "resource", "termios", "pwd", "grp", "syslog", "tty", "pty")
CALLS = (
    *("pread", "preadv", "pwrite", "pwritev", "readv", "writev", "sendfile", "fstatvfs"),
    *("posix_fallocate", "posix_fadvise", "O_DIRECTORY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"),
    *("O_SYNC", "fchmod", "fchown", "chown", "sched_getaffinity", "register_at_fork", "fork"),
    *("forkpty", "getuid", "geteuid", "getgid", "getloadavg", "killpg"),
    *("setsid", "nice", "sysconf", "mkfifo", "mknod", "sync", "memfd_create", "wait", "wait4"),
)
SIGNALS = ("SIGCHLD", "SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGPIPE", "SIGSTOP", "SIGCONT")

for name in MODULES:
    sys.modules[name] = None
for name in CALLS:
    if hasattr(os, name):
        delattr(os, name)
for name in (*SIGNALS, "pthread_sigmask", "alarm", "setitimer"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("poll", "epoll"):
    if hasattr(select, name):
        delattr(select, name)

from click.testing import CliRunner  # noqa: E402 - after what is taken away

import hellofmt  # noqa: E402
from hellofmt_cli.main import hello  # noqa: E402


def run(*arguments):
    result = CliRunner().invoke(hello, [str(each) for each in arguments])
    if result.exit_code != 0:
        sys.exit(f"hello {arguments}: exit {result.exit_code}\n{result.output}{result.exception!r}")
    return result.output


def main(images, work):
    packed = work / "p.hello"
    run("pack", images, "-o", packed)
    assert "sha256:" in run("verify", packed)
    assert "images" in run("inspect", packed)
    run("inspect", packed, "--html", work / "p.html")
    assert "__hello__/index" in run("ls", packed)
    assert '"hello":"1.0"' in run("cat", packed, "__hello__/manifest")
    run("extract", packed, work / "out")
    assert (work / "out" / "__hello__" / "manifest").exists()
    run("pack", packed, "-o", work / "q.hello", "--name", "other")
    run("pack", images, "-o", packed, "--force")
    assert CliRunner().invoke(hello, ["diff", str(packed), str(work / "q.hello")]).exit_code in (
        0,
        1,
    )
    run("plan", "--dataset", "imagenet-1k", "--ipc", "50")
    # Nothing temporary is left behind.
    assert sorted(p.name for p in work.iterdir()) == ["out", "p.hello", "p.html", "q.hello"]

    dataset = hellofmt.HelloDataset(packed, labels="hard")
    rows = sum(len(batch) for batch, _ in torch.utils.data.DataLoader(dataset, batch_size=3))
    assert rows == len(dataset) > 0
    sys.stdout.write("done\n")


main(*map(Path, sys.argv[1:]))
