"""Archive to batches: views as pure functions of (seed, epoch, index), datasets and samplers."""

from __future__ import annotations

from hellofmt.loading.dataset import HelloDataset
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.loading.loader import HelloLoader
from hellofmt.loading.sampler import HelloSampler
from hellofmt.loading.soft import soft_batches
from hellofmt.loading.stored_labels import FORMS, StoredLabels
from hellofmt.loading.views.normalise import normalise
from hellofmt.loading.views.pixels import render
from hellofmt.loading.views.recipes import VIEW_RECIPES, view_recipe
from hellofmt.loading.views.table import ViewColumn, mixed_labels, plain_table, view_table
from hellofmt.loading.webdataset import WebdatasetSamples, webdataset_samples
from hellofmt.loading.write_labels import write_labels

__all__ = [
    "FORMS",
    "VIEW_RECIPES",
    "EpochIndex",
    "HelloDataset",
    "HelloLoader",
    "HelloSampler",
    "StoredLabels",
    "ViewColumn",
    "WebdatasetSamples",
    "mixed_labels",
    "normalise",
    "plain_table",
    "render",
    "soft_batches",
    "view_recipe",
    "view_table",
    "webdataset_samples",
    "write_labels",
]
