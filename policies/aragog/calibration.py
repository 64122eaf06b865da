"""From log odds of being viable to expected loss: what makes heads comparable and one threshold fit all of them.

A head says how likely its configuration is *viable*: right, or as wrong as the largest. What a threshold has to hold down is
another thing, the *accuracy lost* against the largest configuration: repairs count against losses (a smaller configuration may
be right where the largest is wrong), and a hard question makes everything viable without making anything good. So every
head's log odds are mapped to the expected loss by a line, fitted on questions that the head has not seen. Its intercept is the
configuration's mean loss; its slope is shrunk by as much as chance explains, so that a head that tells nothing about the loss
decides by the mean alone.

Without this step one threshold on log odds keeps configurations that lose accuracy on easy questions and drops, on others,
nearly all that do not: sets lose as much, and half of the throughput is gone (docs/reproduction.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..viability import POINTS
from .heads import Floats, HeadStack


@dataclass(frozen=True, eq=False)
class Calibration:
    """score = offset + slope * log odds: minus the expected accuracy loss of C configurations, in points.

    Points are of the size that margins and half precision are made for.
    """

    offset: Floats  # (C,)
    slope: Floats  # (C,) not negative

    @classmethod
    def fit(cls, logits: Floats, gap: NDArray[np.float64]) -> Calibration:
        """Fit to the log odds (Q, C) of held-out questions and what configurations lose on them, `SetLoss.gap` (Q, C).

        Slopes are those of least squares times 1 - 1/t^2 (James and Stein's factor for one coefficient, t its t-statistic), 0
        where t^2 < 1 or where a head points the wrong way.
        """
        x = logits.astype(np.float64)
        x_mean, y_mean = x.mean(axis=0), gap.mean(axis=0)
        dx, dy = x - x_mean, gap - y_mean
        spread = np.maximum((dx**2).sum(axis=0), 1e-12)
        slope = (dx * dy).sum(axis=0) / spread
        residual = ((dy - slope * dx) ** 2).sum(axis=0) / max(1, len(x) - 2)
        noise = residual / spread
        with np.errstate(divide="ignore", invalid="ignore"):
            shrunk = np.where(slope < 0, np.maximum(0.0, 1 - noise / slope**2), 0.0)
        slope = np.where(shrunk > 0, slope * shrunk, 0.0)
        offset = y_mean - slope * x_mean
        return cls((-POINTS * offset).astype(np.float32), (-POINTS * slope).astype(np.float32))

    def of(self, logits: Floats) -> Floats:
        """Return scores of log odds (Q, C)."""
        return np.asarray(self.offset + self.slope * logits, np.float32)

    def into(self, heads: HeadStack) -> HeadStack:
        """Return heads that say the score at once: the line goes into their last layer."""
        weights = (*heads.weights[:-1], heads.weights[-1] * self.slope[:, None, None])
        biases = (*heads.biases[:-1], heads.biases[-1] * self.slope[:, None] + self.offset[:, None])
        return HeadStack(heads.mean, heads.scale, weights, biases)
