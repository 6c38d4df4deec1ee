"""Windows and macOS, as far as they can be tried here: a Python without what they lack."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def test_files_are_made_read_and_loaded_without_what_windows_lacks(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            pixels = random.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "work").mkdir()
    script = Path(__file__).with_name("other_system.py")
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(script), tmp_path / "images", tmp_path / "work"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr[-3000:]
