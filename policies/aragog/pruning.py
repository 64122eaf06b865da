"""Which heads to ask: near-monotone pruning on the lattice of per-stage model sizes.

Swapping one stage of a configuration to a larger model almost never hurts (Aragog, section 3.1). So a *clear yes* of one
head decides every configuration above it, a *clear no* every one below it; an answer inside the band around the threshold
decides its own configuration only. The next head is the one that is expected to decide most of what is still undecided.
Routing may stop after any head: what is undecided then is not viable.

"Almost" and "expected" are under what the training questions tell: how often each head says yes, and how its answers go
together with those of others (`ScorePrior`). A configuration whose head is expected to say the contrary is left undecided by
its neighbours' answers; one whose head could only say one thing, with a stated certainty, is decided without being asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import numba
import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.outcomes import configuration_digits

# mypy: disable-error-code="no-untyped-def"

MAX_CONFIGURATIONS: Final = 8192
"""The order of the lattice is a matrix of as many rows and columns: 64 MiB."""
UNDECIDED: Final = 0
YES: Final = 1
NO: Final = -1
FACTORS: Final = 2
"""Common factors of the scores of a query. One is not enough (how easy), a third changes little."""
_LOGISTIC: Final = 1.702
"""The normal distribution function at x is close to the logistic function at 1.702 x."""

Floats = NDArray[np.float32]
_kernel = cast(Callable[[Callable[..., Any]], Any], numba.njit(cache=True))


def lattice_order(models: int, n_llm: int) -> NDArray[np.bool_]:
    """Return whether configuration a uses no larger model than b in any stage, (C, C) at [a, b].

    Raises:
        SpecError: more than `MAX_CONFIGURATIONS` configurations.
    """
    count = models**n_llm
    if count > MAX_CONFIGURATIONS:
        raise SpecError(
            f"{models} models in {n_llm} LLM stages make {count:,} configurations; routing handles at most "
            f"{MAX_CONFIGURATIONS:,}: use fewer models or a smaller fan-out"
        )
    one_stage = np.arange(models)[:, None] <= np.arange(models)[None, :]
    order = np.ones((1, 1), np.bool_)
    for _ in range(n_llm):
        order = np.kron(order, one_stage)
    return order


def cover_pairs(models: int, n_llm: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs (smaller, larger) that differ by one step of one stage, two arrays (P,)."""
    digits = configuration_digits(models, n_llm)
    smaller = [np.flatnonzero(digits[:, slot] < models - 1) for slot in range(n_llm)]
    larger = [below + models ** (n_llm - 1 - slot) for slot, below in enumerate(smaller)]
    return np.concatenate(smaller), np.concatenate(larger)


class ScorePrior(NamedTuple):
    """What is known of a query's scores before any head was asked: score = mean + factors @ z + noise, z standard normal."""

    mean: Floats  # (C,)
    factors: Floats  # (C, F)
    noise: Floats  # (C,) variance, positive

    @classmethod
    def of(cls, scores: Floats, factors: int = FACTORS) -> ScorePrior:
        """Fit it to the scores of training questions, (Q, C), by principal components."""
        mean = scores.mean(axis=0)
        centred = (scores - mean).astype(np.float64)
        _, size, axes = np.linalg.svd(centred, full_matrices=False)
        kept = min(factors, len(size))
        loadings = axes[:kept].T * (size[:kept] / math.sqrt(len(scores)))
        rest = centred.var(axis=0) - (loadings**2).sum(axis=1)
        floor = 1e-3 * float(centred.var()) + 1e-6
        return cls(mean, loadings.astype(np.float32), (np.maximum(rest, 0) + floor).astype(np.float32))

    @classmethod
    def independent(cls, yes: NDArray[np.floating[Any]]) -> ScorePrior:
        """Return the prior under which head c says yes with probability `yes[c]`, whatever others say."""
        odds = np.log(np.clip(yes, 1e-6, 1 - 1e-6) / (1 - np.clip(yes, 1e-6, 1 - 1e-6)))
        count = len(yes)
        return cls((odds / _LOGISTIC).astype(np.float32), np.zeros((count, 0), np.float32), np.ones(count, np.float32))

    def shifted(self, threshold: float) -> ScorePrior:
        """Return the prior of logits minus a threshold."""
        return self._replace(mean=(self.mean - np.float32(threshold)).astype(np.float32))


class QueryState(NamedTuple):
    """Where pruning stands, b queries at once."""

    verdict: NDArray[np.int8]  # (b, C) YES, NO or UNDECIDED
    step: NDArray[np.int32]  # (b, C) heads asked when it was decided; the largest: 0
    above: NDArray[np.int32]  # (b, C) undecided configurations that a clear yes decides, itself included
    below: NDArray[np.int32]  # (b, C) and a clear no
    z: NDArray[np.float64]  # (b, F) posterior mean of the factors
    covariance: NDArray[np.float64]  # (b, F, F)
    asked: NDArray[np.int32]  # (b,)


def begin(order: NDArray[np.bool_], queries: int, factors: int) -> QueryState:
    """Return the state in which only the largest configuration, the last, is decided (and decides nothing else)."""
    count = len(order)
    above = order[:, :-1].sum(axis=1, dtype=np.int32)
    below = order[:-1, :].sum(axis=0, dtype=np.int32)
    state = QueryState(
        np.full((queries, count), UNDECIDED, np.int8),
        np.zeros((queries, count), np.int32),
        np.tile(above, (queries, 1)),
        np.tile(below, (queries, 1)),
        np.zeros((queries, factors)),
        np.tile(np.eye(factors), (queries, 1, 1)),
        np.zeros(queries, np.int32),
    )
    state.verdict[:, -1] = YES
    return state


@_kernel
def _expected_score(prior, state, q, c):
    """Return what head c will say of query q, in standard deviations above its threshold, given the answers so far."""
    factors = prior.factors.shape[1]
    mean, variance = np.float64(prior.mean[c]), np.float64(prior.noise[c])
    for i in range(factors):
        mean += prior.factors[c, i] * state.z[q, i]
        for j in range(factors):
            variance += prior.factors[c, i] * state.covariance[q, i, j] * prior.factors[c, j]
    return mean / math.sqrt(variance)


@_kernel
def next_head(prior, state, q):
    """Return the head to ask about query q: most decisions expected; -1 when all is decided.

    Of equal ones the first is taken, so that the order depends on nothing but the answers.
    """
    best, most = -1, -1.0
    for c in range(state.verdict.shape[1]):
        if state.verdict[q, c] != UNDECIDED:
            continue
        yes = 1.0 / (1.0 + math.exp(-_LOGISTIC * _expected_score(prior, state, q, c)))
        expected = yes * state.above[q, c] + (1.0 - yes) * state.below[q, c]
        if expected > most:
            best, most = c, expected
    return best


@_kernel
def _settle(order, c, answer, state, q):
    state.verdict[q, c] = answer
    state.step[q, c] = state.asked[q]
    for a in range(order.shape[0]):
        if order[a, c]:
            state.above[q, a] -= 1
        if order[c, a]:
            state.below[q, a] -= 1


@_kernel
def _learn(prior, c, score, state, q):
    """Update the factors of query q by one answer (a Kalman step)."""
    factors = prior.factors.shape[1]
    gain = np.zeros(factors)
    expected, variance = np.float64(prior.mean[c]), np.float64(prior.noise[c])
    for i in range(factors):
        expected += prior.factors[c, i] * state.z[q, i]
        for j in range(factors):
            gain[i] += state.covariance[q, i, j] * prior.factors[c, j]
    for i in range(factors):
        variance += prior.factors[c, i] * gain[i]
    for i in range(factors):
        state.z[q, i] += gain[i] * (score - expected) / variance
        for j in range(factors):
            state.covariance[q, i, j] -= gain[i] * gain[j] / variance


@_kernel
def conclude(order, prior, certain, state, q):
    """Decide the configurations of query q whose heads are `certain` standard deviations or more from their threshold."""
    for c in range(order.shape[0]):
        if state.verdict[q, c] == UNDECIDED:
            score = _expected_score(prior, state, q, c)
            if score >= certain:
                _settle(order, c, YES, state, q)
            elif score <= -certain:
                _settle(order, c, NO, state, q)


@_kernel
def answer_head(order, prior, c, score, margin, certain, state, q):
    """Take the answer of head c about query q, `score` above its threshold, and decide what follows from it."""
    state.asked[q] += 1
    _learn(prior, c, score, state, q)
    _settle(order, c, YES if score >= 0.0 else NO, state, q)
    if score >= margin:
        for b in range(order.shape[0]):
            undecided = order[c, b] and state.verdict[q, b] == UNDECIDED
            if undecided and _expected_score(prior, state, q, b) >= 0.0:
                _settle(order, b, YES, state, q)
    elif score <= -margin:
        for a in range(order.shape[0]):
            undecided = order[a, c] and state.verdict[q, a] == UNDECIDED
            if undecided and _expected_score(prior, state, q, a) <= 0.0:
                _settle(order, a, NO, state, q)
    conclude(order, prior, certain, state, q)


@_kernel
def _prune_all(order, prior, score, margin, certain, state):
    for q in range(score.shape[0]):
        conclude(order, prior, certain, state, q)
        c = next_head(prior, state, q)
        while c >= 0:
            answer_head(order, prior, c, score[q, c], margin, certain, state, q)
            c = next_head(prior, state, q)


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning decided, Q queries and C configurations. Since the order is fixed by the answers, a budget just cuts it."""

    verdict: NDArray[np.int8]  # (Q, C) YES or NO
    step: NDArray[np.int32]  # (Q, C) how many heads had been asked when it was decided; the largest: 0
    asked: NDArray[np.int32]  # (Q,) heads asked until everything was decided

    def sets(self, heads: int | None = None) -> NDArray[np.bool_]:
        """Return the viable sets after at most `heads` heads per query (None: all it takes), (Q, C)."""
        yes: NDArray[np.bool_] = self.verdict == YES
        return yes if heads is None else yes & (self.step <= heads)


def prune(
    order: NDArray[np.bool_], prior: ScorePrior, score: Floats, margin: float, certain: float = math.inf
) -> Pruned:
    """Decide all configurations of Q queries, given what every head would say if asked.

    Args:
        order: (C, C) from `lattice_order`.
        prior: what the training questions tell of scores.
        score: (Q, C) logit of each head minus its threshold: at least 0 is a yes.
        margin: half width of the band in which an answer decides its own configuration only.
        certain: standard deviations from the threshold at which a head that has not been asked counts as decided.
    """
    state = begin(order, len(score), prior.factors.shape[1])
    _prune_all(order, prior, np.ascontiguousarray(score, np.float32), margin, certain, state)
    return Pruned(state.verdict, state.step, state.asked)
