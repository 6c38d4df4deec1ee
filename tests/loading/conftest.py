from __future__ import annotations

import builders
import msgspec
import numpy as np
import pytest
import torch

from hellofmt.archive import Arch, ClassLine, Draft, VisionArch, write_archive
from hellofmt.projector import Projector, seeded_base

CLASSES = (ClassLine("n1", ("tench",)), ClassLine("n2", ("shark",)), ClassLine("n3", ("cock",)))
VIT = builders.vit(16, width=32, head_width=16)
RESNET = Arch(
    embed_dim=16,
    quick_gelu=True,
    vision=VisionArch(image_size=32, layers=[1, 1, 1, 1], width=16),
)
BICUBIC = builders.preprocess(16, "0.5", "0.25")


def make_views(**changes):
    random_crops = {
        "size": 16,
        "mean": ["0.485", "0.456", "0.406"],
        "std": ["0.229", "0.224", "0.225"],
        "crop_ratio": ["0.75", "1.3333333333333333"],
        "crop_scale": ["0.08", "1.0"],
        "flip": "0.5",
    }
    return builders.views(**{**random_crops, **changes})


def make_pictures(count, side=None):
    generator = np.random.default_rng(count)
    shapes = generator.integers(8, 25, (count, 2)) if side is None else np.full((count, 2), side)
    return [generator.integers(0, 256, (h, w, 3), np.uint8) for h, w in shapes]


def make_archive(
    path,
    *,
    count=11,
    side=None,
    with_projector=True,
    layout="auto",
    arch=VIT,
    temperature=2.0,
    **changes,
):
    pictures = make_pictures(count, side)
    labels = [i * len(CLASSES) // max(count, 1) for i in range(count)]
    images = projector = None
    if count:
        images = builders.image_set(pictures, labels, layout)
    if with_projector:
        entrance = msgspec.structs.replace(BICUBIC, size=arch.vision.image_size)
        base = seeded_base(arch, entrance, seed=3)
        built = Projector.build(
            base, CLASSES, rank=2, start="stored", temperature=temperature, seed=1
        )
        noise = torch.Generator().manual_seed(3 + round(temperature))
        with torch.no_grad():
            for value in built.parameters():
                if value.requires_grad:
                    value.add_(0.2 * torch.randn(value.shape, generator=noise))
        projector = built.part()
    draft = Draft(
        builders.dataset(), CLASSES, make_views(**changes), images=images, projector=projector
    )
    write_archive(path, draft)
    return path


@pytest.fixture(scope="session")
def views_of():
    return make_views


@pytest.fixture(scope="session")
def pictures_of():
    return make_pictures


@pytest.fixture(scope="session")
def archive_of(tmp_path_factory):
    """Path of an archive with these properties, written once."""
    known = {}

    def archive(**changes):
        key = repr(sorted(changes.items()))
        if key not in known:
            path = tmp_path_factory.mktemp("archive") / "tiny.hello"
            known[key] = make_archive(path, **changes)
        return known[key]

    return archive


@pytest.fixture(scope="session")
def mixing(archive_of):
    """Eleven images of unequal shapes, CutMix in about half of the views."""
    return archive_of(mix="cutmix", mix_probability="0.5", shuffle=2)


@pytest.fixture(scope="session")
def mixing_even(archive_of):
    """The same with images of one size, which a GPU draws also where patches are shuffled."""
    return archive_of(side=16, mix="cutmix", mix_probability="0.5", shuffle=2)


@pytest.fixture(scope="session")
def projector_only(archive_of):
    return archive_of(count=0, mix="cutmix", mix_probability="0.5")


@pytest.fixture(scope="session")
def resnet():
    """A tower for 32 px with a padded stem, which no normalisation can be folded into."""
    return RESNET
