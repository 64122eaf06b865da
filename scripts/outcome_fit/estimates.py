"""The estimates: each takes public results and returns one number of the generator, with what it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from .data import LADDERS, REPEATS, STAGES, Answers, Floats
from .normal import NORMAL, correlation_of, repeat_correlation_of

Stages = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
LIVECODEBENCH_SAMPLES: Final = 10
EVALPERF_SAMPLES: Final = 100


@dataclass(frozen=True)
class Pair:
    """Two sizes of one family on one data set."""

    dataset: str
    family: str
    small: str
    large: str
    small_b: float
    large_b: float
    accuracy_small: float
    accuracy_large: float
    inversion: float
    correlation: float


def sibling_pairs(answers: Answers) -> list[Pair]:
    """Return every pair of sizes of a family that a data set holds."""
    result = []
    for family, ladder in LADDERS.items():
        for (small, small_b), (large, large_b) in combinations(ladder, 2):
            if small not in answers.right or large not in answers.right or small_b == large_b:
                continue
            a, b = answers.pair(small, large)
            alone = float((a * (1 - b)).mean())
            result.append(
                Pair(answers.name, family, small, large, small_b, large_b, float(a.mean()), float(b.mean()), alone,
                     correlation_of(a, b))
            )  # fmt: skip
    return result


def fit_siblings(pairs: Sequence[Pair]) -> tuple[float, dict[str, float]]:
    """Return the size angle and, by data set, the correlation of siblings of equal size, by least squares.

    Every data set counts the same. Pairs without a correlation (accuracies near 0 or 1) are left out.
    """
    good = [pair for pair in pairs if np.isfinite(pair.correlation)]
    gap = np.log([pair.large_b / pair.small_b for pair in good])
    seen = np.array([pair.correlation for pair in good])
    names = sorted({pair.dataset for pair in good})
    member = np.array([[pair.dataset == name for pair in good] for name in names], float)
    weight = 1 / member.sum(axis=1)  # of each pair, by data set

    def fit(angle: float) -> tuple[float, Floats]:
        cosine = np.cos(angle * gap)
        base = np.array([(m * cosine * seen).sum() / (m * cosine**2).sum() for m in member])
        error = (member * (seen - base[:, None] * cosine) ** 2).sum(axis=1) @ weight
        return float(error), base

    angles = np.linspace(0, 0.4, 401)
    best = min(angles, key=lambda angle: fit(float(angle))[0])
    return float(best), dict(zip(names, fit(float(best))[1].tolist(), strict=True))


def provider_repeats(answers: Answers, name: str) -> list[float]:
    """Return the correlations of one model with itself at several providers, greedy."""
    return [correlation_of(*answers.pair(a, b)) for a, b in combinations(REPEATS[name], 2)]


def sample_repeats(shares: Sequence[Floats], samples: int) -> list[float]:
    """Return by model the correlation with itself, from shares of right samples."""
    found = [repeat_correlation_of(p, samples) for p in shares]
    return [value for value in found if np.isfinite(value)]


def stage_repeats(stages: Stages) -> dict[str, float]:
    """Return by LiveCodeBench stage the median over models of a model's correlation with itself."""
    result = {}
    for stage, models in stages.items():
        flat = [np.array([x for shares in of_model.values() for x in shares]) for of_model in models.values()]
        result[stage] = float(np.median(sample_repeats(flat, LIVECODEBENCH_SAMPLES)))
    return result


@dataclass(frozen=True)
class StagePair:
    """How two stages hang together on the problems they share."""

    first: str
    second: str
    problems: int
    models: int
    same_model: float
    other_model: float
    within: tuple[float, float]
    """Correlation of different models, in each stage."""
    repeat: tuple[float, float]

    @property
    def difficulty_sharing(self) -> float:
        """Share of difficulty in common."""
        return float(np.clip(self.other_model / np.sqrt(self.within[0] * self.within[1]), 0, 1))

    @property
    def strength_sharing(self) -> float:
        """Share of a model's own strength in common."""
        own = [max(r - w, 1e-3) for r, w in zip(self.repeat, self.within, strict=True)]
        return float(np.clip((self.same_model - self.other_model) / np.sqrt(own[0] * own[1]), 0, 1))


def stage_pairs(stages: Stages) -> list[StagePair]:
    """Return the comparison of LiveCodeBench's stages; self-repair only with the generation that it repairs."""
    names = list(STAGES)
    chosen = [(a, b) for a, b in combinations(names, 2) if "self-repair" not in (a, b) or a == "generation"]
    repeat = stage_repeats(stages)
    return [_stage_pair(stages, repeat, a, b) for a, b in chosen]


def _stage_pair(stages: Stages, repeat: Mapping[str, float], first: str, second: str) -> StagePair:
    models = [m for m in stages[first] if m in stages[second]]
    shared = sorted(set(stages[first][models[0]]) & set(stages[second][models[0]]))
    x, y = ({m: np.array([np.mean(stages[s][m][q]) for q in shared]) for m in models} for s in (first, second))
    others = [correlation_of(x[a], y[b]) for a in models for b in models if a != b]
    within = [[correlation_of(z[a], z[b]) for a, b in combinations(models, 2)] for z in (x, y)]
    return StagePair(
        first, second, len(shared), len(models),
        float(np.nanmean([correlation_of(x[m], y[m]) for m in models])),
        float(np.nanmean(others)),
        (float(np.nanmean(within[0])), float(np.nanmean(within[1]))),
        (repeat[first], repeat[second]),
    )  # fmt: skip


def stage_skill_sigma(stages: Stages) -> float:
    """Return how much a model's level differs from stage to stage beyond the stage's own difficulty.

    Residuals of probit accuracies after model and stage means over the three different tasks; from the median of their
    absolute values, since one model's execution answers are broken (Claude-3 Haiku).
    """
    names = [name for name in stages if name != "self-repair"]
    models = [m for m in stages[names[0]] if all(m in stages[name] for name in names)]
    z = np.array([[NORMAL.inv_cdf(_mean(stages[name][m])) for name in names] for m in models])
    rest = z - np.median(z, axis=0) - np.median(z - np.median(z, axis=0), axis=1, keepdims=True)
    # medians of a row make one of its three residuals zero: those are left out
    away = np.abs(rest)[np.abs(rest) > 1e-9]
    return float(1.4826 * np.median(away) / np.sqrt(2))


def _mean(of_model: Mapping[str, Sequence[float]]) -> float:
    return float(np.mean([x for shares in of_model.values() for x in shares]))


def self_repair(stages: Stages) -> dict[str, tuple[float, float]]:
    """Return accuracy before and after one self-repair of the same problems, by model (LiveCodeBench)."""
    before, after = stages["generation"], stages["self-repair"]
    result = {}
    for model in sorted(set(before) & set(after)):
        shared = [q for q in before[model] if q in after[model]]
        result[model] = tuple(float(np.mean([s[model][q][0] for q in shared])) for s in (before, after))
    return {model: (pair[0], pair[1]) for model, pair in result.items()}


def length_correlation(answers: Answers) -> dict[str, float]:
    """Return by model the biserial correlation of log output length and being right.

    Left out: models whose answers ran to one fixed length or have two modes (standard deviation of the logarithm outside
    0.2 to 1.3), and accuracies near 0 or 1.
    """
    result = {}
    for model, tokens in answers.tokens.items():
        known = np.isfinite(answers.right[model]) & (np.nan_to_num(tokens) > 0)
        if known.sum() < 300:
            continue
        right, logs = answers.right[model][known], np.log(tokens[known])
        p = float(right.mean())
        if 0.2 < logs.std() < 1.3 and 0.05 < p < 0.95:
            point = float(np.corrcoef(logs, right)[0, 1])
            density = float(np.exp(-(NORMAL.inv_cdf(p) ** 2) / 2) / np.sqrt(2 * np.pi))
            result[model] = point * float(np.sqrt(p * (1 - p))) / density
    return result


def repeat_length_sigma(answers: Answers, name: str) -> float:
    """Return the standard deviation of log length between runs of one model at several providers."""
    found = []
    for a, b in combinations(REPEATS[name], 2):
        known = (np.nan_to_num(answers.tokens[a]) > 0) & (np.nan_to_num(answers.tokens[b]) > 0)
        found.append(np.log(answers.tokens[a][known] / answers.tokens[b][known]).std() / np.sqrt(2))
    return float(np.mean(found))


def aider_repairs(data: Path) -> list[tuple[str, float, float]]:
    """Return model, pass rate of the first and of the second try (test output shown) of Aider's 133 tasks."""
    import yaml

    with (data / "aider" / "edit_leaderboard.yml").open(encoding="utf-8") as file:
        runs = yaml.safe_load(file)
    best: dict[str, tuple[float, float]] = {}
    for run in runs:
        if run.get("test_cases") == 133 and "pass_rate_2" in run:
            first, second = float(run["pass_rate_1"]) / 100, float(run["pass_rate_2"]) / 100
            if second > best.get(str(run["model"]), (0.0, -1.0))[1]:
                best[str(run["model"])] = (first, second)
    return [(model, first, second) for model, (first, second) in sorted(best.items())]


def bisect(function: Callable[[float], float], target: float, low: float, high: float, steps: int = 12) -> float:
    """Return where an increasing function reaches a target, an end of the range when it does not."""
    if function(low) >= target:
        return low
    if function(high) <= target:
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        if function(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
