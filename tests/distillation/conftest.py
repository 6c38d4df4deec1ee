"""A small, learnable source and the views of its data set."""

from __future__ import annotations

import dataclasses

import builders
import pytest

from hellofmt.archive import Texts
from hellofmt.distillation import (
    DistillSettings,
    FitHooks,
    FitSettings,
    ProjectorSettings,
    SelectSettings,
    distill,
)
from hellofmt.projector import Projector
from hellofmt.teacher import train_teacher


@pytest.fixture
def views():
    return builders.mixed_views


@pytest.fixture
def stripes():
    return builders.striped_source


@pytest.fixture(scope="session")
def tiny_base():
    return builders.tiny_base(dim=32)


@pytest.fixture
def make_projector(stripes, tiny_base):
    def make(rank=4):
        return Projector.build(
            tiny_base,
            stripes().classes,
            targets="all",
            rank=rank,
            start="stored",
            temperature=4.0,
            seed=0,
        )

    return make


@pytest.fixture(scope="session")
def cache():
    return {}


@pytest.fixture
def arguments(cache, stripes, views, tiny_base):
    source = stripes(per_class=20)
    if not cache:
        cache["teacher"] = train_teacher(source, views(), steps=20, batch_size=24)
    return {
        "source": source,
        "teacher": cache["teacher"],
        "base": tiny_base,
        "views": views(),
    }


SETTINGS = {
    "projector": ProjectorSettings(rank=2, start="stored"),
    "fit": FitSettings(steps=4, batch_size=8),
    "select": SelectSettings(1, 2, "rded"),
}


@pytest.fixture
def make(arguments, tmp_path):
    """``distill`` with changes of any setting, hook or argument by its name."""

    def run(target="x.hello", **changes):
        def taken(kind):
            return {name: changes.pop(name) for name in list(changes) if name in fields_of(kind)}

        settings = {**SETTINGS, "texts": Texts(**taken(Texts)), **taken(DistillSettings)}
        settings = DistillSettings(**settings)
        hooks = FitHooks(**taken(FitHooks))
        return distill(
            target=tmp_path / target, settings=settings, hooks=hooks, **{**arguments, **changes}
        )

    return run


def fields_of(kind):
    return {field.name for field in dataclasses.fields(kind)}
