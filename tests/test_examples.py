"""The recipes of ``examples/``: Ray's without Ray; all as users run them when there is time."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import builders
import numpy as np
import pytest
import torch
from PIL import Image

import hellofmt
from hellofmt.archive import Draft, open_archive, write_archive
from hellofmt.errors import UserInputError
from hellofmt.projector import Labeler, Projector

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
START = (
    "import ray, runpy, sys; sys.argv = sys.argv[1:]; ray.init(num_cpus=2, log_to_driver=False,"
    " include_dashboard=False, object_store_memory=100 << 20); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def images(tmp_path):
    random, root = np.random.default_rng(0), tmp_path / "images"
    for key in "abc":
        (root / key).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(
                root / key / f"{i}.png"
            )
    return root


@pytest.fixture
def archive(tmp_path):
    """Path of an unfitted label function."""
    return builders.write_unfitted(tmp_path / "function.hello")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def one(images, tmp_path):
    (tmp_path / "one").mkdir()
    hellofmt.pack(images, tmp_path / "one" / "x.hello", shards=3)
    return files(tmp_path / "one")


def test_ray_pack(images, one, tmp_path, monkeypatch):
    options, sizes = SimpleNamespace(preserve_order=False), []

    class Rows(list):
        def map(self, work):
            return Rows(map(work, self))

        def iter_rows(self):
            return iter(self)

    def from_items(rows, override_num_blocks):
        sizes.append((len(rows), override_num_blocks))
        return Rows(rows)

    ray = ModuleType("ray")
    context = SimpleNamespace(get_current=lambda: SimpleNamespace(execution_options=options))
    ray.data = SimpleNamespace(DataContext=context, from_items=from_items)
    monkeypatch.setitem(sys.modules, "ray", ray)
    spread = runpy.run_path(str(EXAMPLES / "ray_pack.py"))["spread"]
    (tmp_path / "many").mkdir()
    hellofmt.pack(images, tmp_path / "many" / "x.hello", shards=3, spread=spread)
    assert files(tmp_path / "many") == one
    assert sizes == [(3, 3), (3, 3)]
    assert options.preserve_order
    whole = images / "b" / "0.png"
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(UserInputError, match=r"E_DATA: .*0\.png"):
        hellofmt.pack(images, tmp_path / "many" / "y.hello", shards=3, spread=spread)
    assert files(tmp_path / "many") == one
    for changes in ({"shards": None}, {"shards": 3, "reencode": "png"}):
        with pytest.raises(UserInputError, match="E_OPTION: `spread`: expected shards of images"):
            hellofmt.pack(images, tmp_path / "y.hello", spread=spread, **changes)


def test_ray_label(archive, images):
    labels = runpy.run_path(str(EXAMPLES / "ray_label.py"))["Labels"]
    rows = np.array([7, 0, 11])
    got = labels(str(archive), str(images), str(images.parent / "work"))({"id": rows})
    paths = [images / "b" / "3.png", images / "a" / "0.png", images / "c" / "3.png"]
    assert got["name"].tolist() == [str(path) for path in paths]
    assert got["row"].tolist() == rows.tolist()
    with open_archive(archive) as file:
        assert file.manifest.views.size == 8
    pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths])
    views = torch.from_numpy(pixels / 255).permute(0, 3, 1, 2)
    truth = Labeler.from_file(archive).labels(views)
    np.testing.assert_allclose(got["label"], truth, atol=1e-3)


@pytest.mark.slow
def test_ray_itself(archive, images, one, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "many").mkdir()

    def run(*words):
        command = [sys.executable, "-c", START, *map(str, words)]
        done = subprocess.run(  # noqa: S603
            command,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    run(EXAMPLES / "ray_pack.py", images, tmp_path / "many" / "x.hello", 3)
    assert files(tmp_path / "many") == one
    run(EXAMPLES / "ray_label.py", archive, images, tmp_path / "labels", 2)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "labels")
    assert sorted(table["row"].to_pylist()) == list(range(12))


LOOPS = ("plain_loop", "with_accelerate", "with_lightning", "with_trainer", "with_webdataset")


@pytest.fixture
def photos(tmp_path):
    """Path of an archive of 60 images with a label function; its views suit a ResNet."""
    base = builders.tiny_base(32)
    projector = Projector.build(
        base, builders.STRIPES, rank=2, start="stored", temperature=2.0, seed=0
    )
    path = tmp_path / "photos.hello"
    draft = Draft(
        dataset=builders.dataset("photos"),
        classes=builders.STRIPES,
        views=builders.views(32),
        images=builders.image_set(*builders.stripes(20, size=32)),
        projector=projector.part("float32"),
    )
    write_archive(path, draft)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_trains_a_student(name, photos, tmp_path):
    done = subprocess.run(  # noqa: S603
        [sys.executable, EXAMPLES / f"{name}.py", photos, "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = "out/model.safetensors" if name == "with_trainer" else "student.pth"
    assert (tmp_path / written).stat().st_size > 1 << 20


def test_examples_are_short_and_listed():
    listed = (EXAMPLES / "README.md").read_text()
    notebook = json.loads((EXAMPLES / "show_labels.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code)
    for path in EXAMPLES.glob("*.*y*"):
        assert path.name in listed
        assert path.suffix != ".py" or len(path.read_text().splitlines()) <= 60, path.name
