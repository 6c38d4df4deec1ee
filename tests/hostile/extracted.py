"""Run ``hello extract`` on many files in one process and note every change of the file system.

``extracted.py OUT FILE...`` extracts each file to ``OUT/<stem>`` and prints a JSON object: the exit
of each, and (event, path) of everything the audit hook saw being made, written, renamed or removed.
The hook stands for the system calls where no tracer may run; under strace both are compared.
"""

import json
import os
import sys
from pathlib import Path

from click.testing import CliRunner

from hellofmt_cli.main import hello

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.chown"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2),
    **dict.fromkeys(("os.truncate", "os.utime", "os.setxattr", "os.mkfifo", "os.mknod"), 1),
}


def resolved(path, directory=-1):
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    path = os.fsdecode(path)
    if isinstance(directory, int) and directory >= 0:
        # An absolute path stays what it is.
        path = str(Path(f"/proc/self/fd/{directory}").readlink() / path)
    return os.path.abspath(path)  # noqa: PTH100 (links must not be followed)


def main(arguments):
    out, files = arguments[0], arguments[1:]
    seen = []

    def hook(event, args):
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES:
            seen.append((event, resolved(args[0])))
        elif event in CHANGES:
            count = CHANGES[event]
            directories = [n for n in args[count:] if isinstance(n, int)][-count:]
            directories += [-1] * (count - len(directories))
            paths = zip(args[:count], directories, strict=True)
            seen.extend((event, resolved(path, at)) for path, at in paths)

    sys.addaudithook(hook)
    exits = {}
    for file in files:
        target = f"{out}/{Path(file).stem}"
        exits[Path(file).stem] = CliRunner().invoke(hello, ["extract", file, target]).exit_code
    sys.stdout.write(json.dumps({"exits": exits, "seen": seen}))


if __name__ == "__main__":
    main(sys.argv[1:])
