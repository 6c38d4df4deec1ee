"""Learning rates in closed form, from the number of the step.

Torch's schedulers update the rate from step to step, so a resumed run would have to replay them or
save their state; here it needs only the number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Rate = Callable[[int, int], float]
"""Maps (step, number of steps) to a fraction of the full learning rate."""


def cosine(step: int, steps: int, *, warmup: float = 0.0, span: float = math.pi) -> float:
    """Warm up linearly to the full learning rate, then follow a cosine down.

    ``warmup`` is a fraction of the steps; ``span`` the largest argument of the cosine: pi ends at
    0, pi / 2 at half the rate. Returns a fraction of the full rate.
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    return 0.5 * (1.0 + math.cos(span * done))
