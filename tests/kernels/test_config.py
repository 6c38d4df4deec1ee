from __future__ import annotations

import json
from pathlib import Path

import pytest

from hellofmt_kernels import config
from hellofmt_kernels import tiles as tiles_module
from hellofmt_kernels.tiles import LabelTile, ViewTile, parse_tiles, shared_bytes, table

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
# KiB per program, CUDA C++ programming guide, technical specifications.
SHARED_KIB = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("c", [1, 10, 16, 100, 128, 129, 200, 256, 257, 1000, 8192, 21841])
def test_tiles_are_legal_everywhere(capability, itemsize, c):
    for n in (1, 64, 65, 4096):
        check_tiles(capability, itemsize, c, n)


def check_tiles(capability, itemsize, c, n):
    tile = table().labels(n, c, itemsize, capability)
    for extent in (tile.block_n, tile.block_c, tile.block_d):
        assert extent >= 16
        assert extent & (extent - 1) == 0
    assert tile.num_warps in (4, 8)
    assert shared_bytes(tile, itemsize) <= SHARED_KIB[capability] * 1024
    # The name of the algorithm says whether a program holds whole rows.
    assert (tile.block_c >= c) == (c <= table().row_max_classes)


def test_tiles_of_known_shapes():
    def tile(*shape, itemsize=2, capability=(9, 0)):
        return table().labels(*shape, itemsize, capability)

    assert tile(1024, 1000) == LabelTile(128, 128, 64, 8, 3)
    assert tile(32, 1000) == LabelTile(64, 128, 64, 4, 3)
    assert tile(1024, 21841) == LabelTile(128, 256, 64, 8, 3)
    assert tile(128, 21841) == LabelTile(128, 128, 64, 8, 3)
    assert tile(1024, 21841, capability=(8, 0)) == LabelTile(128, 128, 64, 8, 3)
    assert tile(1024, 10) == LabelTile(64, 16, 64, 4, 3)
    assert tile(1024, 200, capability=(8, 0)) == LabelTile(64, 256, 64, 8, 3)
    assert tile(1024, 1000, itemsize=4) == LabelTile(64, 128, 32, 4, 2)
    assert tile(1024, 1000, itemsize=4, capability=(8, 0)) == LabelTile(64, 64, 32, 4, 3)
    # Little shared memory: fewer stages, or a narrower tile.
    assert tile(1024, 200, capability=(8, 9)) == LabelTile(64, 256, 32, 8, 2)
    assert tile(1024, 21841, capability=(12, 0)) == LabelTile(64, 128, 64, 4, 3)


def test_shared_bytes():
    assert shared_bytes(LabelTile(128, 128, 64, 8, 3), 2) == 98304


@pytest.mark.parametrize(
    ("extent", "size", "antialias", "want"),
    [
        (32, 32, True, 2),
        (16, 32, True, 2),
        (33, 32, True, 3),
        (64, 32, True, 4),
        (64, 32, False, 2),
    ],
)
def test_view_taps(extent, size, antialias, want):
    assert config.view_taps(extent, size, antialias) == want


@pytest.mark.parametrize(("extent", "size"), [(5, 3), (7, 7), (9, 4), (31, 12), (64, 5)])
def test_view_taps_are_enough_for_every_crop(extent, size):
    for n in range(1, extent + 1):
        reach = max(n, size)
        for i in range(size):
            weights = [2 * reach - abs((2 * j + 1) * size - (2 * i + 1) * n) for j in range(n)]
            assert sum(weight > 0 for weight in weights) <= config.view_taps(extent, size, True)


def test_view_tile():
    assert table().views(224) == ViewTile(32, 32, 4)
    assert table().views(9) == ViewTile(16, 16, 4)


SHIPPED = json.loads((Path(tiles_module.__file__).parent / "tiles.json").read_text())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": "other"}, "expected hellofmt_kernels.tiles/1"),
        ({"extra": 1}, "extra"),
        ({"labels": []}, "without conditions"),
        ({"labels": [{"bytes": 2, "tile": [64, 100, 64, 4, 3]}]}, "powers of two"),
        ({"labels": [{"bytes": 2, "tile": [64, 64, 64, 4]}]}, "5 numbers"),
        ({"views": [{"tile": [32, 32, 4], "max_sise": 3}]}, "max_sise"),
        ({"views": [{"tile": [32, 32, 4], "max_size": 3}]}, "without conditions"),
    ],
)
def test_a_table_that_cannot_serve_is_refused(change, text):
    assert parse_tiles(json.dumps(SHIPPED)) == table()
    with pytest.raises(ValueError, match=text):
        parse_tiles(json.dumps(SHIPPED | change))


@pytest.mark.parametrize(
    ("n", "out_dtype", "device", "want"),
    [
        (8, "float16", config.Device("cuda", (9, 0), has_triton=True), "fused"),
        (0, "float16", config.Device("cuda", (9, 0), has_triton=True), "reference"),
        (8, "float64", config.Device("cuda", (9, 0), has_triton=True), "reference"),
        (8, "float16", config.Device("cuda", (7, 0), has_triton=True), "reference"),
        (8, "float16", config.Device("cpu"), "reference"),
    ],
)
def test_choice_for_views(n, out_dtype, device, want):
    assert config.choose_views(n, out_dtype, device) == want
