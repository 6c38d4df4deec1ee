"""Views and a small, learnable image set for the tests of students."""

from __future__ import annotations

from functools import partial

import builders
import pytest

from hellofmt.archive import Draft, write_archive
from hellofmt.projector import Projector


@pytest.fixture
def views():
    return partial(builders.mixed_views, scale=("0.6", "1.0"))


@pytest.fixture
def stripes():
    return builders.stripes


@pytest.fixture
def archive(tmp_path, views):
    """Path of an archive of six striped images with an unfitted label function."""
    projector = Projector.build(
        builders.tiny_base(),
        builders.STRIPES,
        targets="all",
        rank=2,
        start="stored",
        temperature=3.0,
        seed=0,
    )
    draft = Draft(
        dataset=builders.dataset("stripes", ipc=2),
        classes=builders.STRIPES,
        views=views(),
        images=builders.image_set(*builders.stripes(per_class=2)),
        projector=projector.part("float32"),
    )
    path = tmp_path / "stripes.hello"
    write_archive(path, draft)
    return path
