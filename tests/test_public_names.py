"""The public names: few, pinned, each loaded on first use and each what it should be."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

import hellofmt

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {
    "HelloDataset": "hellofmt.loading.dataset",
    "HelloError": "hellofmt.errors",
    "HelloFile": "hellofmt.archive.read.file",
    "HelloLoader": "hellofmt.loading.loader",
    "HelloSampler": "hellofmt.loading.sampler",
    "Labeler": "hellofmt.projector.labeler",
    "Projector": "hellofmt.projector.projector",
    "distill": "hellofmt.distillation.distill",
    "fit_projector": "hellofmt.distillation.fit",
    "open": "hellofmt.archive.read.open",
    "pack": "hellofmt.sources.pack",
    "soft_batches": "hellofmt.loading.soft",
    "verify": "hellofmt.archive.read.verify",
    "webdataset_samples": "hellofmt.loading.webdataset",
}


def test_pinned():
    assert set(hellofmt.__all__) == {*PUBLIC, "__version__"}
    assert set(hellofmt.__all__) <= set(dir(hellofmt))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_what_it_says(name):
    value = getattr(hellofmt, name)
    assert callable(value)
    assert value.__module__ == PUBLIC[name]
    # Loaded once, then an ordinary attribute.
    assert vars(hellofmt)[name] is value


def test_no_module_hides_a_name():
    # Importing `hellofmt.pack` as a module would replace the function of that name.
    modules = {path.stem for path in (ROOT / "hellofmt").iterdir()}
    assert not modules & set(PUBLIC)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module `hellofmt` has no attribute `nothing`"):
        hellofmt.nothing  # noqa: B018


@pytest.mark.parametrize("room", ["archive", "projector", "loading", "student", "distillation"])
def test_every_name_of_a_room_exists(room):
    module = importlib.import_module(f"hellofmt.{room}")
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_version_is_the_one_that_is_packaged():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]
    found = re.search(hatch["pattern"], (ROOT / hatch["path"]).read_text(), re.MULTILINE)
    assert found is not None
    assert found["version"] == hellofmt.__version__
