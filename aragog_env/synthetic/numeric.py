"""Small numeric helpers of the generator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def by_size(table: Mapping[float, float], size_b: float) -> float:
    """Return the value for a model size: linear in log(size) between entries, the nearest outside them."""
    sizes = sorted(table)
    return float(np.interp(np.log(size_b), np.log(sizes), [table[size] for size in sizes]))


def clipped_lognormal_mean(median: float, sigma: float, low: float, high: float) -> float:
    """Return the mean of a log-normal that is clipped (not truncated) to [low, high]."""
    if sigma == 0:
        return min(max(median, low), high)
    mu = np.log(median)
    below, above = ((np.log(np.array([max(low, 1e-300), high])) - mu) / sigma).tolist()
    inside = normal_cdf(np.array([above - sigma, below - sigma, below, above]))
    middle = np.exp(mu + sigma**2 / 2) * (inside[0] - inside[1])
    return float(low * inside[2] + middle + high * (1 - inside[3]))


def normal_cdf(x: Floats) -> Floats:
    """Return the standard normal distribution function (Abramowitz and Stegun 26.2.17, error below 1e-7)."""
    t = 1 / (1 + 0.2316419 * np.abs(x))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-0.5 * x * x) * (poly / np.sqrt(2 * np.pi))
    return np.asarray(np.where(x >= 0, 1 - tail, tail))


def solve_level(base: Floats, target: float) -> float:
    """Return x with mean(cdf(x + base)) = target, by bisection; base (Q,) in units of the call noise."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(normal_cdf(middle + base).mean()) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
