"""Intervals: coverage, pairing, strata, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aragog_env.harness.statistics import bootstrap, iqm, mean, paired


def test_interval_contains_the_mean_and_is_reproducible() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 3.0]
    a, b = bootstrap(values), bootstrap(values)
    assert a == b
    assert a.value == pytest.approx(3.6) and a.low < 3.6 < a.high and a.n == 5


def test_one_seed_has_no_interval() -> None:
    estimate = bootstrap([2.0])
    assert estimate.value == 2.0 and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_a_missing_value_is_not_dropped() -> None:
    assert math.isnan(bootstrap([1.0, float("nan"), 3.0]).value)


def test_iqm_leaves_out_the_outer_quarters() -> None:
    assert iqm(np.array([0.0, 1, 2, 3, 4, 5, 6, 100])) == pytest.approx(3.5)
    assert mean(np.array([[1.0, 3.0], [2.0, 4.0]])).tolist() == [2.0, 3.0]


def test_coverage_with_five_seeds_is_near_95_per_cent() -> None:
    """The plain percentile bootstrap covers about 83% here; the expanded one must do clearly better."""
    rng = np.random.default_rng(1)
    hits = 0
    trials = 300
    for _ in range(trials):
        estimate = bootstrap(rng.normal(10, 2, 5), resamples=2000)
        hits += estimate.low <= 10 <= estimate.high
    assert 0.89 <= hits / trials <= 0.99


def test_pairing_removes_what_the_seeds_have_in_common() -> None:
    rng = np.random.default_rng(0)
    traffic = rng.normal(0, 100, 6)
    a, b = traffic + 1.0 + rng.normal(0, 0.01, 6), traffic
    difference = paired([a], [b])
    assert difference.low > 0.9 and difference.high < 1.1
    assert bootstrap(a).high - bootstrap(a).low > 50  # unpaired, nothing could be said


def test_strata_keep_their_own_seeds() -> None:
    """Two scenarios on different scales: only the spread within each matters."""
    stratified = bootstrap([[10.0, 10.1, 9.9], [1000.0, 1000.1, 999.9]])
    assert stratified.value == pytest.approx(505.0)
    assert stratified.high - stratified.low < 1.0
    mixed = bootstrap([10.0, 10.1, 9.9, 1000.0, 1000.1, 999.9])
    assert mixed.high - mixed.low > 500


def test_nothing_to_estimate_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
