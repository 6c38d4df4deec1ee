"""What is built can be installed: commands run, data files are there, README's links lead out."""

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*arguments, **options):
    done = subprocess.run(  # noqa: S603
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with sdist and wheel, the wheel built from what the sdist holds."""
    out = tmp_path_factory.mktemp("built")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    source = out / sdist.name.removesuffix(".tar.gz")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=source)
    return out


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    packages = Path(call(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    # What it needs is that of this environment; itself it is its own.
    (packages / "needs.pth").write_text(f"{Path(click.__file__).parents[1]}\n")
    hello = tmp_path / "venv/bin/hello"
    assert call(hello, "--version", cwd=tmp_path).startswith("hello")
    where = call(python, "-c", "import hellofmt; print(hellofmt.__file__)", cwd=tmp_path)
    assert where.startswith(str(packages))
    assert '"$schema"' in call(hello, "schema", cwd=tmp_path)
    assert (packages / "hellofmt_cli/templates/page.html.jinja").is_file()
    assert (packages / "hellofmt_kernels/tiles.json").is_file()


@pytest.mark.slow
def test_links_of_the_package_index_lead_out(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith("/METADATA"))
        text = files.read(name).decode()
    targets = re.findall(r"\]\(([^)]+)\)", text.split("\n\n", 1)[1])
    assert len(targets) > 10
    assert all(target.startswith(("https://", "#")) for target in targets), targets
