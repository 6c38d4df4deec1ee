"""The rule of a budget against every way to spend it, and sizes against an archive."""

from __future__ import annotations

import itertools
import math

import builders
import numpy as np
import pytest

from hellofmt.archive import Draft, ImageItem, ImageSet, open_archive, write_archive
from hellofmt.ledger import Way, assumed_ways, spend, ways_of
from hellofmt.ledger.budget import LOSS, WAYS

LOSSY = [Way("webp", 10, 1000.0, 0.3), Way("webp", 50, 1500.0, 0.1), Way("webp", 90, 3000.0, 0.02)]
WAYS_HERE = [
    Way("png", None, 9000.0, 0.0),
    Way("jpeg", 40, 2000.0, 0.05),
    *LOSSY,
    Way("webp", 100, 6000.0, 0.0),
]


def worth(ipc, drift):
    return math.log(ipc) - LOSS * drift


@pytest.mark.parametrize("room", [2_000, 9_000, 40_000, 99_999, 400_000])
def test_the_best_of_everything_that_fits(room):
    best = spend(room, classes=2, most=20, ways=WAYS_HERE)
    assert 2 * best.ipc * best.way.size <= room
    # Straight lines between the measured ways of one lossy codec, at whole qualities.
    every = [*WAYS_HERE]
    for low, high in itertools.pairwise(LOSSY):
        for quality in range(low.quality, high.quality):
            part = (quality - low.quality) / (high.quality - low.quality)
            size = low.size + part * (high.size - low.size)
            every.append(Way("webp", quality, size, low.drift + part * (high.drift - low.drift)))
    found = [
        worth(ipc, way.drift)
        for way in every
        for ipc in range(1, 21)
        if 2 * ipc * way.size <= room + 1e-6
    ]
    assert worth(best.ipc, best.way.drift) == pytest.approx(max(found))


def test_images_that_run_out_leave_quality():
    best = spend(1e9, classes=3, most=7, ways=WAYS_HERE)
    # Of two ways that lose nothing the smaller one.
    assert (best.ipc, best.way) == (7, Way("webp", 100, 6000.0, 0.0))


def test_no_room_names_the_smallest_way():
    assert spend(999.0, classes=1, most=5, ways=WAYS_HERE) == spend(-5.0, 1, 5, WAYS_HERE)
    best = spend(999.0, classes=1, most=5, ways=WAYS_HERE)
    assert (best.ipc, best.way) == (0, LOSSY[0])
    assert spend(1000.0, classes=1, most=5, ways=WAYS_HERE).ipc == 1


def test_qualities_of_one_size_are_one_step():
    # A padded file has the size of its blocks: the best quality of them is free.
    flat = [Way("webp", 10, 1064.0, 0.3), Way("webp", 50, 1064.0, 0.1), Way("webp", 90, 1576.0, 0)]
    assert spend(1064.0, classes=1, most=1, ways=flat).way == flat[1]


@pytest.mark.parametrize("side", [8, 40])
def test_sizes_are_what_an_image_adds_to_an_archive(tmp_path, side):
    pixels = builders.stripes(per_class=4, size=side)[0]
    pixels[:, : side // 2] //= 3
    labels = np.repeat(np.arange(3), 4)
    for codec, quality, size, files in ways_of(pixels):
        if codec == "png":
            items = builders.image_set(pixels, labels, "packed")
        else:
            assert files
            pairs = zip(labels, files, strict=True)
            items = ImageSet(codec, [ImageItem(int(c), data) for c, data in pairs])
        facts = (builders.dataset(), builders.STRIPES, builders.views(side))
        write_archive(tmp_path / f"{quality}{codec}", Draft(*facts, images=items))
        with open_archive(tmp_path / f"{quality}{codec}") as file:
            packed = codec == "png"
            stored = file.section_sizes()["pixels"] if packed else file.manifest.images.span
            index = file.section_sizes()["index"]
        # A row of the index; its header is no image's.
        assert 48 * 12 < index < 48 * 12 + 600
        expected = stored / 12 + 48
        assert size == pytest.approx(expected, abs=20 if codec == "png" else 1e-9), (codec, quality)
    assert [way[:2] for way in ways_of(pixels)] == list(WAYS)


def test_what_is_assumed_is_that_of_the_nearest_side():
    ways, of = assumed_ways(36)
    assert of == "of CIFAR-10 at 32 pixels"
    assert [(way.codec, way.quality) for way in ways] == list(WAYS)
    by_name = {(way.codec, way.quality): way for way in ways}
    assert by_name["png", None].size == 3 * 36**2 + 48
    # 0.656 bytes a pixel, a header, half a block of padding, a row of the index.
    assert by_name["webp", 95].size == pytest.approx(0.656 * 36**2 + 512 + 256 + 48)
    # At least a block.
    assert by_name["webp", 10].size == 512 + 512 + 48
    assert by_name["webp", 100].drift == 0 < by_name["webp", 95].drift < by_name["webp", 10].drift
    known, _ = assumed_ways(36, [Way(*way, 5.0, 0.0) for way in WAYS])
    assert {way.size for way in known} == {5.0}
    assert [way.drift for way in known] == [way.drift for way in ways]
