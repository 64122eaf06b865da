"""How much the text of a question tells about who answers it right: hashed character n-grams and a ridge regression.

The same predictor is run on real texts and on the features of synthetic queries, so that the generator's features can be
made as telling as real ones, no more and no less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DIMENSIONS: Final = 512
PENALTIES: Final = (1e2, 1e3, 1e4, 1e5)
"""Ridge penalties in units of a standardised feature's variance; the best one is taken, for real and synthetic alike."""
FOLDS: Final = 5


@dataclass(frozen=True)
class Signal:
    """What the predictor reaches on queries it has not seen."""

    right_auc: float
    """Mean over models: area under the ROC curve for 'this model is right'."""
    which_auc: float
    """Mean over pairs of models: for 'which of the two is right', where exactly one is."""


def embed(texts: Sequence[str], dimensions: int = DIMENSIONS) -> Floats:
    """Return hashed character 3- to 5-grams of the texts, log counts times inverse frequency, and the log length."""
    counts = np.zeros((len(texts), dimensions))
    for row, text in enumerate(texts):
        codes = np.frombuffer(" ".join(text.lower().split()).encode(), np.uint8).astype(np.uint64)
        for n in (3, 4, 5):
            if len(codes) >= n:
                counts[row] += np.bincount(_hash(codes, n, dimensions), minlength=dimensions)
    seen = (counts > 0).mean(axis=0)
    features = np.log1p(counts) * (1 - np.log(np.maximum(seen, 1 / len(texts))))
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-12
    return np.column_stack([features, np.log([len(text) + 1 for text in texts])])


def _hash(codes: NDArray[np.uint64], n: int, dimensions: int) -> NDArray[np.int64]:
    value = np.full(len(codes) - n + 1, n, np.uint64)
    for k in range(n):
        value = value * np.uint64(1099511628211) ^ codes[k : len(codes) - n + 1 + k]  # FNV
    value ^= value >> np.uint64(29)
    value *= np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((value >> np.uint64(32)) % np.uint64(dimensions), np.int64)


def out_of_fold(features: Floats, targets: Floats, seed: int = 0) -> Floats:
    """Return ridge predictions for queries left out of the fit, (penalties, Q, T); features (Q, D), targets (Q, T)."""
    fold = np.random.default_rng(seed).permutation(len(features)) % FOLDS
    result = np.empty((len(PENALTIES), *targets.shape))
    for k in range(FOLDS):
        fit, left = fold != k, fold == k
        mean, spread = features[fit].mean(axis=0), features[fit].std(axis=0) + 1e-9
        x, new = (features[fit] - mean) / spread, (features[left] - mean) / spread
        values, vectors = np.linalg.eigh(x.T @ x)
        moment = vectors.T @ (x.T @ (targets[fit] - targets[fit].mean(axis=0)))
        for i, penalty in enumerate(PENALTIES):
            result[i, left] = (new @ vectors) @ (moment / (np.maximum(values, 0) + penalty)[:, None])
    return result


def area(score: Floats, label: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve."""
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    ones = int(label.sum())
    return float((rank[label].sum() - ones * (ones + 1) / 2) / max(ones * (len(label) - ones), 1))


def signal(features: Floats, right: Floats, pairs: Sequence[tuple[int, int]], seed: int = 0) -> Signal:
    """Return how well features predict answers `right` (Q, M) and, for pairs of models, which one is right."""
    differences = np.stack([right[:, a] - right[:, b] for a, b in pairs], axis=1)
    predicted = out_of_fold(features, np.column_stack([right, differences]), seed)
    models = right.shape[1]
    areas = [[area(p[:, m], right[:, m] > 0.5) for m in range(models)] for p in predicted]
    which = []
    for p in predicted:
        one = [differences[:, k] != 0 for k in range(len(pairs))]
        which.append([area(p[d, models + k], differences[d, k] > 0) for k, d in enumerate(one)])
    return Signal(float(np.mean(areas, axis=1).max()), float(np.mean(which, axis=1).max()))


def comparable_pairs(right: Floats, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Return up to `count` pairs of models of which each is alone right on at least 4% of the queries and 30 queries."""
    least = max(30, round(0.04 * len(right)))
    models = right.shape[1]
    good = [
        (a, b)
        for a in range(models)
        for b in range(a)
        if min((right[:, a] > right[:, b]).sum(), (right[:, a] < right[:, b]).sum()) >= least
    ]
    chosen = np.random.default_rng(seed).permutation(len(good))[:count]
    return [good[i] for i in chosen]
