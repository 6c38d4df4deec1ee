"""The examples in docstrings of public names run, on a tiny folder and a tiny archive."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import builders
import pytest
from PIL import Image

import hellofmt
from hellofmt.archive import Draft, write_archive
from hellofmt.projector import Projector

REFERENCE = Path(__file__).resolve().parents[2] / "docs/reference"
HOUSE = ("hellofmt_kernels", "hellofmt.making", "hellofmt.rng", "hellofmt.runs")


def functions_and_classes(module, names):
    """(module.name, value) of every function and class."""
    values = [(f"{module.__name__}.{name}", getattr(module, name)) for name in names]
    return [pair for pair in values if inspect.isclass(pair[1]) or inspect.isroutine(pair[1])]


def names():
    """What the reference lists is public; the rest of ``__all__`` serves other rooms."""
    public, house = [], []
    for room in sorted(page.stem for page in REFERENCE.glob("*.md")):
        if room not in {"index", "hellofmt"}:
            module = importlib.import_module(f"hellofmt.{room}")
            page = (REFERENCE / f"{room}.md").read_text()
            listed = re.findall(r"^\.\. auto(?:class|exception|function):: (\w+)$", page, re.M)
            public += functions_and_classes(module, listed)
            house += functions_and_classes(module, sorted(set(module.__all__) - set(listed)))
    for module in map(importlib.import_module, HOUSE):
        house += functions_and_classes(module, module.__all__)
    return public, house


PUBLIC, INTERNAL = names()
SHOWN = {id(value): (name, value) for name, value in [*PUBLIC, *INTERNAL]}.values()
SHOWN = [pair for pair in SHOWN if ">>>" in (pair[1].__doc__ or "")]


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


@pytest.mark.parametrize(("name", "value"), SHOWN, ids=[name for name, _ in SHOWN])
def test_the_example_runs(name, value, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {value.__name__: value}
    test = doctest.DocTestParser().get_doctest(value.__doc__, names, name, None, None)
    said = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert said == []
    assert "+SKIP" not in value.__doc__


def is_shown(value, public):
    """Whether a name has an example: its own, a parent's, or one that its docstring points to.

    That one is of a public name whose example uses this one, or which returns it or has it as a
    part.
    """
    kinds = value.__mro__ if inspect.isclass(value) else (value,)
    if any(kind in public.values() and ">>>" in (kind.__doc__ or "") for kind in kinds):
        return True
    for other in map(public.get, re.findall(r"``(\w+)", value.__doc__ or "")):
        if other is None or other is value:
            continue
        example = (other.__doc__ or "").partition(">>>")[2]
        types = getattr(other, "__annotations__", {})
        made = types.values() if inspect.isclass(other) else [types.get("return")]
        if (value.__name__ in example) or (value.__name__ in str(made) and is_shown(other, public)):
            return True
    return False


def test_every_public_name_has_an_example():
    public = {name.rpartition(".")[2]: value for name, value in PUBLIC}
    assert len(public) == len(PUBLIC), "two public names are one word"
    assert [name for name, value in PUBLIC if not is_shown(value, public)] == []


def test_the_reference_has_the_names_of_the_package():
    public = {id(value) for _, value in PUBLIC}
    own = functions_and_classes(hellofmt, hellofmt.__all__)
    assert [name for name, value in own if id(value) not in public] == []


def test_a_name_without_an_example_is_seen():
    def bare():
        """Return nothing."""

    def shown() -> Result:
        """
        >>> shown()
        """

    class Result:
        """What ``shown`` returns."""

    class Lost:
        """What ``bare`` returns, and ``shown`` does not."""

    public = {"bare": bare, "shown": shown, "Result": Result, "Lost": Lost}
    seen = {name: is_shown(value, public) for name, value in public.items()}
    assert seen == {"bare": False, "shown": True, "Result": True, "Lost": False}
