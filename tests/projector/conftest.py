"""Tiny towers, seeded, that hold every kind of parameter a delta can belong to."""

from __future__ import annotations

import dataclasses

import builders
import msgspec
import numpy as np
import pytest
import torch

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.format.manifest import Arch, Preprocess, TextArch, VisionArch
from hellofmt.projector import LoadedBase, Projector, seeded_base
from hellofmt.projector.base import Encoder

VIT = builders.vit(16, 32, layers=2)
RESNET = Arch(
    embed_dim=24,
    quick_gelu=False,
    vision=VisionArch(image_size=32, layers=[1, 1, 1, 1], width=8),
)
TEXT = TextArch(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
NAMES = ("tench", "great white shark", "cock", "junco")


def preprocess(size: int) -> Preprocess:
    """As OpenAI's weights have it."""
    return builders.preprocess(
        size,
        mean=["0.48145466", "0.4578275", "0.40821073"],
        std=["0.26862954", "0.26130258", "0.27577711"],
    )


def _randomise(projector: Projector, seed: int = 5) -> Projector:
    """Give B, bias and scale values, as if trained: a delta of zero would hide every mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for delta in [*projector.deltas, projector.head.delta]:
            if delta is not None:
                noise = torch.randn(delta.b.shape, generator=generator)
                delta.b.copy_(0.3 * noise / delta.b.shape[1] ** 0.5)
        if projector.head.bias is not None:
            projector.head.bias.copy_(torch.randn(projector.head.classes, generator=generator))
        projector.head.logit_scale.add_(0.1)
    return projector


@pytest.fixture(scope="session")
def vit() -> LoadedBase:
    return seeded_base(VIT, preprocess(16), seed=3)


@pytest.fixture(scope="session")
def text_vit() -> LoadedBase:
    return seeded_base(VIT, preprocess(16), seed=3, text=TEXT)


@pytest.fixture(scope="session")
def resnet() -> LoadedBase:
    return seeded_base(RESNET, preprocess(32), seed=4)


@pytest.fixture(scope="session")
def classes() -> list[ClassLine]:
    return [ClassLine(f"n{i:08}", (name,)) for i, name in enumerate(NAMES)]


@pytest.fixture(scope="session")
def randomise():
    return _randomise


@pytest.fixture
def trained(vit, classes) -> Projector:
    """A ViT projector with deltas on every weight and a full stored head."""
    return _randomise(
        Projector.build(vit, classes, start="stored", rank=4, temperature=4.0, seed=1)
    )


@pytest.fixture(scope="session")
def views() -> torch.Tensor:
    pixels = np.random.default_rng(0).random((6, 3, 16, 16), np.float32)
    return torch.from_numpy(pixels)


@pytest.fixture(scope="session")
def with_preprocess():
    """The same tower behind another entrance."""

    def change(base: LoadedBase, **changes: object) -> LoadedBase:
        entrance = msgspec.structs.replace(base.spec.preprocess, **changes)
        return dataclasses.replace(base, encoder=Encoder(base.visual, entrance).eval())

    return change


@pytest.fixture(scope="session")
def write_projector():
    """Write a projector as an archive without images."""
    from hellofmt.archive import Draft, write_archive

    def write(path, projector: Projector, classes, storage="float32", probes=2) -> None:
        views = builders.views(16, ["0.5"] * 3, ["0.5"] * 3)
        dataset = builders.dataset()
        part = projector.part(storage, probes)
        write_archive(path, Draft(dataset=dataset, classes=classes, views=views, projector=part))

    return write
