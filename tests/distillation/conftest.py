"""A small, learnable source and the views of its data set."""

from __future__ import annotations

import numpy as np
import pytest

from hellofmt.archive import ClassLine
from hellofmt.archive.manifest import Arch, Preprocess, Views, VisionArch
from hellofmt.projector import Projector, seeded_base
from hellofmt.sources import ArrayImages


@pytest.fixture
def views():
    def make(size=8, mix="cutmix", probability="0.5"):
        return Views(
            antialias=True,
            crop_ratio=["0.9", "1.1"],
            crop_scale=["0.7", "1.0"],
            flip="0.0",
            interpolation="bilinear",
            mean=["0.5", "0.4", "0.3"],
            mix=mix,
            mix_alpha="1.0",
            mix_probability=probability,
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


@pytest.fixture(scope="session")
def tiny_base():
    """One layer of width 64 over 8 x 8 pixels, generated."""
    vision = VisionArch(image_size=8, layers=1, width=64, patch_size=4, head_width=32)
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.4"] * 3,
        resize_mode="squash",
        size=8,
        std=["0.3"] * 3,
    )
    return seeded_base(Arch(embed_dim=32, quick_gelu=False, vision=vision), preprocess, seed=0)


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
