"""Learning rates in closed form, from the number of the step.

Torch's schedulers update the rate from step to step, so a resumed run would have to replay them or
save their state; here it needs only the number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Rate = Callable[[int, int], float]
"""Maps (step, number of steps) to a fraction of the full learning rate."""


def constant(step: int, steps: int) -> float:
    """Keep the full learning rate at every step."""
    del step, steps
    return 1.0


def cosine(step: int, steps: int, *, warmup: float = 0.0, span: float = math.pi) -> float:
    """Warm up linearly to the full learning rate, then follow a cosine down.

    Args:
        step: number of the step, from 0.
        steps: number of steps of the whole run.
        warmup: fraction of the steps, in [0, 1).
        span: largest argument of the cosine: pi ends at 0, pi / 2 at half the rate.

    Returns:
        A fraction of the full learning rate, in [0, 1].

    Example:
        >>> [round(cosine(step, 4, warmup=0.5), 3) for step in range(4)]
        [0.333, 0.667, 1.0, 0.5]
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    return 0.5 * (1.0 + math.cos(span * done))
