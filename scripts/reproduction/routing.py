"""Routing time against end-to-end latency (Fig. 15)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.specs.load import load_scenario
from policies.viability import make_viable_sets

from .findings import Data
from .plan import Size

_QUERIES: Final = 200


def overheads(data: Data, size: Size) -> list[dict[str, Any]]:
    """Return the share of latency that routing takes, per pair, at the lowest and at the highest rate.

    Routing is not cut short here, so this is an upper bound: with a budget it stops when the wait for the first stage is over.
    """
    found = []
    for pair in data["pairs"]:
        curve = pair["curves"]["aragog"]
        routing_s = mean_routing_s(f"aragog-{pair['workflow']}-{pair['family']}", size.viable)
        latencies_s = {"low rate": curve["jct_mean_s"][0].value, "high rate": curve["jct_mean_s"][-1].value}
        found.append(
            {
                "workflow": pair["workflow"],
                "family": pair["family"],
                "routing_s": routing_s,
                "share": {name: routing_s / latency_s for name, latency_s in latencies_s.items()},
            }
        )
    return found


def mean_routing_s(name: str, viable: str) -> float:
    """Return the mean time that finding viable sets takes, over the first queries of a scenario's workflow."""
    scenario = load_scenario(name)
    compiled = compile_scenario(scenario)
    sets = make_viable_sets(viable)
    sets.receive_outcomes(compiled.outcomes)
    sets.reset(scenario)
    times = []
    for query in range(min(_QUERIES, compiled.outcomes[0].queries)):
        sets.viable(compiled.info, 0, query)
        times.append(sets.routing_s(0, query))
    return float(np.mean(times))
