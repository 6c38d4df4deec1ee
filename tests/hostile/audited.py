"""Open files while an audit hook watches; a program of its own, because a hook stays for ever.

``audited.py WARM... -- FILE...`` verifies and reads the warm files first, so that every lazy import
is done, then sets the hook and does the same with the others. Prints one JSON list of what was
seen that reading an archive has no reason to do.
"""

import contextlib
import json
import os
import sys

from hellofmt.archive import open_archive, verify_archive
from hellofmt.errors import HelloError

# What runs code, starts processes, talks to a network, or changes the file system.
FORBIDDEN = (
    *("exec", "compile", "import", "code.__new__", "function.__new__", "marshal.", "pickle."),
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill"),
    *("subprocess.", "pty.", "socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser."),
    *("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.chflags", "os.utime", "os.setxattr", "os.removexattr"),
    *("os.putenv", "os.unsetenv", "os.chdir", "os.add_dll_directory", "shutil.", "tempfile."),
    *("ctypes.dlopen", "ctypes.dlsym", "mmap.", "sqlite3.", "glob.", "setopencodehook"),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def read(path):
    with contextlib.suppress(HelloError):
        verify_archive(path, pixels=True)
    with contextlib.suppress(HelloError), open_archive(path) as file:
        len(file.classes)
        for row in range(len(file)):
            file.decode_image(row)
        for name in file.section_sizes():
            file.section(name)


def main(arguments):
    at = arguments.index("--")
    for path in arguments[:at]:
        read(path)
    seen, current = [], [""]

    def hook(event, args):
        if not current[0]:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if writes or any(event == name or event.startswith(name) for name in FORBIDDEN):
            seen.append((current[0], event, repr(args)[:200]))

    sys.addaudithook(hook)
    for path in arguments[at + 1 :]:
        current[0] = path
        # A file called so stands for one that made the reader run something.
        if path.endswith("!run"):
            os.system("true")  # noqa: S605, S607
        else:
            read(path)
        current[0] = ""
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1:])
