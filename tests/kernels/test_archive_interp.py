"""The kernels in Triton's interpreter on what real archives hold, against what a CPU serves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hellofmt.archive import open_archive
from hellofmt.loading import HelloDataset
from hellofmt.loading.resident import is_drawable
from hellofmt.projector import Labeler
from hellofmt_kernels import LabelOptions, ViewForm
from hellofmt_kernels.labels import reference
from hellofmt_kernels.tiles import table

fused_labels = pytest.importorskip("hellofmt_kernels.labels.fused")
fused_views = pytest.importorskip("hellofmt_kernels.views.fused")

pytestmark = pytest.mark.interp

ARCHIVES = Path(__file__).parents[2] / "spec" / "vectors" / "valid"


def drawn(dataset, epochs):
    """Views and parameters of every row in several epochs, as one batch."""
    rows = np.tile(np.arange(len(dataset)), epochs)
    return dataset.draw(rows, np.repeat(np.arange(epochs), len(dataset)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("is_softmax", [True, False])
def test_an_archives_labels(dtype, is_softmax):
    with open_archive(ARCHIVES / "everything.hello") as file:
        labeler = Labeler.from_file(file, dtype=dtype)
        views, _ = drawn(HelloDataset(file, labels="none"), 12)
    x = labeler.embeddings(views)
    options = LabelOptions(labeler._scale, labeler.temperature, is_softmax=is_softmax)
    tile = table().labels(len(x), len(labeler._weight), x.element_size(), (9, 0))
    got = fused_labels.launch(x, labeler._weight, labeler._bias, options, tile)
    served = labeler.labels(views) if is_softmax else labeler.logits(views)
    assert got.shape == served.shape == (36, 3)
    exact = dataclasses.replace(options, dtype=torch.float64)
    want = reference.soft_labels(x.double(), labeler._weight.double(), labeler._bias, exact)
    # Half operands are exact in float32: what remains is the order of the float32 sum.
    assert (got - want).abs().max() <= 2 * (served - want).abs().max() + 1e-6


def test_an_archives_views():
    dataset = HelloDataset(ARCHIVES / "images-packed.hello", labels="none")
    # Few: a view takes the interpreter most of a second.
    views, table = drawn(dataset, 3)
    assert is_drawable(dataset)
    stored = torch.from_numpy(np.stack([dataset.pixels(row) for row in range(len(dataset))]))
    size = dataset.views.size
    rows, antialias = torch.from_numpy(table), dataset.views.antialias
    half = ViewForm((0.5,) * 3, (0.25,) * 3, torch.float16, is_channels_last=True)
    got, second = fused_views.launch(stored, rows, size, antialias, (ViewForm(), half))
    assert (got - views).abs().max() < 1e-5
    # Values from -2 to 2, where half a step of float16 is 2**-11.
    assert (second - (views - 0.5) / 0.25).abs().max() < 2**-10
    assert (table[:, 6] != table[:, 0]).any()
