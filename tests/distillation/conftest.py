"""A small, learnable source and the views of its data set."""

from __future__ import annotations

import builders
import pytest

from hellofmt.projector import Projector
from hellofmt.sources import ArrayImages


@pytest.fixture
def views():
    return builders.mixed_views


@pytest.fixture
def stripes():
    """Three classes of square images: bright rows, bright columns, or grey; plus noise."""

    def make(per_class=8, seed=0, size=8):
        pixels, labels = builders.stripes(per_class, seed, size)
        return ArrayImages(pixels, labels, builders.STRIPES, "stripes")

    return make


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
