"""Intervals over seeds: mean or interquartile mean, 95% bootstrap, paired differences.

The bootstrap is stratified (each scenario keeps its own seeds) and seeded, so that a report is reproducible.
With five seeds the plain percentile bootstrap covers far less than 95%; quantiles are therefore widened as
in Hesterberg (2015), "What Teachers Should Know About the Bootstrap", section 5.3 (expanded percentile
interval).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
_RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A statistic over `n` seeds with its 95% interval; the interval is nan when one seed is all there is."""

    value: float
    low: float
    high: float
    n: int


def mean(samples: Floats) -> Floats:
    """Return the mean over the last axis."""
    return np.asarray(samples.mean(axis=-1))


def iqm(samples: Floats) -> Floats:
    """Return the interquartile mean over the last axis: the mean without the lowest and highest quarter."""
    ordered = np.sort(samples, axis=-1)
    cut = samples.shape[-1] // 4
    return np.asarray(ordered[..., cut : samples.shape[-1] - cut].mean(axis=-1))


def bootstrap(
    strata: ArrayLike | Sequence[ArrayLike],
    statistic: Statistic = mean,
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Estimate:
    """Estimate a statistic over seeds with a stratified bootstrap.

    Args:
        strata: (n,) values per seed, or a list of such arrays, one per scenario.
        statistic: maps (..., n) to (...).
        seed: of the resampling.
        resamples: number of bootstrap samples.
    """
    groups = [np.asarray(g, dtype=np.float64) for g in _as_groups(strata)]
    n = min(len(g) for g in groups)
    value = float(statistic(np.concatenate(groups)))
    if n < 2 or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"), n)
    rng = np.random.default_rng(seed)
    samples = np.concatenate([g[rng.integers(0, len(g), (resamples, len(g)))] for g in groups], axis=1)
    tail = _expanded_tail(n)
    low, high = np.quantile(statistic(samples), (tail, 1.0 - tail))
    return Estimate(value, float(low), float(high), n)


def paired(values: Sequence[ArrayLike], baseline: Sequence[ArrayLike], statistic: Statistic = mean) -> Estimate:
    """Estimate the difference to a baseline on the same seeds (arrays in the same order of seeds)."""
    return bootstrap([np.subtract(a, b) for a, b in zip(values, baseline, strict=True)], statistic)


def _as_groups(strata: Any) -> list[Any]:
    if len(strata) == 0:
        raise ValueError("no values to estimate from")
    return [strata] if np.ndim(strata[0]) == 0 else list(strata)


def _expanded_tail(n: int) -> float:
    """Return the tail whose normal quantile times sqrt((n - 1) / n) is Student's t with n - 1 degrees."""
    z, v = NormalDist().inv_cdf(0.975), n - 1
    # Cornish-Fisher expansion of the t quantile; below 3 degrees it is too small, but there the bootstrap
    # distribution itself ends before the quantile does.
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-t * (n / (n - 1)) ** 0.5)
