"""The view kernel in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt_kernels import WEIGHT_ONE, ViewColumn, config, reference

views_triton = pytest.importorskip("hellofmt_kernels.views_triton")

pytestmark = pytest.mark.interp

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNIT = ((0.0,) * 3, (1.0,) * 3)


def noise(count, height, width):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), generator=g, dtype=torch.uint8)


def check(images, rows, size, antialias=True, affine=UNIT, channels_last=False, tile=None):
    want = reference.views(images, rows, size, antialias, *affine, torch.float64)
    got = views_triton.launch(
        images, rows, size, antialias, *affine, torch.float32, channels_last, tile
    )
    assert got.shape == want.shape
    assert (got - want).abs().max() < 1.5e-6 / min(affine[1])
    return got


@pytest.mark.parametrize(
    ("height", "width", "size", "antialias"),
    [
        (16, 16, 16, True),
        (12, 14, 18, True),
        (12, 14, 18, False),
        (32, 24, 12, True),
        (32, 24, 12, False),
    ],
)
def test_views_equal_float64(height, width, size, antialias, make_random_rows):
    rows = make_random_rows(4, 3, height, width, size)
    check(noise(3, height, width), rows, size, antialias)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_and_affine(channels_last, make_random_rows):
    rows = make_random_rows(4, 2, 18, 18, 20)
    got = check(noise(2, 18, 18), rows, 20, True, (MEAN, STD), channels_last)
    assert got.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert got.is_contiguous() is not channels_last


@pytest.mark.parametrize("factor", [3, 8])
def test_shuffled_views(factor, make_random_rows):
    images = noise(2, 24, 48)
    check(images, make_random_rows(8, 2, 24, 48, 24, factor=factor), 24)


def test_every_permutation_at_factor_two(make_plain_rows):
    rows = make_plain_rows(4, 4, 6)
    rows[:, ViewColumn.SHUFFLE] = 2
    rows[:, ViewColumn.PERMUTATION] = torch.arange(4)
    check(noise(1, 4, 6), rows, 6)


def test_an_identity_crop_is_bit_equal_to_the_pixels(make_plain_rows):
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    got = check(images, make_plain_rows(1, 16, 16), 16)
    assert got.equal(images.permute(0, 3, 1, 2) / 255)


def test_a_crop_of_one_pixel_is_constant(make_plain_rows):
    images = noise(1, 9, 9)
    rows = make_plain_rows(1, 1, 1)
    rows[0, [ViewColumn.TOP, ViewColumn.LEFT]] = torch.tensor([8, 3], dtype=torch.int32)
    got = check(images, rows, 5)
    assert got.equal((images[0, 8, 3] / 255)[None, :, None, None].expand(1, 3, 5, 5))


@pytest.mark.parametrize("rows_of_box", [(0, 16), (16, 20), (15, 17), (12, 10)])
@pytest.mark.parametrize("columns_of_box", [(0, 16), (16, 20), (15, 17)])
def test_boxes_on_the_edges_of_tiles(rows_of_box, columns_of_box, make_plain_rows):
    """A box that covers, touches or misses a tile decides which of the two pictures it reads."""
    rows = make_plain_rows(2, 6, 6)
    rows[:, ViewColumn.PARTNER_IMAGE] = 1
    rows[:, ViewColumn.Y0 : ViewColumn.X1 + 1 : 2] = torch.tensor(rows_of_box, dtype=torch.int32)
    rows[:, ViewColumn.X0 : ViewColumn.X1 + 1 : 2] = torch.tensor(columns_of_box, dtype=torch.int32)
    rows[1, ViewColumn.WEIGHT] = 1000
    check(noise(2, 6, 6), rows, 20, tile=config.ViewTile(16, 16, 4))


@pytest.mark.parametrize("weight", [0, 1, 32768, WEIGHT_ONE - 1, WEIGHT_ONE])
def test_mixup_weights(weight, make_plain_rows):
    images = noise(2, 8, 8)
    rows = make_plain_rows(1, 8, 8)
    rows[0, ViewColumn.PARTNER_IMAGE] = 1
    rows[0, ViewColumn.WEIGHT] = weight
    got = check(images, rows, 8)
    if weight in (0, WEIGHT_ONE):
        assert got[0].equal(images[int(weight == 0)].permute(2, 0, 1) / 255)


def test_an_unmixed_row_ignores_the_partner(make_plain_rows):
    rows = make_plain_rows(1, 6, 6)
    rows[0, 6:12] = 1 << 30
    check(noise(1, 6, 6), rows, 6)


def test_every_output_is_written(make_random_rows, monkeypatch):
    rows = make_random_rows(2, 2, 10, 10, 21)
    empty = torch.empty

    def poisoned(*shape, **arguments):
        return empty(*shape, **arguments).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", poisoned)
    got = views_triton.launch(
        noise(2, 10, 10), rows, 21, True, *UNIT, torch.float32, False, config.ViewTile(16, 16, 4)
    )
    assert not got.isnan().any()


def test_division_by_255_is_correctly_rounded():
    """The kernel's reciprocal with one exact remainder, as a GPU computes it."""
    some = np.random.default_rng(0).uniform(0, 255, 200_000)
    value = np.concatenate([np.arange(256), some]).astype(np.float32)
    inverse = np.float32(1 / 255)
    assert float(inverse) == 0.003921568859368563
    quotient = value * inverse
    exact = value.astype(np.float64) - 255 * quotient.astype(np.float64)
    remainder = exact.astype(np.float32)
    quotient = (remainder.astype(np.float64) * inverse + quotient).astype(np.float32)
    assert np.array_equal(quotient, value / np.float32(255))
