"""Orders in which images stand for their class: the first k are the choice for k.

K-means has no order: its centres for 10 say nothing of those for 5. The greedy rule for k-medoids
does (Nemhauser, Wolsey and Fisher, 1978: within 1 - 1/e of the best k): image after image, the one
after which the images of the class are nearest to a chosen one, in the mean of their squared
distances, which is what k-means minimises as well. Its first is the image nearest to the centre
of the class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HARD: Final = 0.2
_FEWEST: Final = 10
"""The share and the least number of the images of a class that are hard."""


def coverage_order(embeddings: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Choose images that cover their class: places (count,) of ``embeddings`` (n, D), unit rows.

    A tie goes to the first.
    """
    everywhere = np.ones((1, len(embeddings)), bool)
    return _greedy(embeddings, count, everywhere)


def balanced_order(
    embeddings: NDArray[np.float32], entropies: NDArray[np.float64], count: int
) -> NDArray[np.int64]:
    """Choose images that cover their class, every second one among the hard ones.

    After BPS ("Balanced dataset distillation via modeling multiple visual pattern distribution",
    CVPR 2026): half of the images from the centres of a class's patterns and half from their
    margins. The margin is the 20 % of highest entropy, without those that a mixture of two normal
    distributions puts with the very hardest, which are taken for noise. BPS divides a class by
    Infomap and takes its share of each part; here coverage divides both halves, since that has an
    order.
    """
    from sklearn.mixture import GaussianMixture  # Takes a second to import.

    number = min(len(entropies), max(_FEWEST, round(_HARD * len(entropies))))
    hard = np.argsort(entropies, kind="stable")[-number:]
    allowed = np.ones((2, len(entropies)), bool)
    if len(np.unique(entropies[hard])) > 1:
        values = entropies[hard, None]
        part = GaussianMixture(2, random_state=0).fit_predict(values)
        # The last is the hardest.
        noise = hard[part == part[-1]]
        allowed[:, noise] = False
    allowed[1] &= np.isin(np.arange(len(entropies)), hard)
    return _greedy(embeddings, count, allowed)


def _greedy(
    embeddings: NDArray[np.float32], count: int, allowed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Step t takes one of those that row t of ``allowed``, in turns, has left.

    Where it has none, of the first row; then of all.
    """
    rows = embeddings.astype(np.float64)
    # Half of the squared distance of unit rows.
    far = 1.0 - rows @ rows.T
    nearest, left = np.full(len(rows), np.inf), np.ones(len(rows), bool)
    chosen = np.empty(count, np.int64)
    for step in range(count):
        turn = step % len(allowed)
        among = next(a for a in (left & allowed[turn], left & allowed[0], left) if a.any())
        places = np.flatnonzero(among)
        costs = np.minimum(nearest[:, None], far[:, places]).sum(0)
        chosen[step] = places[costs.argmin()]
        left[chosen[step]] = False
        nearest = np.minimum(nearest, far[:, chosen[step]])
    return chosen
