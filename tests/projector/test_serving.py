from __future__ import annotations

import copy

import builders
import numpy as np
import pytest
import torch

from hellofmt.archive import Arch, VisionArch
from hellofmt.projector import seeded_base
from hellofmt.projector.serving import ServingEncoder, fold_batch_norms_, fold_normalisation_

ENTRANCE = builders.preprocess(
    32,
    mean=["0.48145466", "0.4578275", "0.40821073"],
    std=["0.26862954", "0.26130258", "0.27577711"],
)
RESNET = Arch(
    embed_dim=16,
    quick_gelu=True,
    vision=VisionArch(image_size=32, layers=[2, 1, 1, 1], width=16),
)
VIT = builders.vit(32, width=32, head_width=16)


def base_of(arch):
    """A seeded base whose BatchNorms and biases are not those of the start."""
    base = seeded_base(arch, ENTRANCE, seed=2)
    noise = torch.Generator().manual_seed(3)
    for name, value in base.visual.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            low, span = (0.5, 1.0) if name.endswith(("weight", "running_var")) else (-0.5, 1.0)
            value.copy_(low + span * torch.rand(value.shape, generator=noise))
    return base


def pictures(count=3, side=32):
    pixels = np.random.default_rng(1).random((count, 3, side, side), np.float32)
    return torch.from_numpy(pixels)


def truth(base, views):
    """Embeddings in float64."""
    encoder = copy.deepcopy(base.encoder).double()
    x = base.encoder.resized(views).double()
    with torch.no_grad():
        features = encoder.visual((x - encoder.mean) / encoder.std)
    return torch.nn.functional.normalize(features, dim=-1)


def served(base, **options):
    values = {"device": torch.device("cpu"), "dtype": torch.float32, **options}
    return ServingEncoder(copy.deepcopy(base.encoder), **values)


@pytest.mark.parametrize(
    ("arch", "norms"),
    # 3 of the stem, 3 of each of 5 blocks, 4 of the way around a stage.
    [(RESNET, 22), (VIT, 0)],
)
@pytest.mark.parametrize("side", [32, 40])
def test_folds_leave_the_function_as_it_is(arch, norms, side):
    base = base_of(arch)
    before = {name: value.clone() for name, value in base.visual.state_dict().items()}
    encoder = served(base)
    assert fold_batch_norms_(copy.deepcopy(base.visual)) == norms
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.modules())
    assert encoder.is_folded == (arch is VIT)
    assert encoder.prepared(pictures()).is_contiguous(memory_format=torch.channels_last)
    views = pictures(side=side)
    expected = truth(base, views)
    with torch.no_grad():
        error = (encoder(views) - expected).abs().max()
        plain = (base.encoder(views) - expected).abs().max()
    assert error <= 2 * plain + 1e-6
    assert all(torch.equal(value, before[name]) for name, value in base.visual.state_dict().items())


def test_half_precision_is_cast_after_the_folds():
    for arch in (RESNET, VIT):
        base = base_of(arch)
        views = pictures()
        with torch.no_grad():
            got = served(base, dtype=torch.bfloat16)(views)
        assert got.dtype == torch.float32
        cosine = (got.double() * truth(base, views)).sum(dim=1)
        assert cosine.min() > 1 - 1e-3


def test_a_padded_stem_keeps_its_normalisation_because_the_fold_is_wrong_at_the_border():
    base = base_of(RESNET)
    mean, std = base.encoder.mean.flatten(), base.encoder.std.flatten()
    visual = copy.deepcopy(base.visual)
    assert not fold_normalisation_(visual, mean, std)
    stem = visual.conv1
    views = pictures()
    right = stem((views - base.encoder.mean) / base.encoder.std)
    weight = stem.weight / std.view(1, 3, 1, 1)
    shift = -(weight * mean.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    wrong = torch.nn.functional.conv2d(views, weight, shift, stem.stride, stem.padding)
    error = (wrong - right).abs().amax(dim=(0, 1))
    # Exact inside; at the border the padding stands for black instead of the mean colour.
    assert error[1:, 1:].max() < 1e-5
    assert min(error[0].max(), error[:, 0].max()) > 0.1


def test_a_fold_of_normalisation_keeps_a_bias_of_the_stem():
    base = base_of(VIT)
    visual = copy.deepcopy(base.visual)
    plain = visual.conv1
    stem = torch.nn.Conv2d(3, 32, 4, 4)
    stem.weight.data.copy_(plain.weight)
    visual.conv1 = stem
    views = pictures()
    mean, std = base.encoder.mean, base.encoder.std
    with torch.no_grad():
        expected = copy.deepcopy(stem).double()((views.double() - mean) / std)
        assert fold_normalisation_(visual, mean.flatten(), std.flatten())
        assert (visual.conv1(views) - expected).abs().max() < 1e-5


def test_towers_without_batch_norms_are_left_alone():
    assert fold_batch_norms_(base_of(VIT).visual) == 0


@pytest.mark.slow
def test_a_compiled_tower_computes_the_same():
    base = base_of(VIT)
    encoder = served(base, compile=True)
    assert encoder.is_folded
    assert isinstance(encoder._tower, torch._dynamo.OptimizedModule)
    views = pictures()
    with torch.no_grad():
        assert (encoder(views) - truth(base, views)).abs().max() < 1e-5
