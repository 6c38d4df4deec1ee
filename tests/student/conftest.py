"""Views and a small, learnable image set for the tests of students."""

from __future__ import annotations

from functools import partial

import builders
import pytest


@pytest.fixture
def views():
    return partial(builders.mixed_views, scale=("0.6", "1.0"))


@pytest.fixture
def stripes():
    return builders.stripes


@pytest.fixture
def archive(tmp_path, views):
    """Path of an archive of six striped images with an unfitted label function."""
    return builders.write_unfitted(
        tmp_path / "stripes.hello",
        builders.image_set(*builders.stripes(per_class=2)),
        dataset=builders.dataset("stripes", ipc=2),
        views=views(),
    )
