"""The label kernels in Triton's interpreter, against float64 and beside torch in the same dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt_kernels import config, reference

soft_labels_triton = pytest.importorskip("hellofmt_kernels.soft_labels_triton")

pytestmark = pytest.mark.interp

SCALE, TEMPERATURE = 100.0, 2.0


def head(n, c, d, dtype, rank=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1).to(dtype)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g), dim=1).to(dtype)
    bias = torch.randn(c, generator=g)
    low_rank = None
    if rank:
        a = (torch.randn(rank, d, generator=g) / d**0.5).to(dtype)
        b = (torch.randn(c, rank, generator=g) / rank**0.5).to(dtype)
        low_rank = (a, b, 0.25)
    return x, w, bias, low_rank


def truth(x, w, bias, epilogue, low_rank=None):
    factors = (
        None if low_rank is None else (low_rank[0].double(), low_rank[1].double(), low_rank[2])
    )
    return reference.soft_labels(
        x.double(), w.double(), bias, SCALE, TEMPERATURE, torch.float64, epilogue, factors
    )


def torch_error(x, w, bias, epilogue, want, low_rank=None):
    """What torch's own operators in the operands' dtype are wrong by."""
    if low_rank is not None:
        w = (w.float() + low_rank[2] * low_rank[1].float() @ low_rank[0].float()).to(w.dtype)
    z = SCALE * (x @ w.T) + bias.to(x.dtype)
    labels = torch.softmax(z / TEMPERATURE, dim=1) if epilogue == "softmax" else z
    return (labels.double() - want).abs().max().item() if labels.numel() else 0.0


def check(n, c, d, dtype, epilogue, rank=0, out_dtype=None, **how):
    x, w, bias, low_rank = head(n, c, d, dtype, rank)
    want = truth(x, w, bias, epilogue, low_rank)
    got = soft_labels_triton.launch(
        x,
        w,
        bias,
        SCALE,
        TEMPERATURE,
        out_dtype or dtype,
        epilogue == "softmax",
        low_rank,
        **how,
    )
    assert got.shape == (n, c)
    assert got.dtype == (out_dtype or dtype)
    error = (got.double() - want).abs().max().item()
    assert error <= 2 * torch_error(x, w, bias, epilogue, want, low_rank) + 1e-6
    return got


@pytest.mark.parametrize("n", [1, 7, 33])
@pytest.mark.parametrize(("c", "d"), [(10, 40), (130, 72), (257, 96), (1000, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("epilogue", ["softmax", "logits"])
def test_labels_equal_float64(n, c, d, dtype, epilogue):
    check(n, c, d, dtype, epilogue)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("c", "d"), [(21841, 40), (257, 1024)])
def test_many_classes_or_features_equal_float64(c, d, dtype):
    check(7, c, d, dtype, "softmax")


@pytest.mark.parametrize("rank", [1, 4, 16, 70])
@pytest.mark.parametrize("c", [10, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("epilogue", ["softmax", "logits"])
def test_low_rank_equals_the_merged_weight(rank, c, dtype, epilogue):
    check(7, c, 72, dtype, epilogue, rank)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
@pytest.mark.parametrize("c", [200, 300])
def test_every_architecture_s_tile(capability, c):
    check(40, c, 64, torch.float16, "softmax", capability=capability)


@pytest.mark.parametrize("tile", [(64, 128, 64, 4, 3), (128, 256, 64, 8, 3), (16, 16, 16, 4, 2)])
def test_any_tile_gives_the_same_labels(tile):
    check(33, 300, 40, torch.float16, "softmax", tile=config.LabelTile(*tile))


def test_float16_operands_never_round_a_logit():
    """The float32 accumulator beats float16 logits by an order of magnitude at CLIP's scale."""
    x, w, bias, _ = head(33, 1000, 96, torch.float16)
    want = truth(x, w, bias, "softmax")
    got = soft_labels_triton.launch(x, w, bias, SCALE, TEMPERATURE, torch.float32, True)
    ours = (got.double() - want).abs().max().item()
    assert ours * 10 < torch_error(x, w, bias, "softmax", want)
    # Two roundings, of E and of its product: 2 * 2**-11, and as many steps of the smallest numbers.
    half = soft_labels_triton.launch(x, w, bias, SCALE, TEMPERATURE, torch.float16, True)
    assert ((half.double() - want).abs() <= 1e-3 * want + 2**-23).all()


def test_rows_sum_to_one():
    got = check(33, 1000, 96, torch.float16, "softmax")
    assert (got.double().sum(dim=1) - 1).abs().max() < 2**-10


@pytest.mark.parametrize("c", [10, 300])
def test_equal_logits_and_extremes(c):
    x, w = torch.zeros(3, 32), torch.ones(c, 32)
    got = soft_labels_triton.launch(x, w, None, SCALE, 1.0, torch.float32, True)
    assert (got - 1 / c).abs().max() < 1e-8
    bias = torch.zeros(c)
    bias[3] = 1e30
    got = soft_labels_triton.launch(x, w, bias, SCALE, 1.0, torch.float32, True)
    assert got.equal(torch.eye(c)[3].expand(3, c))
    bias[3] = -torch.inf
    got = soft_labels_triton.launch(x, w, bias, SCALE, 1.0, torch.float32, True)
    assert (got[:, 3] == 0).all()
    assert (got[:, 4] - 1 / (c - 1)).abs().max() < 1e-8


def test_a_tile_of_classes_without_probability():
    c = 300
    bias = torch.zeros(c)
    bias[:128] = -torch.inf
    tile = config.LabelTile(64, 128, 32, 4, 2)
    x, w = torch.zeros(2, 32), torch.ones(c, 32)
    got = soft_labels_triton.launch(x, w, bias, SCALE, 1.0, torch.float32, True, tile=tile)
    assert (got[:, :128] == 0).all()
    assert (got[:, 128:] - 1 / 172).abs().max() < 1e-8


@pytest.mark.parametrize("c", [130, 257])
def test_adding_a_constant_to_every_logit_changes_nothing(c):
    x, w, bias, _ = head(5, c, 40, torch.float32)
    got, shifted = (
        soft_labels_triton.launch(x, w, b, SCALE, 1.0, torch.float32, True)
        for b in (bias, bias + 64)
    )
    assert (got - shifted).abs().max() < 1e-5


@pytest.mark.parametrize("c", [10, 257])
@pytest.mark.parametrize("epilogue", ["softmax", "logits"])
def test_nothing_beside_the_operands_is_read_or_left_unwritten(c, epilogue, monkeypatch):
    x, w, bias, low_rank = head(7, c, 40, torch.float32, rank=3)

    def padded(matrix, columns):
        wide = torch.full((matrix.shape[0], columns), torch.nan)
        wide[:, : matrix.shape[1]] = matrix
        return wide[:, : matrix.shape[1]]

    arguments = (bias, SCALE, TEMPERATURE, torch.float32, epilogue == "softmax")
    want = soft_labels_triton.launch(x, w, *arguments, low_rank)

    empty = torch.Tensor.new_empty

    def poisoned(tensor, shape, **arguments):
        return empty(tensor, shape, **arguments).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    spoiled = (padded(low_rank[0], 45), padded(low_rank[1], 5), low_rank[2])
    got = soft_labels_triton.launch(padded(x, 64), padded(w, 41), *arguments, spoiled)
    assert got.equal(want)
    assert not got.isnan().any()
    assert got.stride() == (config.padded_row(c, "cuda"), 1)


def test_strides_that_are_not_one_are_copied():
    x, w, bias, _ = head(7, 130, 40, torch.float32)
    turned = (x.T.contiguous().T, w.T.contiguous().T, bias.repeat_interleave(2)[::2])
    got = soft_labels_triton.launch(*turned, SCALE, 1.0, torch.float32, True)
    assert got.equal(soft_labels_triton.launch(x, w, bias, SCALE, 1.0, torch.float32, True))


def test_the_shapes_of_a_distilled_data_set():
    """CLIP RN50 (1024 features) on ten classes, and ViT-B/32 (512) on a hundred: one batch."""
    for c, d in ((10, 1024), (100, 512)):
        check(128, c, d, torch.float16, "softmax")


@pytest.mark.slow
def test_the_classes_of_imagenet_22k():
    got = check(33, 21841, 96, torch.float16, "softmax", out_dtype=torch.float32)
    assert np.abs(got.double().numpy().sum(axis=1) - 1).max() < 1e-5
