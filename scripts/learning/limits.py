"""What no scheduler can beat, about: the least mean completion time of the fluid model, by convex optimisation.

Engines are described by their offline profiles alone. An engine that is used to a share u of its highest throughput holds
N(u) calls, the inverse of its throughput curve. If requests run configurations in any mix that their viable sets allow, the
calls in service are the sum of N over the engines, and by Little's law that over the arrival rate is the mean time that a
request spends in service. Where a request has one call at a time, this is its completion time (tools left out), and the least
sum over all mixes is about a lower bound for a steady stream: it has no bursts and no queues, and knows the true lengths.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.harness.profile import profile_scenario
from aragog_env.specs.scenario import Scenario
from policies.viability import make_viable_sets

from ..reproduction.fluid import engine_seconds
from .plan import Ceilings, Size, at_load, cases

_STEPS: Final = 400
_SLACK: Final = 0.995
"""The curve is taken to go straight up from this share of the highest throughput on, so that it has a slope everywhere."""


def viable_sets(scenario: Scenario, source: str) -> NDArray[np.bool_]:
    """Return the viable sets (Q, C) of a scenario with one workflow; an oracle's are those of one drawn episode."""
    compiled = compile_scenario(scenario)
    queries = compiled.outcomes[0].queries
    sets = make_viable_sets(source)
    sets.receive_outcomes(compiled.outcomes, (np.random.default_rng(0).random(queries),))
    sets.reset(scenario)
    return np.stack([sets.viable(compiled.info, 0, query) for query in range(queries)])


def is_chain(scenario: Scenario) -> bool:
    """Return whether a request of the only workflow has one call at a time."""
    (graph,) = compile_scenario(scenario).graphs
    longest: list[int] = []
    for node in graph.nodes:
        longest.append(1 + max((longest[parent] for parent in node.parents), default=0))
    return max(longest) == len(graph.nodes)


def measure(size: Size, ceilings: Ceilings) -> dict[str, float | None]:
    """Return `least_time_in_service_s` by the name of each case's scenario at each load; None where it says nothing."""
    found: dict[str, float | None] = {}
    for case in cases(size):
        allowed: NDArray[np.bool_] | None = None
        for load in size.loads:
            scenario = at_load(case, size, load, ceilings)
            found[scenario.name] = None
            if is_chain(scenario):
                allowed = viable_sets(scenario, case.sets) if allowed is None else allowed
                least = least_time_in_service_s(scenario, allowed, scenario.workload.arrivals.rate_rps or 0.0)
                found[scenario.name] = least if np.isfinite(least) else None
    return found


def least_time_in_service_s(scenario: Scenario, allowed: NDArray[np.bool_], rate_rps: float) -> float:
    """Return the least mean seconds in service per request at a rate; nan where no mix can serve it.

    By the method of Frank and Wolfe: every request takes what is cheapest at the present slopes, and the mix moves there.

    Args:
        scenario: with one workflow and one kind of server per model.
        allowed: (Q, C) viable configurations.
        rate_rps: requests per second.
    """
    table, seconds = engine_seconds(scenario)  # (Q, C, M) at saturation
    curves = {entry.model: entry.curve_rps() for entry in profile_scenario(scenario).replicas}
    shares = [np.minimum(curves[m] / curves[m][-1], 1.0) for m in table.models]
    barred, rows = np.where(allowed, 0.0, np.inf), np.arange(len(allowed))

    def used(prices: NDArray[np.float64]) -> NDArray[np.float64]:
        chosen = (seconds @ prices + barred).argmin(axis=1)
        return np.asarray(rate_rps * seconds[rows, chosen].mean(axis=0))

    mix = used(np.ones(len(shares)))
    for step in range(_STEPS):
        prices = np.array([_slope(share, u) for share, u in zip(shares, mix, strict=True)])
        mix += (used(prices) - mix) * 2 / (step + 3)
    if (mix > _SLACK).any():
        return float("nan")
    held = sum(float(np.interp(u, share, np.arange(len(share)))) for share, u in zip(shares, mix, strict=True))
    return held / rate_rps


def _slope(share: NDArray[np.float64], u: float) -> float:
    """Return dN / du of an engine's calls, growing on where the engine is overloaded."""
    inside = min(u, _SLACK)
    n = int(np.searchsorted(share, inside))
    slope = 1.0 / max(1e-9, share[min(n + 1, len(share) - 1)] - share[max(0, n - 1)]) * 2.0
    return float(slope * (1.0 + 1e3 * max(0.0, u - _SLACK)))
