"""Whether policies rank the same live and replayed.

Ranks are by mean JCT over requests. Two policies whose order differs count as the same where each one's live mean lies inside
the other's 95% bootstrap interval. (Requests are resampled one by one, although neighbours share a queue: intervals of runs at
high load are somewhat too narrow.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .statistics import Estimate, bootstrap, paired

Times = Mapping[tuple[int, int], float]
"""(seed, number on the tape) -> JCT in seconds"""


@dataclass(frozen=True)
class Place:
    """A policy's mean JCT. Seconds."""

    policy: str
    live: Estimate
    replayed: float
    again: float
    """nan where it did not decide again."""


@dataclass(frozen=True)
class Swap:
    """Two policies in another order."""

    first: str
    second: str
    """Live, `first` is the faster one."""
    live: Estimate
    """Mean difference of JCT over the same requests, live; negative."""
    replayed: float
    close: bool
    """Each one's live mean lies inside the other's interval."""


@dataclass(frozen=True)
class Ranking:
    """Policies over one traffic, fastest first as measured live."""

    scenario: str
    places: tuple[Place, ...]
    spearman: float
    kendall: float
    swaps: tuple[Swap, ...]
    again_spearman: float = float("nan")
    again_swaps: tuple[Swap, ...] = ()

    @property
    def same(self) -> bool:
        """Whether policies rank the same, but for those that are too close to call."""
        return all(swap.close for swap in self.swaps)


def rank(
    scenario: str, live: Mapping[str, Times], replayed: Mapping[str, Times], again: Mapping[str, Times]
) -> Ranking:
    """Rank policies.

    Args:
        scenario: for people.
        live: by policy, what was measured.
        replayed: with the recorded decisions.
        again: with the policy's own decisions; empty for policies that were not asked.
    """
    places = sorted(
        (Place(p, bootstrap(list(live[p].values())), _mean(replayed[p]), _mean(again.get(p, {}))) for p in live),
        key=lambda place: place.live.value,
    )
    spearman, kendall, swaps = _agreement(places, [place.replayed for place in places], live, replayed)
    if not all(np.isfinite(place.again) for place in places):
        return Ranking(scenario, tuple(places), spearman, kendall, swaps)
    again_spearman, _, again_swaps = _agreement(places, [place.again for place in places], live, again)
    return Ranking(scenario, tuple(places), spearman, kendall, swaps, again_spearman, again_swaps)


def _agreement(
    places: Sequence[Place], other: Sequence[float], live: Mapping[str, Times], values: Mapping[str, Times]
) -> tuple[float, float, tuple[Swap, ...]]:
    """Return Spearman's and Kendall's coefficients between live and other means, and the pairs that swap."""
    n = len(places)
    if n < 2:
        return float("nan"), float("nan"), ()
    ranks = np.argsort(np.argsort(other))
    spearman = 1.0 - 6.0 * float(((ranks - np.arange(n)) ** 2).sum()) / (n * (n * n - 1))
    swapped = [(places[i], places[j]) for i, j in combinations(range(n), 2) if other[i] > other[j]]
    kendall = 1.0 - 4.0 * len(swapped) / (n * (n - 1))
    swaps = []
    for a, b in swapped:
        mine, theirs = live[a.policy], live[b.policy]
        both = sorted(mine.keys() & theirs.keys())
        difference = Estimate(float("nan"), float("nan"), float("nan"), 0)
        if both:
            difference = paired([[mine[key] for key in both]], [[theirs[key] for key in both]])
        close = b.live.low <= a.live.value <= b.live.high and a.live.low <= b.live.value <= a.live.high
        swaps.append(Swap(a.policy, b.policy, difference, _mean(values[a.policy]) - _mean(values[b.policy]), close))
    return spearman, kendall, tuple(swaps)


def _mean(values: Times) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")
