"""The label kernels in Triton's interpreter, against float64 and beside torch in the same dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt_kernels import LabelOptions, config
from hellofmt_kernels.labels import reference
from hellofmt_kernels.tiles import LabelTile, table

fused = pytest.importorskip("hellofmt_kernels.labels.fused")

pytestmark = pytest.mark.interp

SCALE, TEMPERATURE = 100.0, 2.0
PLAIN = LabelOptions(SCALE)


def head(n, c, d, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1).to(dtype)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g), dim=1).to(dtype)
    return x, w, torch.randn(c, generator=g)


def truth(x, w, bias, is_softmax=True):
    options = LabelOptions(SCALE, TEMPERATURE, torch.float64, is_softmax)
    return reference.soft_labels(x.double(), w.double(), bias, options)


def torch_error(x, w, bias, want, is_softmax=True):
    """What torch's own operators in the operands' dtype are wrong by."""
    z = SCALE * (x @ w.T) + bias.to(x.dtype)
    labels = torch.softmax(z / TEMPERATURE, dim=1) if is_softmax else z
    return (labels.double() - want).abs().max().item()


def launch(x, w, bias, options, tile=None, capability=(9, 0)):
    """Launch with a tile of one's own, or with the table's."""
    tile = tile or table().labels(len(x), len(w), x.element_size(), capability)
    return fused.launch(x, w, bias, options, tile)


def check(n, c, d, dtype, is_softmax=True, out_dtype=None, **how):
    x, w, bias = head(n, c, d, dtype)
    want = truth(x, w, bias, is_softmax)
    options = LabelOptions(SCALE, TEMPERATURE, out_dtype or dtype, is_softmax)
    got = launch(x, w, bias, options, **how)
    assert got.shape == (n, c)
    assert got.dtype == (out_dtype or dtype)
    error = (got.double() - want).abs().max().item()
    assert error <= 2 * torch_error(x, w, bias, want, is_softmax) + 1e-6
    return got


# One class count per algorithm, neither a multiple of a tile; rows that leave a tile part empty,
# and more than one tile of rows; features that the step divides (64) and does not.
@pytest.mark.parametrize(
    ("n", "c", "d"),
    [
        (7, 10, 40),
        (65, 130, 64),
        (7, 257, 96),
        pytest.param(33, 1000, 96, marks=pytest.mark.slow),
        pytest.param(7, 21841, 40, marks=pytest.mark.slow),
        pytest.param(7, 257, 1024, marks=pytest.mark.slow),
        # CLIP RN50 on ten classes, and ViT-B/32 on a hundred: one batch.
        pytest.param(128, 10, 1024, marks=pytest.mark.slow),
        pytest.param(128, 100, 512, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("is_softmax", [True, False])
def test_labels_equal_float64(n, c, d, dtype, is_softmax):
    check(n, c, d, dtype, is_softmax)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
@pytest.mark.parametrize("c", [200, 300])
def test_every_architecture_s_tile(capability, c):
    check(40, c, 64, torch.float16, capability=capability)


@pytest.mark.parametrize(
    "tile",
    [
        (16, 16, 16, 4, 2),
        pytest.param((64, 128, 64, 4, 3), marks=pytest.mark.slow),
        pytest.param((128, 256, 64, 8, 3), marks=pytest.mark.slow),
    ],
)
def test_any_tile_gives_the_same_labels(tile):
    check(33, 300, 40, torch.float16, tile=LabelTile(*tile))


def test_float16_operands_never_round_a_logit():
    """The float32 accumulator beats float16 logits by an order of magnitude at CLIP's scale."""
    x, w, bias = head(33, 1000, 96, torch.float16)
    want = truth(x, w, bias)
    got = launch(x, w, bias, LabelOptions(SCALE, TEMPERATURE))
    ours = (got.double() - want).abs().max().item()
    assert ours * 10 < torch_error(x, w, bias, want)
    # Two roundings, of E and of its product: 2 * 2**-11, and as many steps of the smallest numbers.
    half = launch(x, w, bias, LabelOptions(SCALE, TEMPERATURE, torch.float16))
    assert ((half.double() - want).abs() <= 1e-3 * want + 2**-23).all()
    assert (half.double().sum(dim=1) - 1).abs().max() < 2**-10


@pytest.mark.parametrize("c", [10, 300])
def test_equal_logits_and_extremes(c):
    x, w = torch.zeros(3, 32), torch.ones(c, 32)
    got = launch(x, w, None, PLAIN)
    assert (got - 1 / c).abs().max() < 1e-8
    bias = torch.zeros(c)
    bias[3] = 1e30
    got = launch(x, w, bias, PLAIN)
    assert got.equal(torch.eye(c)[3].expand(3, c))
    bias[3] = -torch.inf
    got = launch(x, w, bias, PLAIN)
    assert (got[:, 3] == 0).all()
    assert (got[:, 4] - 1 / (c - 1)).abs().max() < 1e-8


def test_a_tile_of_classes_without_probability():
    c = 300
    bias = torch.zeros(c)
    bias[:128] = -torch.inf
    x, w = torch.zeros(2, 32), torch.ones(c, 32)
    got = launch(x, w, bias, PLAIN, LabelTile(64, 128, 32, 4, 2))
    assert (got[:, :128] == 0).all()
    assert (got[:, 128:] - 1 / 172).abs().max() < 1e-8


@pytest.mark.parametrize("c", [130, 257])
def test_adding_a_constant_to_every_logit_changes_nothing(c):
    x, w, bias = head(5, c, 40, torch.float32)
    got, shifted = (launch(x, w, b, PLAIN) for b in (bias, bias + 64))
    assert (got - shifted).abs().max() < 1e-5


@pytest.mark.parametrize(("c", "is_softmax"), [(10, True), (257, True), (257, False)])
def test_nothing_beside_the_operands_is_read_or_left_unwritten(c, is_softmax, monkeypatch):
    x, w, bias = head(7, c, 40, torch.float32)

    def padded(matrix, columns):
        wide = torch.full((matrix.shape[0], columns), torch.nan)
        wide[:, : matrix.shape[1]] = matrix
        return wide[:, : matrix.shape[1]]

    options = LabelOptions(SCALE, TEMPERATURE, is_softmax=is_softmax)
    want = launch(x, w, bias, options)

    empty = torch.Tensor.new_empty

    def poisoned(tensor, shape, **arguments):
        return empty(tensor, shape, **arguments).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    got = launch(padded(x, 64), padded(w, 41), bias, options)
    assert got.equal(want)
    assert not got.isnan().any()
    assert got.stride() == (config.padded_row(c, "cuda"), 1)


def test_strides_that_are_not_one_are_copied():
    x, w, bias = head(7, 130, 40, torch.float32)
    turned = (x.T.contiguous().T, w.T.contiguous().T, bias.repeat_interleave(2)[::2])
    got = launch(*turned, PLAIN)
    assert got.equal(launch(x, w, bias, PLAIN))


@pytest.mark.slow
def test_the_classes_of_imagenet_22k():
    got = check(33, 21841, 96, torch.float16, out_dtype=torch.float32)
    assert np.abs(got.double().numpy().sum(axis=1) - 1).max() < 1e-5
