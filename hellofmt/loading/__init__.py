"""Archive to batches: views as pure functions of (seed, epoch, index), datasets and samplers."""

from __future__ import annotations

from hellofmt.loading.dataset import HelloDataset
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.loading.loader import HelloLoader
from hellofmt.loading.sampler import HelloSampler
from hellofmt.loading.soft import soft_batches
from hellofmt.loading.stored_labels import StoredLabels
from hellofmt.loading.views.normalise import normalise
from hellofmt.loading.views.pixels import render
from hellofmt.loading.views.recipes import view_recipe
from hellofmt.loading.views.table import mixed_labels, view_table
from hellofmt.loading.webdataset import webdataset_samples
from hellofmt.loading.write_labels import write_labels

__all__ = [
    "EpochIndex",
    "HelloDataset",
    "HelloLoader",
    "HelloSampler",
    "StoredLabels",
    "mixed_labels",
    "normalise",
    "render",
    "soft_batches",
    "view_recipe",
    "view_table",
    "webdataset_samples",
    "write_labels",
]
