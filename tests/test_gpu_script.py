"""``benchmarks/gpu.sh`` runs to its end, here without a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ["bash", str(ROOT / "benchmarks/gpu.sh")]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def test_options_that_are_wrong_are_one_line():
    for words, text in (([], "--out is missing"), (["--fast"], "unknown option --fast")):
        done = subprocess.run([*SCRIPT, *words], capture_output=True, text=True, check=False)  # noqa: S603
        assert done.returncode == 2
        assert text in done.stderr


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path):
    random = np.random.default_rng(0)
    for label in range(4):
        for k in range(2):
            path = tmp_path / f"images/n{label:08}/{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (48, 40, 3), np.uint8)).save(path)
    out = tmp_path / "out"
    command = [*SCRIPT, "--out", str(out), "--data", str(tmp_path / "images"), "--small"]
    subprocess.run([*command, "--device", "cpu", "--python", sys.executable], check=True)  # noqa: S603
    lines = (out / "summary.md").read_text().splitlines()[4:]
    ended = {line.split(" | ")[0].strip("| "): line.split(" | ")[2].strip(" |") for line in lines}
    names = ("machine", "tests", "labels", "views", "step", "distill", "train")
    assert ended == dict.fromkeys(names, "done")
    assert "hellofmt" in (out / "labels.md").read_text()
