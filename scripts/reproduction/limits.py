"""What separates a policy from the best that is possible: limits of each pair's cluster, by what is known of a query."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.workload.tape import Stream, stream
from baselines.costs import static_cost

from .fluid import engine_seconds, fixed_rps, limit_rps, limit_within_rps
from .plan import WITH_ROUTER, WITHOUT_ROUTER, Pair

MOST_LOSS: Final = 0.02
"""The accuracy that may be lost against the largest configuration."""


def limits(pair: Pair) -> dict[str, Any]:
    """Return fluid limits in requests per second, of seed 0's draws where an oracle needs them.

    `per_input` and `per_workflow` are choices of a configuration, so their limits are exact in the fluid; the others are upper
    bounds on what any policy reaches.
    """
    seven, eight = pair.on(WITH_ROUTER[pair.family]), pair.on(WITHOUT_ROUTER[pair.family])
    table, own = engine_seconds(seven)
    _, other = engine_seconds(eight)
    viable = table.match_largest(stream(0, Stream.OUTCOMES, 0).random(table.queries))
    cost = static_cost(compile_scenario(eight).info, 0)
    cheapest = np.where(viable, cost, np.inf).argmin(axis=1)
    p = table.p_correct.astype(np.float64)
    gap = p[:, -1:] - p
    # Nothing known of a query: one mean query, whose engine-seconds and losses are those of the data set.
    mean_own, mean_gap = own.mean(axis=0, keepdims=True), gap.mean(axis=0, keepdims=True)
    return {
        "workflow": pair.workflow,
        "family": pair.family,
        "rps": {
            "per_input_8": fixed_rps(other, cheapest),
            "per_input_7": fixed_rps(own, cheapest),
            "oracle_8": limit_rps(other, viable),
            "oracle_7": limit_rps(own, viable),
            "probabilities_7": limit_within_rps(own, gap, MOST_LOSS),
            "nothing_7": limit_within_rps(mean_own, mean_gap, MOST_LOSS),
            "largest_7": fixed_rps(own, np.full(table.queries, table.configurations - 1)),
        },
    }
