"""The view kernel in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hellofmt_kernels import WEIGHT_ONE, ViewColumn, ViewForm
from hellofmt_kernels.tiles import ViewTile
from hellofmt_kernels.views import reference

fused = pytest.importorskip("hellofmt_kernels.views.fused")

pytestmark = pytest.mark.interp

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OTHER_MEAN, OTHER_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STUDENT = ViewForm(MEAN, STD)


def noise(count, height, width):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), generator=g, dtype=torch.uint8)


def rounding(form):
    """Half a step of a form's dtype at its largest value."""
    largest = max(max(m, 1 - m) / s for m, s in zip(form.mean, form.std, strict=True))
    return {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 0.0}[form.dtype] * largest


def check_forms(images, rows, size, forms, antialias=True, tile=None):
    """Each output against the definition in float64."""
    exact = [dataclasses.replace(form, dtype=torch.float64) for form in forms]
    wanted = reference.views(images, rows, size, antialias, exact)
    found = fused.launch(images, rows, size, antialias, forms, tile)
    assert len(found) == len(forms)
    for got, want, form in zip(found, wanted, forms, strict=True):
        assert got.shape == want.shape
        assert got.dtype == form.dtype
        assert (got.double() - want).abs().max() < 1.5e-6 / min(form.std) + rounding(form)
        assert got.is_contiguous(memory_format=torch.channels_last) is form.is_channels_last
        assert got.is_contiguous() is not form.is_channels_last
    return found


def check(images, rows, size, antialias=True, form=ViewForm(), tile=None):  # noqa: B008
    (got,) = check_forms(images, rows, size, [form], antialias, tile)
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
    check(noise(2, 18, 18), rows, 20, form=ViewForm(MEAN, STD, is_channels_last=channels_last))


@pytest.mark.parametrize("first_is_last", [True, False])
@pytest.mark.parametrize("second_is_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_pair_has_its_own_affines_dtypes_and_formats(
    first_is_last, second_is_last, dtype, make_random_rows
):
    """Plain, CutMix, MixUp and both, in tiles that the view does not fill."""
    rows = make_random_rows(4, 2, 18, 18, 20)
    forms = [
        ViewForm(MEAN, STD, is_channels_last=first_is_last),
        ViewForm(OTHER_MEAN, OTHER_STD, dtype, second_is_last),
    ]
    check_forms(noise(2, 18, 18), rows, 20, forms)


def test_a_pair_has_the_bits_of_each_form_alone(make_random_rows):
    images, rows = noise(2, 10, 10), make_random_rows(4, 2, 10, 10, 12)
    forms = [STUDENT, ViewForm(OTHER_MEAN, OTHER_STD, torch.float16, is_channels_last=True)]
    pair = fused.launch(images, rows, 12, True, forms)
    for got, form in zip(pair, forms, strict=True):
        assert got.equal(fused.launch(images, rows, 12, True, [form])[0])


def test_a_pair_of_shrunk_views(make_random_rows):
    forms = [STUDENT, ViewForm(dtype=torch.float16)]
    check_forms(noise(3, 32, 24), make_random_rows(4, 3, 32, 24, 12), 12, forms)


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
    check(noise(2, 6, 6), rows, 20, tile=ViewTile(16, 16, 4))


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


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_output_is_written_and_nothing_beside_it(
    count, channels_last, make_random_rows, monkeypatch
):
    rows = make_random_rows(2, 2, 10, 10, 21)
    held = []

    def poisoned(form, n, size, device):
        memory = torch.full((n * 3 * size * size + 64,), torch.nan, dtype=form.dtype)
        held.append(memory)
        out = memory[32:-32].view(n, size, size, 3) if channels_last else memory[32:-32]
        return out.permute(0, 3, 1, 2) if channels_last else out.view(n, 3, size, size)

    monkeypatch.setattr(ViewForm, "empty", poisoned)
    forms = [ViewForm(MEAN, STD, dtype, channels_last) for dtype in (torch.float32, torch.float16)]
    found = fused.launch(noise(2, 10, 10), rows, 21, True, forms[:count], ViewTile(16, 16, 4))
    assert len(found) == len(held) == count
    for memory in held:
        assert not memory[32:-32].isnan().any()
        assert memory[:32].isnan().all()
        assert memory[-32:].isnan().all()


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
