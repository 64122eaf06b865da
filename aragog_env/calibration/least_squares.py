"""Least squares with coefficients that cannot be negative: times add up, nothing is faster for having more to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_NOTHING = 1e-10
"""Relative to the target, what a feature must still explain to be taken in."""


def non_negative(features: Floats, target: Floats, weights: Floats | None = None) -> Floats:
    """Return b >= 0 that minimises sum of weights * (features @ b - target)**2, (p,).

    The active-set method of Lawson and Hanson (1974, chapter 23) on the normal equations, which is exact for the handful of
    features here. Features that are zero, or that others explain, get 0; of equal ones the first gets all.

    Args:
        features: (n, p).
        target: (n,).
        weights: (n,); default: all the same.
    """
    scaled = features if weights is None else features * weights[:, None]
    gram, linear = features.T @ scaled, scaled.T @ target
    # Features differ in size by orders of magnitude (one iteration, 10,000 tokens of context).
    size = np.sqrt(np.diag(gram))
    size = np.where(size > 0, size, 1.0)
    gram, linear = gram / np.outer(size, size), linear / size
    least = _NOTHING * float(np.abs(linear).max(initial=0.0))
    used = np.zeros(len(linear), np.bool_)
    found = np.zeros(len(linear))
    for _ in range(3 * len(linear) + 1):
        slope = np.where(used, -np.inf, linear - gram @ found)
        if not len(slope) or slope.max() <= least:
            break
        used[int(np.argmax(slope))] = True
        found = _within_bounds(gram, linear, found, used)
    return np.asarray(found / size)


def _within_bounds(gram: Floats, linear: Floats, found: Floats, used: NDArray[np.bool_]) -> Floats:
    """Return the optimum over the used features, after taking out those that it would make negative (`used` changes)."""
    while True:
        wanted = np.zeros(len(linear))
        wanted[used] = np.linalg.lstsq(gram[np.ix_(used, used)], linear[used], rcond=None)[0]
        bad = used & (wanted <= 0)
        if not bad.any():
            return wanted
        # Go as far as no coefficient leaves its bound; those that reach it are taken out.
        share = float((found[bad] / np.maximum(found[bad] - wanted[bad], np.finfo(float).tiny)).min())
        found = found + share * (wanted - found)
        used &= ~(bad & (found <= 1e-12))
        found = np.where(used, found, 0.0)
