"""exp, log and the symmetric Beta quantile from operations that every machine rounds alike.

View parameters are promised bit-identical everywhere, and they pass through exp (crop ratio) and
the Beta distribution (mixing). ``np.exp`` and the C library's ``exp`` differ between machines and
between vector widths in the last bit, which a later rounding to pixels can make visible. This
file uses only ``+ - * /``, rounding and scaling by powers of two: IEEE 754 rounds those correctly,
and NumPy never contracts two of its calls into one fused operation.

The Beta quantile needs no gamma function: only Beta(a, a) occurs, whose distribution function is
1/2 at 1/2, and this point normalises the integral. Rejection samplers (Cheng, Johnk) were rejected:
they use a varying number of random words.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Largest parameter of Beta(a, a); beyond it the draw is 1/2 within 2 %, and the series grows long.
MAX_BETA = 1000.0

_LOG2_E = 1.4426950408889634
# ln 2 in two parts: the high one has 21 trailing zero bits, so its product with an exponent below
# 2**21 is exact.
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_SQRT_HALF = 0.7071067811865476
_EXP_TERMS = 14
_LOG_TERMS = 12
_BISECTIONS = 40


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the exponential: relative error below 2**-51, the same bits on every machine.

    Taylor series of degree 14 after reduction by multiples of ln 2. x <= 700; below -700 as -700.
    """
    x = np.maximum(np.asarray(x, np.float64), -700.0)
    k = np.rint(x * _LOG2_E)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = np.ones_like(r)
    for n in range(_EXP_TERMS, 0, -1):
        total = 1.0 + r * total / n
    return np.ldexp(total, k.astype(np.int32))


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the natural logarithm of normal numbers > 0, with the same bits on every machine.

    The error is below 2**-51 of max(1, |log x|). The sum is 2 artanh((m - 1) / (m + 1)) for the
    mantissa m in [sqrt(1/2), sqrt(2)), plus the exponent's share.
    """
    m, e = np.frexp(np.asarray(x, np.float64))
    is_small = m < _SQRT_HALF
    m = np.where(is_small, 2.0 * m, m)
    e = (e - is_small).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = np.full_like(s, 1.0 / (2 * _LOG_TERMS - 1))
    for n in range(_LOG_TERMS - 2, -1, -1):
        total = 1.0 / (2 * n + 1) + square * total
    return e * _LN2_HIGH + (2.0 * s * total + e * _LN2_LOW)


@lru_cache(maxsize=16)
def _series(a: float) -> tuple[float, ...]:
    """Compute the coefficients of 2F1(2a, 1; a + 1; x) up to 2**-60 of the sum at x = 1/2."""
    coefficients = [1.0]
    term = total = 1.0
    while term > total * 2.0**-60:
        i = len(coefficients) - 1
        factor = (2.0 * a + i) / (a + i + 1.0)
        coefficients.append(coefficients[-1] * factor)
        term *= 0.5 * factor
        total += term
    return tuple(coefficients)


def _series_at(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    coefficients = _series(a)
    total = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = c + x * total
    return total


def beta_quantile(u: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Compute the x at which the distribution function of Beta(a, a), 0 < a <= 1000, is ``u`` < 1.

    The incomplete integral is ``x^a (1-x)^a / a * 2F1(2a, 1; a+1; x)`` (Abramowitz and Stegun,
    26.5.23 with 15.3.3), whose series has positive terms only and converges at least like 2^-n for
    x <= 1/2; u > 1/2 is reflected. The root is bracketed by 40 bisections of [0, 1/2], so the error
    is below 2**-41. For a = 1 the result is ``u``.
    """
    if not 0.0 < a <= MAX_BETA:
        raise ValueError(f"`a`: expected 0 < a <= {MAX_BETA:g}, got {a}")
    u = np.asarray(u, np.float64)
    if a == 1.0:
        return u.copy()
    is_upper = u > 0.5
    goal = 2.0 * np.where(is_upper, 1.0 - u, u)
    half = np.full((1,), 0.5)
    at_half = 2.0 * a * log(half) + log(_series_at(half, a))
    low = np.zeros_like(u)
    step = 0.5
    for _ in range(_BISECTIONS):
        step *= 0.5
        middle = low + step
        value = exp(a * (log(middle) + log(1.0 - middle)) + log(_series_at(middle, a)) - at_half)
        low = np.where(value < goal, middle, low)
    # The middle of the last bracket, [low, low + step].
    x = low + 0.5 * step
    return np.where(is_upper, 1.0 - x, x)
