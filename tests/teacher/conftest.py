"""A small, learnable source, the views of its data set, and an archive of them."""

from __future__ import annotations

import numpy as np
import pytest

from hellofmt.archive import ClassLine
from hellofmt.archive.manifest import Arch, Preprocess, Views, VisionArch
from hellofmt.distillation import write_distilled
from hellofmt.distillation.select import Selection
from hellofmt.projector import Projector, seeded_base
from hellofmt.sources import ArrayImages


@pytest.fixture
def views():
    def make(size=8):
        return Views(
            antialias=True,
            crop_ratio=["0.9", "1.1"],
            crop_scale=["0.7", "1.0"],
            flip="0.0",
            interpolation="bilinear",
            mean=["0.5", "0.4", "0.3"],
            mix="cutmix",
            mix_alpha="1.0",
            mix_probability="0.5",
            shuffle=1,
            size=size,
            std=["0.25", "0.5", "0.2"],
        )

    return make


@pytest.fixture
def stripes():
    """Three classes of square images: bright rows, bright columns, or grey; plus noise."""

    def make(per_class=8, seed=0, size=8):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 60, (3 * per_class, size, size, 3))
        labels = np.repeat(np.arange(3), per_class)
        pixels[labels == 0, ::2] += 150
        pixels[labels == 1, :, ::2] += 150
        pixels[labels == 2] += 75
        classes = tuple(ClassLine(key, (key,)) for key in ("rows", "columns", "grey"))
        return ArrayImages(pixels.astype(np.uint8), labels.astype(np.int64), classes, "stripes")

    return make


@pytest.fixture
def archive(tmp_path, stripes, views):
    """Path of an archive of six striped images with an unfitted label function."""
    source = stripes(per_class=2)
    vision = VisionArch(image_size=8, layers=1, width=64, patch_size=4, head_width=32)
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.4"] * 3,
        resize_mode="squash",
        size=8,
        std=["0.3"] * 3,
    )
    base = seeded_base(Arch(embed_dim=16, quick_gelu=False, vision=vision), preprocess, seed=0)
    projector = Projector.build(
        base, source.classes, targets="all", rank=2, start="stored", temperature=3.0, seed=0
    )
    rows = np.arange(6).reshape(6, 1)
    chosen = Selection(
        source.pixels, source.labels, rows, rows.astype(float), np.zeros((6, 1, 20), np.int32)
    )
    path = tmp_path / "stripes.hello"
    write_distilled(path, chosen, projector, source, views(), name="stripes")
    return path
