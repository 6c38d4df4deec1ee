"""A small, learnable source, the views of its data set, and an archive of them."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from hellofmt.archive import Texts
from hellofmt.distillation import DistillSettings, write_distilled
from hellofmt.distillation.selection import Selection
from hellofmt.projector import Projector


@pytest.fixture
def views():
    return builders.mixed_views


@pytest.fixture
def stripes():
    return builders.striped_source


@pytest.fixture
def archive(tmp_path, stripes, views):
    """Path of an archive of six striped images with an unfitted label function."""
    source = stripes(per_class=2)
    base = builders.tiny_base()
    projector = Projector.build(
        base, source.classes, targets="all", rank=2, start="stored", temperature=3.0, seed=0
    )
    rows = np.arange(6).reshape(6, 1)
    whole = np.tile(np.array([0, 0, 8, 8], np.int32), (6, 1, 1))
    chosen = Selection(source.labels, rows, whole)
    path = tmp_path / "stripes.hello"
    settings = DistillSettings(None, texts=Texts(name="stripes"))
    write_distilled(path, chosen, projector, source, views(), settings)
    return path
