"""Every block of the documentation runs, on digits: shell lines as typed, Python as pasted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from hellofmt_cli.main import hello

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# What a page names and a test cannot have: downloads, large networks, GPUs, ranks, hours.
STAND_INS = (
    (r"torchrun .*?-m hellofmt", "hello"),
    (r"open_clip:RN50-quickgelu:openai", "seeded"),
    (r"resnet18=best\.pth", "cnn=best.pth"),
    (r"timm:efficientnet_lite1=\S+", "seeded"),
    (r"(--student|--arch|--as) resnet18", r"\1 cnn"),
    (r"--device cuda", "--device cpu"),
    (r"hf://datasets/you/photos/", ""),
    (r"hello push (\S+) .*", r"hello verify \1"),
    (r"hello pull .*/(\S+\.hello).*", r"hello verify \1"),
    # Every page has the file that the tutorial makes.
    (r"^(hello distill .* -o photos\.hello)", r"\1 --force"),
    (r"^(hello (?:fit|distill|train) [^>\n]*)", r"\1 --steps 4 "),
)


def blocks(page):
    """(line, language, text) of every fenced block that a reader would run."""
    text = page.read_text()
    for block in re.finditer(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start()) + 1, block[1], block[2]


def with_stand_ins(text):
    """The text of a block, with stand-ins for what cannot be had here."""
    for pattern, stand_in in STAND_INS:
        text = re.sub(pattern, stand_in, text, flags=re.MULTILINE)
    return text


def test_every_base_that_is_named_goes_with_its_weights():
    """The stand-ins above would hide it: some weights of open_clip need another activation."""
    import open_clip

    pages = [*PAGES, *(ROOT / "cli").rglob("*.py")]
    found = {
        name
        for page in pages
        for name in re.findall(r"open_clip:[A-Z][\w-]*:\w+", page.read_text())
    }
    found -= {"open_clip:NAME:PRETRAINED"}
    assert found
    for name in found:
        _, model, weights = name.split(":")
        activation = open_clip.get_pretrained_cfg(model, weights)["quick_gelu"]
        assert open_clip.get_model_config(model).get("quick_gelu", False) == activation, name


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder as pages take it for granted: photos, a teacher's weights, and a distilled file."""
    root = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for row in range(250):
        part = root / "photos" / ("train" if row < 200 else "val")
        folder = part / NAMES[data.target[row]]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.uint8(data.images[row] * 255 / 16).repeat(2, 0).repeat(2, 1)
        Image.fromarray(pixels).convert("RGB").save(folder / f"{row:04}.png")
    train = root / "photos/train"
    run(
        f"hello teach {train} --arch cnn --epochs 12 --batch-size 16 --view-crop 0.6 1"
        f" --view-flip 0 --view-mix none -o {root / 'taught'}"
    )
    (last,) = (root / "taught").glob("checkpoint-9-*")
    torch.save(load_file(last), root / "best.pth")
    run(
        f"hello distill {train} --teacher cnn={root / 'best.pth'} --base seeded --ipc 10 --steps 4"
        f" -o {root / 'photos.hello'}"
    )
    return root


def run(command):
    command, _, target = command.partition(" > ")
    program, *arguments = shlex.split(command, comments=True)
    assert program == "hello", command
    result = CliRunner().invoke(hello, arguments)
    assert result.exit_code == 0, f"{command}\n{result.output}"
    if target:
        Path(target).write_text(result.stdout)
    return result.output


# Lightning asks torch for what the newest torch has renamed.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, digits, tmp_path, monkeypatch):
    found = list(blocks(page))
    if not found:
        return
    shutil.copytree(digits, tmp_path / "page", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "page")
    names = {"__name__": "__page__"}
    for line, language, text in found:
        if language == "python":
            text = with_stand_ins(text)
            exec(compile("\n" * line + text, str(page), "exec"), names)  # noqa: S102
        else:
            for command in with_stand_ins(text.replace("\\\n", " ")).splitlines():
                run(command)


def test_the_documentation_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html"]
    done = subprocess.run(  # noqa: S603
        [*build, "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "HelloDataset" in (tmp_path / "html/reference/loading.html").read_text()
