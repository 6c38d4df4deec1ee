"""The zoo as a package: tests are none, so its directory goes on the path."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@functools.cache
def can_trace():
    """Whether strace is there and may trace a process."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    command = [strace, "-qq", "-e", "trace=none", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
