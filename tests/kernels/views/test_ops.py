from __future__ import annotations

import math

import pytest
import torch

from hellofmt_kernels import ViewColumn, ViewForm, view_pair, views
from hellofmt_kernels.views import reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STUDENT = ViewForm(MEAN, STD)
ENCODER = ViewForm(
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
    torch.float16,
    is_channels_last=True,
)


def noise(count, height, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=g, dtype=torch.uint8)


def compare(images, rows, size, torchvision, **arguments):
    """Our error against float64, beside torchvision's own."""
    truth = torchvision(images, rows, size, dtype=torch.float64, **arguments)
    theirs = torchvision(images, rows, size, dtype=torch.float32, **arguments)
    ours = views(images, rows, size, **arguments)
    assert ours.shape == truth.shape
    assert ours.dtype == torch.float32
    return (ours - truth).abs().max().item(), (theirs - truth).abs().max().item()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(16, 16, 16), (24, 40, 32), (32, 48, 12), (50, 37, 23)]
)
def test_views_equal_torchvision(
    height, width, size, antialias, make_random_rows, make_torchvision_views
):
    images = noise(5, height, width)
    rows = make_random_rows(24, 5, height, width, size)
    ours, theirs = compare(images, rows, size, make_torchvision_views, antialias=antialias)
    assert ours <= theirs + 2e-6
    assert ours < 2e-6


def test_views_equal_torchvision_after_normalising(make_random_rows, make_torchvision_views):
    images = noise(3, 20, 20)
    rows = make_random_rows(16, 3, 20, 20, 20)
    ours, theirs = compare(images, rows, 20, make_torchvision_views, mean=MEAN, std=STD)
    assert ours <= theirs + 2e-6 / min(STD)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shuffled_views_equal_torchvision(factor, make_random_rows, make_torchvision_views):
    images = noise(3, 24, 36)
    rows = make_random_rows(32, 3, 24, 36, 24, factor=factor)
    ours, theirs = compare(images, rows, 24, make_torchvision_views)
    assert ours <= theirs + 2e-6


def test_every_permutation_at_factor_two(make_plain_rows):
    images = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    images[0, :, :, 0] = torch.tensor([[0, 1], [2, 3]])
    rows = make_plain_rows(4, 2, 2)
    rows[:, ViewColumn.SHUFFLE] = 2
    rows[:, ViewColumn.PERMUTATION] = torch.arange(4)
    got = (views(images, rows, 2)[:, 0] * 255).round().to(torch.int64)
    # Number = column rank * 2 + row rank.
    want = [[[0, 1], [2, 3]], [[2, 3], [0, 1]], [[1, 0], [3, 2]], [[3, 2], [1, 0]]]
    assert got.tolist() == want


def test_an_identity_crop_is_bit_equal_to_the_pixels(make_plain_rows):
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    got = views(images, make_plain_rows(1, 16, 16), 16)
    assert got.equal(images.permute(0, 3, 1, 2) / 255)


def test_a_crop_of_one_pixel_is_constant(make_plain_rows):
    images = noise(1, 9, 9)
    rows = make_plain_rows(1, 1, 1)
    rows[0, [ViewColumn.TOP, ViewColumn.LEFT]] = torch.tensor([8, 3], dtype=torch.int32)
    got = views(images, rows, 5)
    assert got.equal((images[0, 8, 3] / 255)[None, :, None, None].expand(1, 3, 5, 5))


def test_nothing_outside_the_crop_is_read(make_random_rows):
    rows = make_random_rows(1, 1, 20, 20, 8)
    rows[0, :5] = torch.tensor([0, 5, 6, 7, 9], dtype=torch.int32)
    images = noise(1, 20, 20)
    other = 255 - images
    other[:, 5:12, 6:15] = images[:, 5:12, 6:15]
    for antialias in (True, False):
        for size in (3, 8, 40):
            rows[0, 12:16] = 0
            got = views(images, rows, size, antialias=antialias)
            assert got.equal(views(other, rows, size, antialias=antialias))


@pytest.mark.parametrize(
    "box", [(0, 0, 6, 6), (0, 0, 1, 6), (5, 0, 6, 6), (0, 0, 6, 1), (0, 5, 6, 6), (2, 1, 4, 6)]
)
def test_the_box_shows_the_partner(box, make_plain_rows):
    images = torch.zeros(2, 6, 6, 3, dtype=torch.uint8)
    images[1] = 255
    rows = make_plain_rows(1, 6, 6)
    rows[0, ViewColumn.PARTNER_IMAGE] = 1
    rows[0, 12:16] = torch.tensor(box, dtype=torch.int32)
    want = torch.zeros(6, 6)
    want[box[0] : box[2], box[1] : box[3]] = 1
    assert views(images, rows, 6).equal(want.expand(1, 3, 6, 6))


@pytest.mark.parametrize("box", [(3, 0, 3, 6), (4, 0, 2, 6), (0, 5, 6, 5), (0, 5, 6, 1)])
def test_an_empty_box_and_a_whole_weight_ignore_the_partner(box, make_plain_rows):
    images = noise(1, 6, 6)
    rows = make_plain_rows(1, 6, 6)
    rows[0, 6:12] = -7
    rows[0, 12:16] = torch.tensor(box, dtype=torch.int32)
    assert views(images, rows, 6).equal(images.permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize(("weight", "want"), [(0, 1.0), (16384, 0.75), (32768, 0.5), (65536, 0.0)])
def test_mixup_weights(weight, want, make_plain_rows):
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    images[1] = 255
    rows = make_plain_rows(1, 4, 4)
    rows[0, ViewColumn.PARTNER_IMAGE] = 1
    rows[0, ViewColumn.WEIGHT] = weight
    assert views(images, rows, 4).equal(torch.full((1, 3, 4, 4), want))


def test_a_row_does_not_depend_on_its_batch(make_random_rows):
    images = noise(6, 24, 24)
    rows = make_random_rows(40, 6, 24, 24, 32, factor=2)
    batch = views(images, rows, 32)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert views(images, rows[order], 32).equal(batch[order])
    for n in range(40):
        assert views(images, rows[n : n + 1], 32).equal(batch[n : n + 1])


def test_views_drawn_one_by_one_have_the_same_bits(monkeypatch, make_random_rows):
    images, rows = noise(4, 21, 18), make_random_rows(16, 4, 21, 18, 13, factor=3)
    rows[1, ViewColumn.Y0 : ViewColumn.WEIGHT] = torch.tensor([-3, 5, 40, 20], dtype=torch.int32)
    rows[5, ViewColumn.Y0 : ViewColumn.WEIGHT] = torch.tensor([13, 0, 14, 9], dtype=torch.int32)
    whole = view_pair(images, rows, 13, STUDENT, ENCODER)
    monkeypatch.setattr(reference, "_CHUNK_NUMBERS", 1)
    alone = view_pair(images, rows, 13, STUDENT, ENCODER)
    assert all(one.equal(other) for one, other in zip(alone, whole, strict=True))


def test_large_images_take_several_chunks(make_random_rows, make_torchvision_views):
    images = noise(2, 260, 200)
    rows = make_random_rows(5, 2, 260, 200, 224)
    ours, theirs = compare(images, rows, 224, make_torchvision_views)
    assert ours <= theirs + 2e-6
    assert ours < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_output_dtype_and_memory_format(dtype, channels_last, make_random_rows):
    images = noise(2, 12, 12)
    rows = make_random_rows(4, 2, 12, 12, 12)
    exact = views(images, rows, 12, mean=MEAN, std=STD)
    got = views(images, rows, 12, mean=MEAN, std=STD, out_dtype=dtype, channels_last=channels_last)
    assert got.dtype == dtype
    assert got.equal(exact.to(dtype))
    assert got.is_contiguous() is not channels_last
    assert got.is_contiguous(memory_format=torch.channels_last) is channels_last


def alone(images, rows, size, form, **options):
    return views(
        images,
        rows,
        size,
        mean=form.mean,
        std=form.std,
        out_dtype=form.dtype,
        channels_last=form.is_channels_last,
        **options,
    )


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("side", "size"), [(12, 16), (40, 20)])
def test_a_pair_is_the_same_views_in_two_forms(
    side, size, antialias, make_random_rows, make_torchvision_views
):
    images = noise(4, side, side)
    rows = make_random_rows(12, 4, side, side, size)
    pair = view_pair(images, rows, size, STUDENT, ENCODER, antialias=antialias)
    # Values reach 2.7, where half a step of float16 is 2**-10.
    for got, form, limit in zip(pair, (STUDENT, ENCODER), (2e-5, 1e-5 + 2**-10), strict=True):
        assert got.equal(alone(images, rows, size, form, antialias=antialias))
        assert got.dtype == form.dtype
        assert got.is_contiguous(memory_format=torch.channels_last) is form.is_channels_last
        truth = make_torchvision_views(
            images,
            rows,
            size,
            dtype=torch.float64,
            antialias=antialias,
            mean=form.mean,
            std=form.std,
        )
        assert (got.double() - truth).abs().max() < limit


def test_a_pair_is_computed_as_finely_as_its_finer_form(make_random_rows):
    images, rows = noise(2, 9, 9), make_random_rows(4, 2, 9, 9, 8)
    fine = ViewForm(MEAN, STD, torch.float64)
    first, second = view_pair(images, rows, 8, ViewForm(), fine)
    assert second.equal(alone(images, rows, 8, fine))
    assert first.equal(views(images, rows, 8, out_dtype=torch.float64).float())


def test_no_rows_give_no_views(make_plain_rows):
    assert views(noise(1, 4, 4), make_plain_rows(0, 4, 4), 8).shape == (0, 3, 8, 8)
    pair = view_pair(noise(1, 4, 4), make_plain_rows(0, 4, 4), 8, STUDENT, ENCODER)
    assert [tuple(one.shape) for one in pair] == [(0, 3, 8, 8)] * 2


@pytest.mark.parametrize("channels_last", [True, False])
def test_opcheck(channels_last, make_random_rows):
    images = noise(2, 6, 6)
    rows = make_random_rows(4, 2, 6, 6, 6)
    op = torch.ops.hellofmt_kernels.views.default
    args = (images, rows, 6, True, list(MEAN), list(STD), torch.float32, channels_last)
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_opcheck_of_a_pair(channels_last, dtype, make_random_rows):
    images = noise(2, 6, 6)
    rows = make_random_rows(4, 2, 6, 6, 6)
    op = torch.ops.hellofmt_kernels.view_pair.default
    first = (list(MEAN), list(STD), torch.float32, False)
    second = (list(ENCODER.mean), list(ENCODER.std), dtype, channels_last)
    torch.library.opcheck(op, (images, rows, 6, True, *first, *second))


REFUSED = {
    "images_dtype": (
        {"images": torch.zeros(1, 4, 4, 3)},
        TypeError,
        "`images`: dtype torch.float32; expected torch.uint8",
    ),
    "images_shape": (
        {"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)},
        ValueError,
        "`images`: shape (1, 3, 4, 4); expected (M, H, W, 3), not empty",
    ),
    "rows_dtype": (
        {"rows": torch.zeros(1, 20)},
        TypeError,
        "`rows`: dtype torch.float32; expected torch.int32",
    ),
    "rows_shape": (
        {"rows": torch.zeros(1, 19, dtype=torch.int32)},
        ValueError,
        "`rows`: shape (1, 19); expected (N, 20)",
    ),
    "rows_device": (
        {"rows": torch.zeros(1, 20, dtype=torch.int32, device="meta")},
        ValueError,
        "`rows`: on meta; expected cpu or cpu, where `images` is",
    ),
    "size": ({"size": 0}, ValueError, "`size`: 0 px; expected > 0"),
    "mean": (
        {"mean": (0.5, 0.5)},
        ValueError,
        "`mean`: (0.5, 0.5); expected 3 finite numbers",
    ),
    "std": (
        {"std": (math.inf, 1.0, 1.0)},
        ValueError,
        "`std`: (inf, 1.0, 1.0); expected 3 finite numbers",
    ),
    "std_zero": ({"std": (1.0, 0.0, 1.0)}, ValueError, "`std`: (1.0, 0.0, 1.0); expected 3 num"),
    "out_dtype": (
        {"out_dtype": torch.uint8},
        TypeError,
        "`out_dtype`: dtype torch.uint8; expected float16, bfloat16, float32 or float64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name, make_plain_rows):
    change, error, message = REFUSED[name]
    arguments = {"images": noise(1, 4, 4), "rows": make_plain_rows(1, 4, 4), "size": 4}
    with pytest.raises(error) as caught:
        views(**(arguments | change))
    assert str(caught.value).startswith(message)


REFUSED_FORMS = {
    "mean": (
        ViewForm((0.5, 0.5)),
        ValueError,
        "`{}.mean`: (0.5, 0.5); expected 3 finite numbers",
    ),
    "std": (
        ViewForm(std=(1.0, math.nan, 1.0)),
        ValueError,
        "`{}.std`: (1.0, nan, 1.0); expected 3 finite numbers",
    ),
    "std_zero": (
        ViewForm(std=(1.0, 0.0, 1.0)),
        ValueError,
        "`{}.std`: (1.0, 0.0, 1.0); expected 3 numbers > 0",
    ),
    "dtype": (
        ViewForm(dtype=torch.int32),
        TypeError,
        "`{}.dtype`: dtype torch.int32; expected float16, bfloat16, float32 or float64",
    ),
}


@pytest.mark.parametrize("at", ["first", "second"])
@pytest.mark.parametrize("name", REFUSED_FORMS)
def test_bad_forms_are_refused(name, at, make_plain_rows):
    form, error, message = REFUSED_FORMS[name]
    forms = {"first": ViewForm(), "second": ViewForm()} | {at: form}
    with pytest.raises(error) as caught:
        view_pair(noise(1, 4, 4), make_plain_rows(1, 4, 4), 4, **forms)
    assert str(caught.value) == message.format(at)


def test_a_pair_checks_images_and_rows(make_plain_rows):
    with pytest.raises(TypeError, match="`images`: dtype"):
        view_pair(torch.zeros(1, 4, 4, 3), make_plain_rows(1, 4, 4), 4, STUDENT, ENCODER)
    rows = make_plain_rows(1, 4, 4)
    rows[0, ViewColumn.FLIP] = 2
    with pytest.raises(ValueError, match="`rows`: view flip 2; expected 0 or 1"):
        view_pair(noise(1, 4, 4), rows, 4, STUDENT, ENCODER)
