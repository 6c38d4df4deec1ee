from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from hellofmt.errors import UserInputError
from hellofmt.loading.views.pixels import render
from hellofmt.loading.views.table import mixed_labels, partners, plain_table, view_table
from hellofmt.rng import Stream, words
from hellofmt_kernels import ViewColumn as Col

ROWS = 500
HEIGHTS = np.random.default_rng(1).integers(1, 60, ROWS)
WIDTHS = np.random.default_rng(2).integers(1, 60, ROWS)
OWN, OTHER, BOX = slice(0, 6), slice(6, 12), slice(12, 16)


def table_of(views, *, seed=0, epochs=0, indices=None, heights=HEIGHTS, widths=WIDTHS):
    count = len(heights)
    rows = np.arange(count) if indices is None else np.asarray(indices)
    return view_table(
        views,
        seed=seed,
        epochs=epochs,
        indices=rows,
        heights=heights,
        widths=widths,
        count=count,
    )


# The integers of the view table are promised bit-identical on every machine and in every release:
# a change of a digest below is a break of the format's promise.
GOLDEN = {
    "plain": ({}, "6d054edcc958ef9864c4e8352b984a7376a938afc054bfe61df1a74147430f2e"),
    "cutmix": (
        {"mix": "cutmix", "mix_probability": "0.5", "shuffle": 2, "size": 224},
        "23c81877f41f5433e53b793705c414f8761a5e7949be28772b19648cfa9f9534",
    ),
    "mixup": (
        {"mix": "mixup", "mix_alpha": "0.8", "crop_scale": ["0.5", "1.0"]},
        "aab371bc59766b0d94098b11c5a1d41229c383eef2eed5f94021a65c9ae81fa9",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_first_10000_rows_of_the_table_are_the_golden_ones(views_of, name):
    changes, digest = GOLDEN[name]
    rows = np.arange(2500)
    sides = 32 + rows % 200
    table = np.concatenate(
        [
            table_of(views_of(**changes), seed=7, epochs=epoch, heights=sides, widths=sides[::-1])
            for epoch in range(4)
        ]
    )
    assert table.shape == (10_000, 20)
    assert hashlib.sha256(table.astype("<i4").tobytes()).hexdigest() == digest


def scalar_row(views, seed, epoch, index, heights, widths):
    """The same row from Python numbers, one word at a time, as the module's docstring says."""

    def word(stream, j):
        return int(words(seed, epoch, stream, index, 1, j)[0])

    def unit(w):
        return (w >> 11) * 2.0**-53

    def crop(row):
        def w(j):
            return int(words(seed, epoch, Stream.VIEWS, row, 1, j)[0])

        height, width = int(heights[row]), int(widths[row])
        low, high = (float(v) for v in views.crop_scale)
        r0, r1 = (float(v) for v in views.crop_ratio)
        flip = int(unit(w(0)) < float(views.flip))
        for t in range(10):
            area = height * width * (low + unit(w(4 + 2 * t)) * (high - low))
            log_ratio = math.log(r0) + unit(w(5 + 2 * t)) * (math.log(r1) - math.log(r0))
            ratio = math.exp(log_ratio)
            cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < cw <= width and 0 < ch <= height:
                top = (w(1) * (height - ch + 1)) >> 64
                left = (w(2) * (width - cw + 1)) >> 64
                return [row, top, left, ch, cw, flip]
        cw, ch = width, height
        if width / height < r0:
            ch = max(round(width / r0), 1)
        elif width / height > r1:
            cw = max(round(height * r1), 1)
        return [row, (height - ch) // 2, (width - cw) // 2, ch, cw, flip]

    own = crop(index)
    other, box, weight = own, [0, 0, 0, 0], 65536
    mix = views.mix != "none" and unit(word(Stream.MIXING, 0)) < float(views.mix_probability)
    partner = (word(Stream.MIXING, 1) * len(heights)) >> 64
    if mix and partner != index:
        share = unit(word(Stream.MIXING, 2))
        if views.mix == "cutmix":
            size = views.size
            half = int(0.5 * math.sqrt(1.0 - share) * size)
            y, x = ((word(Stream.MIXING, j) * size) >> 64 for j in (3, 4))
            if half:
                other = crop(partner)
                y0, x0 = max(y - half, 0), max(x - half, 0)
                box = [y0, x0, min(y + half, size), min(x + half, size)]
        else:
            weight = round(share * 65536)
            if weight < 65536:
                other = crop(partner)
    cells = views.shuffle
    number = 0
    if cells > 1:
        w = int(words(seed, epoch, Stream.VIEWS, index, 1, 3)[0])
        number = (w * math.factorial(cells) ** 2) >> 64
    return [*own, *other, *box, weight, cells, number, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mix": "cutmix", "mix_probability": "0.7"},
        {"mix": "mixup", "shuffle": 3, "size": 5},
        {"crop_ratio": ["3.0", "4.0"], "crop_scale": ["0.9", "1.0"], "flip": "1.0"},
        {"crop_ratio": ["0.1", "0.2"], "crop_scale": ["0.9", "1.0"], "flip": "0.0"},
    ],
)
def test_each_row_is_what_the_documented_words_give(views_of, changes):
    views = views_of(**changes)
    table = table_of(views, seed=2**63 + 5, epochs=3)
    some = range(0, ROWS, 4)
    expected = [scalar_row(views, 2**63 + 5, 3, i, HEIGHTS, WIDTHS) for i in some]
    assert table.dtype == np.int32
    assert np.array_equal(table[some], expected)


def test_beta_other_than_uniform_reaches_the_table(views_of):
    table = table_of(views_of(mix="mixup", mix_alpha="0.8"))
    uniform = table_of(views_of(mix="mixup"))
    mixed = table[:, Col.PARTNER_IMAGE] != table[:, Col.IMAGE]
    weight, even = (t[mixed, Col.WEIGHT] / 65536 for t in (table, uniform))
    # Beta(0.8, 0.8) has variance 1 / (4 * 2.6), the uniform law 1 / 12.
    assert abs(weight.var() - 1 / 10.4) < 0.01
    assert abs(even.var() - 1 / 12) < 0.01


def test_a_row_does_not_depend_on_its_batch(views_of):
    views = views_of(mix="cutmix", mix_probability="0.5", shuffle=2)
    whole = table_of(views, seed=9, epochs=4)
    picked = np.array([17, 3, 3, 499, 250])
    assert np.array_equal(table_of(views, seed=9, epochs=4, indices=picked), whole[picked])
    for i in picked:
        assert np.array_equal(table_of(views, seed=9, epochs=4, indices=[i]), whole[i : i + 1])
    # Rows of several epochs in one batch.
    epochs = np.array([4, 0, 4, 1, 0])
    mixed = table_of(views, seed=9, epochs=epochs, indices=picked)
    for k, (epoch, i) in enumerate(zip(epochs, picked, strict=True)):
        assert np.array_equal(mixed[k], table_of(views, seed=9, epochs=epoch, indices=[i])[0])
    assert table_of(views, indices=[]).shape == (0, 20)


def test_seed_and_epoch_change_the_views(views_of):
    views = views_of()
    first = table_of(views)
    assert (first != table_of(views, epochs=1)).any(axis=1).mean() > 0.9
    assert (first != table_of(views, seed=1)).any(axis=1).mean() > 0.9


def test_the_partner_shows_the_crop_and_flip_it_has_itself(views_of):
    views = views_of(mix="cutmix")
    table = table_of(views, epochs=5)
    own = table[:, OWN]
    mixed = table[:, Col.Y0] < table[:, Col.Y1]
    assert mixed.mean() > 0.8
    assert np.array_equal(table[mixed, OTHER], own[table[mixed, Col.PARTNER_IMAGE]])
    assert np.array_equal(table[~mixed, OTHER], own[~mixed])
    assert np.array_equal(
        partners(views, seed=0, epochs=5, indices=np.arange(ROWS), count=ROWS)[mixed],
        table[mixed, Col.PARTNER_IMAGE],
    )


def test_only_the_sizes_of_rows_in_use_are_read(views_of):
    views = views_of(mix="cutmix", mix_probability="0.5")
    rows = np.array([4, 8, 15])
    known = np.unique(
        np.concatenate([rows, partners(views, seed=0, epochs=2, indices=rows, count=ROWS)])
    )
    heights, widths = np.zeros_like(HEIGHTS), np.zeros_like(WIDTHS)
    heights[known], widths[known] = HEIGHTS[known], WIDTHS[known]
    partial = table_of(views, epochs=2, indices=rows, heights=heights, widths=widths)
    assert np.array_equal(partial, table_of(views, epochs=2)[rows])
    heights[rows[0]] = 0
    with pytest.raises(ValueError, match="expected at least 1 px for every row in use"):
        table_of(views, epochs=2, indices=rows, heights=heights, widths=widths)


def test_crops_follow_torchvisions_distribution(views_of):
    height, width, n = 40, 60, 4000
    ours = table_of(
        views_of(), heights=np.full(n, height), widths=np.full(n, width), epochs=11
    ).astype(np.float64)
    torch.manual_seed(0)
    crop = tv.RandomResizedCrop(16)
    image = torch.zeros(3, height, width)
    theirs = [crop.make_params([image]) for _ in range(n)]
    for column, key in ((Col.TOP, "top"), (Col.LEFT, "left"), (Col.HEIGHT, "height")):
        a, b = np.sort(ours[:, column]), np.sort([p[key] for p in theirs])
        # Kolmogorov-Smirnov at n = 4000 twice: 0.043 is passed with p < 0.1 %.
        grid = np.arange(61)
        distance = np.abs(
            np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")
        ).max()
        assert distance / n < 0.043
    assert abs(ours[:, Col.FLIP].mean() - 0.5) < 0.04


def test_boxes_follow_torchvisions_distribution(views_of):
    n, size = 4000, 16
    table = table_of(views_of(mix="cutmix"), heights=np.full(n, 8), widths=np.full(n, 8))
    y0, x0, y1, x1 = table[:, BOX].T.astype(np.int64)
    area = (y1 - y0) * (x1 - x0)
    torch.manual_seed(0)
    cutmix = tv.CutMix(num_classes=2)
    boxes = [cutmix.make_params([torch.zeros(1, 3, size, size)])["box"] for _ in range(n)]
    theirs = np.array([(b[2] - b[0]) * (b[3] - b[1]) for b in boxes])
    grid = np.arange(size * size + 1)
    a, b = np.sort(area), np.sort(theirs)
    distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max()
    assert distance / n < 0.043
    assert min(y0.min(), x0.min()) >= 0
    assert max(y1.max(), x1.max()) <= size
    # Drawn from the whole data set, each row about equally often.
    assert np.bincount(table[:, Col.PARTNER_IMAGE], minlength=n).max() < 12


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    ratio=st.sampled_from([("0.75", "1.3333"), ("0.001", "0.002"), ("900.0", "1000.0")]),
    scale=st.sampled_from([("0.000001", "0.00001"), ("0.08", "1.0"), ("1.0", "1.0")]),
    epoch=st.integers(0, 2**32 - 1),
)
def test_crops_lie_inside_the_image(views_of, height, width, ratio, scale, epoch):
    views = views_of(crop_ratio=list(ratio), crop_scale=list(scale))
    sides = np.full(20, height), np.full(20, width)
    top, left, h, w = table_of(views, epochs=epoch, heights=sides[0], widths=sides[1])[:, 1:5].T
    assert min(h.min(), w.min()) >= 1
    assert min(top.min(), left.min()) >= 0
    assert (top + h <= height).all()
    assert (left + w <= width).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"crop_scale": ["0.0", "1.0"]}, "crop_scale.*0 < low <= high <= 1"),
        ({"crop_scale": ["0.5", "1.5"]}, "crop_scale.*0 < low <= high <= 1"),
        ({"crop_ratio": ["2.0", "1.0"]}, "crop_ratio.*0 < low <= high <= 10000"),
        ({"crop_ratio": ["1.0", "20000.0"]}, "crop_ratio.*0 < low <= high <= 10000"),
        ({"flip": "1.5"}, "flip.*a probability"),
        ({"mix_probability": "-0.5"}, "mix_probability.*a probability"),
        ({"mix": "mixup", "mix_alpha": "0.0"}, "mix_alpha.*0 < alpha <= 1000"),
        ({"shuffle": 9}, "shuffle.*at most 8"),
        ({"size": 40000}, "size.*at most 32768 px"),
    ],
)
def test_rules_out_of_range_are_refused(views_of, changes, expected):
    with pytest.raises(UserInputError, match=rf"E_OPTION: `views.{expected}"):
        table_of(views_of(**changes))


def test_coordinates_out_of_range_are_refused(views_of):
    with pytest.raises(IndexError, match="`indices`: expected 0 to 499, got 3 to 500"):
        table_of(views_of(), indices=[3, 500])
    with pytest.raises(ValueError, match="`indices`: expected one dimension, got 2"):
        table_of(views_of(), indices=[[3]])
    with pytest.raises(ValueError, match="epoch: expected"):
        table_of(views_of(), epochs=2**32)


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_mixed_labels_are_the_shares_of_the_pixels(views_of, mix):
    n, size = 40, 16
    labels = np.arange(n) % 5
    views = views_of(mix=mix, flip="0.0")
    table = table_of(views, heights=np.full(n, 8), widths=np.full(n, 8))
    got = mixed_labels(table, labels, 5, size=size).numpy()
    # Independent of the formula: paint each image in its class's colour and count.
    for c in range(5):
        images = [np.full((8, 8, 3), 255 * (label == c), np.uint8) for label in labels]
        share = render(images, table, views).mean(dim=(1, 2, 3)).numpy()
        assert np.abs(got[:, c] - share).max() < 1e-5
    assert np.abs(got.sum(axis=1) - 1).max() < 1e-6


def test_mixed_labels_refuse_a_class_out_of_range():
    table = plain_table(np.array([0, 1]), [4, 4], [4, 4])
    with pytest.raises(
        UserInputError, match="E_DATA: label out of range; expected 0 to 1, got 0 to 2"
    ):
        mixed_labels(table, [0, 2], 2, size=4)
    assert mixed_labels(table[:0], [0, 2], 2, size=4).shape == (0, 2)
