from __future__ import annotations

import math

import numpy as np
import pytest

from hellofmt.loading.views.exact import beta_quantile, exp, log


def test_exp_agrees_with_the_c_library_to_the_last_bits():
    x = np.linspace(-30.0, 30.0, 20001)
    assert np.abs(exp(x) / np.exp(x) - 1.0).max() < 2.0**-51
    assert exp(np.array([0.0]))[0] == 1.0
    assert exp(np.array([-1e9]))[0] > 0.0


def test_log_agrees_with_the_c_library_to_the_last_bits():
    x = np.concatenate([np.geomspace(1e-300, 1e300, 20001), np.linspace(0.5, 2.0, 20001)])
    assert (np.abs(log(x) - np.log(x)) / np.maximum(1.0, np.abs(np.log(x)))).max() < 2.0**-51
    assert log(np.array([1.0]))[0] == 0.0


def _distribution(x, a, steps=200001):
    # Midpoint rule of the density in t = x sin^2: smooth even where the density has poles.
    def integral(top):
        theta = (np.arange(steps) + 0.5) / steps * math.asin(math.sqrt(top))
        s, c = np.sin(theta), np.cos(theta)
        return np.sum((2 * s * c) ** (2 * a - 1)) * math.asin(math.sqrt(top)) / steps

    return integral(x) / integral(1.0)


@pytest.mark.parametrize("a", [0.5, 0.8, 2.0, 7.25, 100.0, 1000.0])
def test_beta_quantile_inverts_the_numerically_integrated_distribution(a):
    u = np.array([0.001, 0.1, 0.3, 0.5, 0.6, 0.99])
    x = beta_quantile(u, a)
    assert np.allclose([_distribution(v, a) for v in x], u, atol=2e-6)


def test_beta_quantile_in_closed_form():
    u = np.linspace(0.0, 1.0, 1001, endpoint=False)
    # Beta(1/2, 1/2) is the arcsine law.
    assert np.abs(beta_quantile(u, 0.5) - np.sin(np.pi * u / 2) ** 2).max() < 2.0**-40
    # Beta(2, 2): the distribution function is 3x^2 - 2x^3.
    x = beta_quantile(u, 2.0)
    assert np.abs(3 * x**2 - 2 * x**3 - u).max() < 2.0**-40
    assert np.array_equal(beta_quantile(u, 1.0), u)


def test_beta_quantile_is_symmetric_and_near_one_half_for_a_large_parameter():
    u = np.arange(1, 512) / 512
    for a in (0.3, 0.8, 5.0):
        assert np.abs(beta_quantile(u, a) + beta_quantile(1.0 - u, a) - 1.0).max() < 2.0**-40
    assert np.abs(beta_quantile(np.array([0.2, 0.8]), 1000.0) - 0.5).max() < 0.01


@pytest.mark.parametrize("a", [0.0, -1.0, 1000.5, math.nan, math.inf])
def test_beta_quantile_refuses_parameters_out_of_range(a):
    with pytest.raises(ValueError, match=r"`a`: expected 0 < a <= 1000, got"):
        beta_quantile(np.array([0.5]), a)
