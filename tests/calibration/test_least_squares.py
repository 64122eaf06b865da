"""Non-negative least squares against closed forms and against exhaustive search."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aragog_env.calibration.least_squares import non_negative


def by_exhaustion(a: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Return the smallest weighted error over all sets of coefficients that are not zero."""
    best = float(w @ y**2)
    for size in range(1, a.shape[1] + 1):
        for chosen in combinations(range(a.shape[1]), size):
            part = a[:, chosen] * np.sqrt(w)[:, None]
            b = np.linalg.lstsq(part, y * np.sqrt(w), rcond=None)[0]
            if (b >= 0).all():
                best = min(best, float(w @ (a[:, chosen] @ b - y) ** 2))
    return best


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(6, 20))
def test_nothing_fits_better(seed: int, features: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-4, 5, features)
    a, y, w = rng.normal(size=(rows, features)) * scale, rng.normal(size=rows), rng.uniform(0.1, 2.0, rows)
    b = non_negative(a, y, w)
    assert (b >= 0).all()
    assert float(w @ (a @ b - y) ** 2) == pytest.approx(by_exhaustion(a, y, w), rel=1e-6)


def test_exact_coefficients_come_back() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 1, (50, 4)) * [1.0, 30.0, 4.0, 2e4]
    truth = np.array([7.0, 0.03, 0.0, 1e-5])
    assert non_negative(a, a @ truth) == pytest.approx(truth, abs=1e-10)


def test_what_cannot_be_told_apart() -> None:
    ones = np.ones((10, 1))
    twins = np.concatenate([ones, ones, 0 * ones], axis=1)
    assert non_negative(twins, np.full(10, 3.0)).tolist() == pytest.approx([3.0, 0.0, 0.0])
    assert non_negative(-ones, np.full(10, 3.0)).tolist() == [0.0]
    assert non_negative(np.zeros((4, 2)), np.zeros(4)).tolist() == [0.0, 0.0]
