"""The examples in docstrings of public names run, on a tiny folder and a tiny archive."""

from __future__ import annotations

import doctest
import importlib
import inspect

import builders
import pytest
from PIL import Image

from hellofmt.archive import Draft, write_archive
from hellofmt.projector import Projector

ROOMS = (
    *("archive", "distillation", "errors", "ledger", "loading", "making", "projector", "rng"),
    *("runs", "sources", "student", "teacher"),
)
# Functions and classes of rooms without an example. The number may only shrink.
WITHOUT = 182


def public_names():
    """(room.name, value) of every public function and class; once, where two rooms have it."""
    modules = ["hellofmt", "hellofmt_kernels", *(f"hellofmt.{room}" for room in ROOMS)]
    found = {}
    for name in modules:
        module = importlib.import_module(name)
        own = [key for key, value in vars(module).items() if inspect.getmodule(value) is module]
        for key in getattr(module, "__all__", [key for key in own if key[0] != "_"]):
            value = getattr(module, key)
            if inspect.isclass(value) or inspect.isroutine(value):
                found.setdefault(id(value), (f"{name}.{key}", value))
    return list(found.values())


NAMES = public_names()
WITH = [pair for pair in NAMES if ">>>" in (pair[1].__doc__ or "")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of stripes in ``photos``; ``photos.hello``, with labels; and ``clip``, a base."""
    root = tmp_path_factory.mktemp("names")
    pixels, labels = builders.stripes(20, size=16)
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = root / "photos" / builders.STRIPES[label].key / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    base = builders.tiny_base(16)
    projector = Projector.build(
        base, builders.STRIPES, rank=2, start="stored", temperature=2.0, seed=0
    )
    draft = Draft(
        dataset=builders.dataset("photos"),
        classes=builders.STRIPES,
        views=builders.views(16),
        images=builders.image_set(pixels, labels),
        projector=projector.part("float32"),
    )
    write_archive(root / "photos.hello", draft)
    builders.save_clip(root / "clip", 16)
    return root


@pytest.mark.parametrize(("name", "value"), WITH, ids=[name for name, _ in WITH])
def test_the_example_runs(name, value, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {value.__name__: value}
    test = doctest.DocTestParser().get_doctest(value.__doc__, names, name, None, None)
    said = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert said == []
    assert "+SKIP" not in value.__doc__


def test_fewer_and_fewer_names_have_no_example():
    without = sorted(name for name, value in NAMES if ">>>" not in (value.__doc__ or ""))
    assert not [name for name in without if name.count(".") == 1 and name.startswith("hellofmt.")]
    assert len(without) <= WITHOUT, f"give the new one an example: {without}"
    assert len(without) == WITHOUT, f"fewer: set WITHOUT to {len(without)}"
