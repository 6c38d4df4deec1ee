"""Views and a small, learnable image set for the tests of students."""

from __future__ import annotations

import numpy as np
import pytest

from hellofmt.archive import (
    Arch,
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    Preprocess,
    Views,
    VisionArch,
    encode_image,
    write_archive,
)
from hellofmt.projector import Projector, seeded_base


@pytest.fixture
def views():
    def make(size=8, mix="cutmix", probability="0.5", scale=("0.6", "1.0")):
        return Views(
            antialias=True,
            crop_ratio=["0.9", "1.1"],
            crop_scale=list(scale),
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
    """Three classes of 8 px images: bright rows, bright columns, or grey; plus noise."""

    def make(per_class=8, seed=0, size=8):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 60, (3 * per_class, size, size, 3))
        labels = np.repeat(np.arange(3), per_class)
        pixels[labels == 0, ::2] += 150
        pixels[labels == 1, :, ::2] += 150
        pixels[labels == 2] += 75
        return pixels.astype(np.uint8), labels.astype(np.int64)

    return make


@pytest.fixture
def archive(tmp_path, stripes, views):
    """Path of an archive of six striped images with an unfitted label function."""
    pixels, labels = stripes(per_class=2)
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
    classes = [ClassLine(key, (key,)) for key in ("rows", "columns", "grey")]
    projector = Projector.build(
        base, classes, targets="all", rank=2, start="stored", temperature=3.0, seed=0
    )
    items = [ImageItem(int(c), encode_image(p, "png")) for p, c in zip(pixels, labels, strict=True)]
    draft = Draft(
        dataset=Dataset(
            name="stripes", version="1.0.0", license="CC0-1.0", method="hello", sources=[], ipc=2
        ),
        classes=classes,
        views=views(),
        images=ImageSet("png", items),
        projector=projector.part("float32"),
    )
    path = tmp_path / "stripes.hello"
    write_archive(path, draft)
    return path
