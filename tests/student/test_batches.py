from __future__ import annotations

import numpy as np
import torch

from hellofmt import rng
from hellofmt.student.batches import ArrayBatches, positions


def test_positions_are_passes_over_shuffled_orders():
    place = positions(3, 5, 0, 12)
    assert place[:5, 0].tolist() == rng.order(3, 0, 5).tolist()
    assert place[5:10, 0].tolist() == rng.order(3, 1, 5).tolist()
    assert place[:, 1].tolist() == [0] * 5 + [1] * 5 + [2] * 2
    assert np.array_equal(place[4:9], positions(3, 5, 4, 5))


def test_a_batch_is_a_function_of_its_number(stripes, views):
    pixels, labels = stripes()
    batches = ArrayBatches(pixels, labels, 3, views(), 40, seed=2)
    alone = batches.batch(2)
    stream = iter(batches)
    third = [next(stream) for _ in range(3)][2]
    assert torch.equal(alone.views, third.views)
    assert torch.equal(alone.hard, third.hard)
    assert not torch.equal(alone.views, batches.batch(3).views)
    torch.testing.assert_close(alone.hard.sum(1), torch.ones(40))
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.25, 0.5, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(alone.images, (alone.views - mean) / std)
    assert 0 <= float(alone.views.min()) <= float(alone.views.max()) <= 1


def test_unmixed_views_show_their_own_class(stripes, views):
    pixels, labels = stripes()
    plain = views(mix="none", scale=("1.0", "1.0"))
    batch = ArrayBatches(pixels, labels, 3, plain, 24, seed=0).batch(0)
    rows = positions(0, 24, 0, 24)[:, 0]
    assert batch.hard.argmax(1).tolist() == labels[rows].tolist()
    truth = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(batch.views, truth, rtol=0, atol=1e-6)
