"""Where the programs of these tests are, and whether they may be traced."""

import functools
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def can_trace():
    """Whether strace is there and may trace a process."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    command = [strace, "-qq", "-e", "trace=none", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
