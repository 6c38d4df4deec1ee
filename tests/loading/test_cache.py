from __future__ import annotations

import copy
import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hellofmt.loading import HelloDataset
from hellofmt.loading.cache import DecodedImages


def pictures(count=6):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (3 + i, 5, 3), np.uint8) for i in range(count)]


def cache_of(images, budget):
    sizes = np.array([image.shape[:2] for image in images])
    return DecodedImages(sizes[:, 0], sizes[:, 1], budget)


@pytest.mark.parametrize("rows", range(7))
def test_the_first_rows_that_fit_are_kept(rows):
    images = pictures()
    needed = sum(image.nbytes for image in images[:rows])
    for budget in (needed, needed + images[rows].nbytes - 1 if rows < 6 else needed + 999):
        cache = cache_of(images, budget)
        assert cache.rows == rows
        for row in (4, 0, 1, 5, 2, 3):
            assert cache.get(row) is None
            assert np.array_equal(cache.put(row, images[row]), images[row])
        for row, image in enumerate(images):
            kept = cache.get(row)
            if row < rows:
                assert np.array_equal(kept, image)
                with pytest.raises(ValueError, match="read-only"):
                    kept[0] = 1
            else:
                assert kept is None


def fill(cache, images):
    for row, image in enumerate(images):
        cache.put(row, image)


def test_forked_processes_fill_one_cache():
    images = pictures()
    cache = cache_of(images, 10**6)
    child = multiprocessing.get_context("fork").Process(target=fill, args=(cache, images))
    child.start()
    child.join()
    assert [np.array_equal(cache.get(row), image) for row, image in enumerate(images)] == [True] * 6


def test_no_image_is_decoded_twice_by_workers_of_any_pass(mixing):
    dataset = HelloDataset(mixing, labels="none")
    list(DataLoader(dataset, batch_size=4, num_workers=2))
    # Without the file nothing can be decoded any more.
    dataset.file.close()
    expected = HelloDataset(mixing, labels="none")
    expected.set_epoch(1)
    for workers in (0, 2):
        dataset.set_epoch(1)
        views = torch.cat(list(DataLoader(dataset, batch_size=4, num_workers=workers)))
        expected.set_epoch(1)
        assert torch.equal(views, torch.stack(expected.__getitems__(range(11))))


def test_without_a_budget_every_read_is_verified_again(mixing):
    dataset = HelloDataset(mixing, labels="none", cache=0)
    dataset.__getitems__(range(11))
    dataset.file.close()
    with pytest.raises(Exception, match="E_READ"):
        dataset.__getitems__(range(11))


def test_a_copy_fills_a_cache_of_its_own(mixing):
    dataset = HelloDataset(mixing, labels="none")
    pixels = dataset.pixels(3)
    twin = copy.deepcopy(dataset)
    dataset.file.close()
    assert np.array_equal(twin.pixels(3), pixels)
    twin.file.close()
    assert np.array_equal(twin.pixels(3), pixels)
