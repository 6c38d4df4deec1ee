"""Every way to a batch computes the same rows, parameters, pixels and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hellofmt.archive import open_archive
from hellofmt.loading import (
    HelloDataset,
    HelloLoader,
    HelloSampler,
    normalise,
    render,
    soft_batches,
    view_table,
)
from hellofmt.projector import Projector
from hellofmt.rng import order

SEED = 9
OPTIONS = {"batch_size": 4, "seed": SEED}


def plain(path):
    """A DataLoader that is told the rows, since its own shuffle is torch's."""
    dataset = HelloDataset(path, seed=SEED)
    rows = [order(SEED, epoch, 11).tolist() for epoch in range(2)]
    parts = []
    for epoch in range(2):
        loader = DataLoader(dataset, batch_size=4, sampler=rows[epoch], num_workers=2)
        parts += list(loader)
    return parts


def sampled(path):
    dataset = HelloDataset(path, seed=SEED)
    loader = DataLoader(
        dataset,
        batch_sampler=HelloSampler(dataset, **OPTIONS),
        num_workers=2,
        persistent_workers=True,
    )
    return [batch for _ in range(2) for batch in loader]


def labelled_after(path):
    dataset = HelloDataset(path, seed=SEED, labels="none")
    loader = DataLoader(dataset, batch_sampler=HelloSampler(dataset, **OPTIONS), num_workers=1)
    batches = soft_batches(loader, dataset.labeler())
    return [batch for _ in range(2) for batch in batches]


def loaded(path):
    loader = HelloLoader(path, **OPTIONS)
    return [batch for _ in range(2) for batch in loader]


WAYS = {
    "a DataLoader": plain,
    "with HelloSampler": sampled,
    "soft_batches": labelled_after,
    "HelloLoader": loaded,
}


@pytest.fixture(scope="module")
def expected(mixing, pictures_of):
    """From the pure functions and the projector that was fitted, its deltas not merged."""
    file = open_archive(mixing)
    views, pictures = file.manifest.views, pictures_of(11)
    projector = Projector.from_file(file)
    sides = np.array([picture.shape[:2] for picture in pictures])
    images, labels = [], []
    for epoch in range(2):
        rows = order(SEED, epoch, 11)
        table = view_table(
            views,
            seed=SEED,
            epochs=epoch,
            indices=rows,
            heights=sides[:, 0],
            widths=sides[:, 1],
            count=11,
        )
        pixels = render(pictures, table, views)
        with torch.no_grad():
            logits = projector(pixels).double()
        images.append(normalise(pixels, views))
        labels.append(
            torch.softmax(logits / float(file.manifest.functions[0].head.temperature), dim=1)
        )
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_computes_the_one_label_function(mixing, expected, way):
    batches = WAYS[way](mixing)
    assert [len(images) for images, _ in batches] == [4, 4, 3, 4, 4, 3]
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(images, expected[0])
    assert (labels.double() - expected[1]).abs().max() < 1e-5
    assert (labels.sum(dim=1) - 1).abs().max() < 1e-6
