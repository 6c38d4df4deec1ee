from __future__ import annotations

import numpy as np

from hellofmt import rng
from hellofmt.runs.order import Order


def test_positions_are_passes_over_shuffled_orders():
    order = Order(3, 5)
    place = order.positions(0, 12)
    assert place[:5, 0].tolist() == rng.order(3, 0, 5).tolist()
    assert place[5:10, 0].tolist() == rng.order(3, 1, 5).tolist()
    assert place[:, 1].tolist() == [0] * 5 + [1] * 5 + [2] * 2
    assert np.array_equal(place[4:9], order.positions(4, 5))
    assert np.array_equal(place, Order(3, 5).positions(0, 12))


def test_an_order_is_computed_once_an_epoch(monkeypatch):
    asked = []
    true = rng.order
    monkeypatch.setattr(rng, "order", lambda *each: asked.append(each) or true(*each))
    order = Order(3, 10)
    for step in range(7):
        order.positions(4 * step, 4)
    assert asked == [(3, 0, 10), (3, 1, 10), (3, 2, 10)]
