"""Bivariate normal probabilities, and the correlation behind two right-or-wrong columns."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NORMAL = NormalDist()
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def both_right(accuracy_a: float, accuracy_b: float, correlation: float) -> float:
    """Return the chance that both of two normal latents with this correlation are positive.

    Plackett's identity: the derivative of the bivariate normal distribution in the correlation is its density; the angle
    asin(correlation) as the variable keeps the integrand smooth.
    """
    h, k = NORMAL.inv_cdf(accuracy_a), NORMAL.inv_cdf(accuracy_b)
    top = np.arcsin(np.clip(correlation, -1, 1))
    angle = (_NODES + 1) / 2 * top
    density = np.exp(-(h * h + k * k - 2 * h * k * np.sin(angle)) / (2 * np.maximum(np.cos(angle) ** 2, 1e-12)))
    return float(accuracy_a * accuracy_b + (top / 2) * (_WEIGHTS @ density) / (2 * np.pi))


def inversion(accuracy_small: float, accuracy_large: float, correlation: float) -> float:
    """Return the chance that the small model is right and the large one wrong."""
    return accuracy_small - both_right(accuracy_small, accuracy_large, correlation)


def tetrachoric(accuracy_a: float, accuracy_b: float, both: float) -> float:
    """Return the latent correlation at which both are right with chance `both`; nan when an accuracy is beyond 3-97%."""
    if not (0.03 < accuracy_a < 0.97 and 0.03 < accuracy_b < 0.97):
        return float("nan")
    low, high = -0.995, 0.9999
    if both >= both_right(accuracy_a, accuracy_b, high):
        return high
    for _ in range(50):
        middle = (low + high) / 2
        if both_right(accuracy_a, accuracy_b, middle) < both:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def correlation_of(a: Floats, b: Floats) -> float:
    """Return the tetrachoric correlation of two columns of answers, 0/1 or independent estimates of probabilities."""
    return tetrachoric(float(a.mean()), float(b.mean()), float((a * b).mean()))


def repeat_correlation_of(p: Floats, samples: int) -> float:
    """Return the correlation of one model with itself from `samples` tries per query with the shares right `p`."""
    right = p * samples
    both = right * (right - 1) / (samples * (samples - 1))  # unbiased for p**2
    return tetrachoric(float(p.mean()), float(p.mean()), float(both.mean()))
