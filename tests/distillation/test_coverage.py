from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from hellofmt.distillation.coverage import balanced_order, coverage_order

SPREAD = 0.15


def blobs(sizes=(60, 30, 10), dim=8, seed=0):
    """Unit rows around axes, and the number of the axis of each."""
    random = np.random.default_rng(seed)
    axis = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.eye(dim)[axis] + SPREAD * random.normal(size=(len(axis), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), axis


def inertia(rows, chosen):
    """What k-means minimises, with these rows as its centres."""
    squared = (rows[:, None].astype(np.float64) - rows[None, chosen]) ** 2
    return squared.sum(2).min(1).sum()


def test_the_first_is_nearest_to_the_centre_of_its_class():
    rows, _ = blobs()
    centre = rows.astype(np.float64).mean(0)
    nearest = np.linalg.norm(rows - centre, axis=1).argmin()
    assert coverage_order(rows, 1).tolist() == [nearest]


def test_each_next_one_is_the_best_that_there_is():
    rows, axis = blobs()
    chosen = coverage_order(rows, 6).tolist()
    for k in range(6):
        costs = [
            np.inf if row in chosen[:k] else inertia(rows, [*chosen[:k], row])
            for row in range(len(rows))
        ]
        assert costs[chosen[k]] == pytest.approx(min(costs), rel=1e-6)
    assert set(axis[chosen[:3]]) == {0, 1, 2}


@pytest.mark.parametrize("count", [2, 5, 10])
def test_an_order_costs_little_more_than_k_means_for_each_number(count):
    rows, _ = blobs()
    means = KMeans(count, n_init=10, random_state=0).fit(rows)
    medoids = [np.linalg.norm(rows - c, axis=1).argmin() for c in means.cluster_centers_]
    random = inertia(rows, list(range(0, 100, 100 // count)))
    ours = inertia(rows, coverage_order(rows, count))
    assert ours < min(1.3 * inertia(rows, medoids), random)


def test_the_first_of_many_are_the_choice_for_few():
    rows, _ = blobs()
    entropies = np.random.default_rng(1).gamma(2.0, size=100)
    for order in (coverage_order, lambda x, k: balanced_order(x, entropies, k)):
        ten = order(rows, 10)
        assert len(set(ten)) == 10
        for few in (1, 5):
            assert np.array_equal(order(rows, few), ten[:few])


def test_all_images_of_a_class_can_be_chosen():
    rows, _ = blobs((4, 3))
    for chosen in (coverage_order(rows, 7), balanced_order(rows, np.arange(7.0), 7)):
        assert sorted(chosen) == list(range(7))
    # Equal rows, equal entropies.
    assert balanced_order(rows[:1].repeat(3, 0), np.ones(3), 3).tolist() == [0, 1, 2]


def test_every_second_image_is_hard_and_none_is_noise():
    rows, _ = blobs((120, 80))
    random = np.random.default_rng(2)
    entropies = random.uniform(0.0, 1.0, 200)
    hard, noise = slice(0, 30), slice(30, 40)
    entropies[hard] = 2.0 + 0.05 * random.normal(size=30)
    entropies[noise] = 5.0 + 0.05 * random.normal(size=10)
    chosen = balanced_order(rows, entropies, 20)
    assert (chosen[1::2] < 30).all()
    assert not ((chosen >= 30) & (chosen < 40)).any()
    # Where the hard ones are used up, others follow before noise does.
    many = balanced_order(rows, entropies, 195)
    assert set(many[:190]).isdisjoint(range(30, 40))
