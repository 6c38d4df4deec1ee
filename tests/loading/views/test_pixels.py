from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hellofmt.loading.views import buffers, resample
from hellofmt.loading.views.pixels import render
from hellofmt.loading.views.table import plain_table, view_table
from hellofmt_kernels import ViewColumn as Col
from hellofmt_kernels import views as fused_views

BOX = slice(12, 16)


def table_of(views, *, heights, widths):
    rows = np.arange(len(heights))
    return view_table(
        views, seed=0, epochs=0, indices=rows, heights=heights, widths=widths, count=rows.size
    )


def weights(n, size, antialias):
    """(S, n) float64 of bilinear resizing from n to S, from the definition of the triangle."""
    scale = n / size
    support = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(size) + 0.5) * scale - 0.5
    if antialias:
        w = np.maximum(0.0, 1.0 - np.abs(np.arange(n)[None, :] - centres[:, None]) / support)
        return w / w.sum(axis=1, keepdims=True)
    w = np.zeros((size, n))
    for i, c in enumerate(np.maximum(centres, 0.0)):
        low = min(int(c), n - 1)
        w[i, low] += 1.0 - (c - low)
        w[i, min(low + 1, n - 1)] += c - low
    return w


def view_in_float64(image, crop, size, antialias, shuffle=1, number=0):
    if shuffle > 1:
        orders = list(itertools.permutations(range(shuffle)))
        c, r = divmod(number, len(orders))
        bands = np.split(image, shuffle, axis=1)
        image = np.concatenate([bands[k] for k in orders[c]], axis=1)
        bands = np.split(image, shuffle, axis=0)
        image = np.concatenate([bands[k] for k in orders[r]], axis=0)
    top, left, h, w, flip = crop
    part = image[top : top + h, left : left + w].astype(np.float64) / 255
    lines = np.tensordot(weights(h, size, antialias), part, axes=1)
    out = np.einsum("jw,iwc->cij", weights(w, size, antialias), lines)
    return out[:, :, ::-1] if flip else out


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
@pytest.mark.parametrize("shapes", ["equal", "unequal"])
def test_render_agrees_with_float64(views_of, antialias, mix, shapes):
    generator = np.random.default_rng(5)
    sides = (
        np.full((12, 2), 24) if shapes == "equal" else 6 * generator.integers(1, 9, size=(12, 2))
    )
    images = [generator.integers(0, 256, (h, w, 3), np.uint8) for h, w in sides]
    views = views_of(antialias=antialias, mix=mix, shuffle=2 if mix == "mixup" else 1)
    table = table_of(views, heights=sides[:, 0], widths=sides[:, 1])
    batch = render(images, table, views)
    assert batch.dtype == torch.float32
    assert batch.shape == (12, 3, 16, 16)
    for row, got in zip(table, batch.numpy(), strict=True):
        rest = (16, antialias, row[Col.SHUFFLE], row[Col.PERMUTATION])
        view = view_in_float64(images[row[0]], row[1:6], *rest)
        other = view_in_float64(images[row[6]], row[7:12], *rest)
        share = row[Col.WEIGHT] / 65536
        view = share * view + (1 - share) * other
        y0, x0, y1, x1 = row[BOX]
        view[:, y0:y1, x0:x1] = other[:, y0:y1, x0:x1]
        assert np.abs(got - view).max() < 5e-7


def test_render_of_uneven_cells_keeps_the_remaining_lines_in_place(views_of):
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    table = plain_table(np.array([0]), [5], [7])
    table[0, Col.SHUFFLE], table[0, Col.PERMUTATION] = 2, 3
    views = views_of(size=5, interpolation="nearest")
    got = render([image], table, views)
    moved = image[[2, 3, 0, 1, 4]][:, [3, 4, 5, 0, 1, 2, 6]]
    table[0, Col.SHUFFLE] = 1
    assert torch.equal(got, render([moved], table, views))


def test_a_view_has_the_same_bits_in_every_batch_and_under_any_number_of_threads(views_of):
    views = views_of(mix="cutmix", size=7, shuffle=2)
    images = np.random.default_rng(3).integers(0, 256, (60, 5, 5, 3), np.uint8)
    table = table_of(views, heights=np.full(60, 5), widths=np.full(60, 5))
    whole = render(images, table, views)
    threads = torch.get_num_threads()
    try:
        for step, count in ((1, 1), (7, 2), (60, 3)):
            torch.set_num_threads(count)
            parts = [render(images, table[i : i + step], views) for i in range(0, 60, step)]
            assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_an_image_drawn_in_bands_of_columns_has_the_same_bits(views_of, interpolation, monkeypatch):
    views = views_of(mix="mixup", size=40, shuffle=3, interpolation=interpolation)
    image = np.random.default_rng(3).integers(0, 256, (150, 331, 3), np.uint8)
    table = table_of(views, heights=np.full(3, 150), widths=np.full(3, 331))
    images, sums, drawn = [image] * 3, [], resample._sums
    whole = render(images, table, views)
    monkeypatch.setattr(resample, "_BAND", 3 * 150 * 48)
    monkeypatch.setattr(
        resample, "_sums", lambda lines, *a: sums.append(lines.shape) or drawn(lines, *a)
    )
    assert torch.equal(render(images, table, views), whole)
    # Six parts would be resized in twice as many calls.
    assert len(sums) > 2 * 6


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_the_fused_operator_computes_the_same_views(views_of, mix):
    views = views_of(mix=mix, shuffle=2)
    images = np.random.default_rng(3).integers(0, 256, (40, 24, 24, 3), np.uint8)
    table = table_of(views, heights=np.full(40, 24), widths=np.full(40, 24))
    fused = fused_views(torch.from_numpy(images), torch.from_numpy(table), views.size)
    assert (render(images, table, views) - fused).abs().max() < 1e-5


def test_whole_images_of_the_views_size_come_out_exactly(views_of):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    table = plain_table(np.array([2, 0]), np.full(3, 16), np.full(3, 16))
    for interpolation in ("bilinear", "nearest"):
        got = render(images, table, views_of(interpolation=interpolation))
        expected = torch.from_numpy(images[[2, 0]]).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(got, expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("side", [5, 16, 43])
def test_bicubic_is_that_of_torch(views_of, antialias, side):
    image = np.random.default_rng(side).integers(0, 256, (side, side + 3, 3), np.uint8)
    table = plain_table(np.array([0]), [side], [side + 3])
    got = render([image], table, views_of(interpolation="bicubic", antialias=antialias))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None] / 255.0, (16, 16), mode="bicubic",
        antialias=antialias,
    )  # fmt: skip
    # torch rounds weights to float32 before it divides them by their sum.
    torch.testing.assert_close(got, expected.clamp(0, 1), rtol=0, atol=5e-6)


def test_bicubic_stays_within_zero_and_one(views_of):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    table = plain_table(np.array([0]), [8], [8])
    got = render([image], table, views_of(interpolation="bicubic"))
    assert got.min() == 0.0
    assert got.max() == 1.0
    assert not torch.equal(got, render([image], table, views_of()))


def test_a_batch_that_is_kept_is_never_drawn_over(views_of, monkeypatch):
    # Another test may have left a batch alive, in an error's traceback for instance.
    monkeypatch.setattr(buffers, "_buffers", buffers._Buffers())
    views = views_of(size=5)
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3), np.uint8)
    table = table_of(views, heights=np.full(6, 9), widths=np.full(6, 9))
    first = render(images, table, views)
    kept, expected = first[2], first.clone()
    second = render(images, table[::-1], views)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected.flip(0))
    # One view of a batch keeps its memory; without it the memory is used again.
    del first, second
    third = render(images, table[::-1], views)
    assert torch.equal(kept, expected[2])
    where = {third.data_ptr()}
    del third, kept
    for _ in range(3):
        again = render(images, table, views)
        assert torch.equal(again, expected)
        where.add(again.data_ptr())
        del again
    assert len(where) == 2


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_views_of_many_sizes_do_not_depend_on_their_company(views_of, factor):
    generator = np.random.default_rng(factor)
    sides = generator.integers(1, 90, (70, 2))
    images = [generator.integers(0, 256, (h, w, 3), np.uint8) for h, w in sides]
    views = views_of(mix="cutmix", size=40, shuffle=factor)
    table = table_of(views, heights=sides[:, 0], widths=sides[:, 1])
    whole = render(images, table, views)
    for step in (1, 13):
        parts = [render(images, table[i : i + step], views) for i in range(0, 70, step)]
        assert torch.equal(torch.cat(parts), whole)
    for row, got in zip(table, whole.numpy(), strict=True):
        sources = []
        for first in (0, 6):
            image = images[row[first]]
            for axis, number in ((1, 0), (0, 1)):
                order = list(itertools.permutations(range(factor)))
                rank = divmod(int(row[Col.PERMUTATION]), len(order))[number]
                cell = image.shape[axis] // factor
                lines = [i * cell + k for i in order[rank] for k in range(cell)]
                lines += range(factor * cell, image.shape[axis])
                image = image.take(lines, axis)
            sources.append(view_in_float64(image, row[first + 1 : first + 6], 40, True))
        view, other = sources
        y0, x0, y1, x1 = row[BOX]
        view = np.ascontiguousarray(view)
        view[:, y0:y1, x0:x1] = other[:, y0:y1, x0:x1]
        assert np.abs(got - view).max() < 5e-7


def test_render_leaves_read_only_images_alone(views_of):
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), np.uint8)
    before = images.copy()
    images.flags.writeable = False
    table = table_of(views_of(mix="mixup"), heights=np.full(4, 9), widths=np.full(4, 9))
    render(images, table, views_of())
    render(dict(enumerate(images)), table, views_of())
    assert np.array_equal(images, before)
