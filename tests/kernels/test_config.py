from __future__ import annotations

import pytest

from hellofmt_kernels import config

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
    tiles = config.label_tile_candidates(n, 768, c, itemsize, capability)
    assert tiles[0] == config.choose_label_tile(n, 768, c, itemsize, capability)
    for tile in tiles:
        for extent in (tile.block_n, tile.block_c, tile.block_d):
            assert extent >= 16
            assert extent & (extent - 1) == 0
        assert tile.num_warps in (4, 8)
        assert config.shared_bytes(tile, itemsize) <= SHARED_KIB[capability] * 1024
        # The name of the algorithm says whether a program holds whole rows.
        assert (tile.block_c >= c) == (c <= config.ROW_MAX_CLASSES)


def test_tiles_of_known_shapes():
    def tile(*shape, itemsize=2, capability=(9, 0)):
        return config.choose_label_tile(*shape, itemsize, capability)

    assert tile(1024, 768, 1000) == config.LabelTile(128, 128, 64, 8, 3)
    assert tile(32, 768, 1000) == config.LabelTile(64, 128, 64, 4, 3)
    assert tile(1024, 768, 21841) == config.LabelTile(128, 256, 64, 8, 3)
    assert tile(128, 768, 21841) == config.LabelTile(128, 128, 64, 8, 3)
    assert tile(1024, 768, 21841, capability=(8, 0)) == config.LabelTile(128, 128, 64, 8, 3)
    assert tile(1024, 768, 10) == config.LabelTile(64, 16, 64, 4, 3)
    assert tile(1024, 768, 200, capability=(8, 0)) == config.LabelTile(64, 256, 64, 8, 3)
    assert tile(1024, 768, 1000, itemsize=4) == config.LabelTile(64, 128, 32, 4, 2)
    assert tile(1024, 768, 1000, itemsize=4, capability=(8, 0)) == config.LabelTile(
        64, 64, 32, 4, 3
    )


def test_shared_bytes():
    assert config.shared_bytes(config.LabelTile(128, 128, 64, 8, 3), 2) == 98304


@pytest.mark.parametrize(
    ("c", "want"), [(1, (16, 4)), (1000, (1024, 4)), (4096, (4096, 8)), (21841, (8192, 8))]
)
def test_kl_block(c, want):
    assert config.choose_kl_block(c) == want


def test_kl_rows_fit_the_l2_cache():
    assert config.choose_kl_rows(100, 10, 2) == 100
    rows = config.choose_kl_rows(4096, 21841, 2)
    assert rows == 512
    assert rows * 21841 * 2 <= 24 * 2**20
    assert config.choose_kl_rows(4096, 10**6, 4) == 128


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
    assert config.choose_view_tile(224) == config.ViewTile(32, 32, 4)
    assert config.choose_view_tile(9) == config.ViewTile(16, 16, 4)


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


@pytest.mark.parametrize(("value", "want"), [("1", True), ("0", False), ("", False), (None, False)])
def test_autotuning_is_asked_for(value, want, monkeypatch):
    monkeypatch.delenv("HELLOFMT_AUTOTUNE", raising=False)
    if value is not None:
        monkeypatch.setenv("HELLOFMT_AUTOTUNE", value)
    assert config.is_autotuned() is want


def test_fastest_takes_the_first_of_equals():
    tiles = config.label_tile_candidates(1024, 768, 1000, 2, (9, 0))
    assert len(tiles) == 3
    times = dict(zip(tiles, (2.0, 1.0, 1.0), strict=True))
    assert config.fastest(tiles, times.__getitem__) == tiles[1]
