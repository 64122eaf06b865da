"""How many calls a server is given at a time before further ones are held back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aragog_env.harness.profile import SATURATION_SHARE, profile_scenario
from aragog_env.specs.scenario import Scenario


@lru_cache(maxsize=32)
def saturation_slots(scenario: Scenario, share: float = SATURATION_SHARE) -> NDArray[np.int64]:
    """Return (R,) the saturation point of every route: the load past which its throughput hardly rises.

    Profiled offline, the same numbers that Aragog's scheduler uses, so that no policy gains by larger or smaller batches.

    Args:
        scenario: its arrivals, horizon and objective do not matter.
        share: of the maximum throughput, at which a server counts as saturated.
    """
    profile = profile_scenario(scenario)
    slots = np.array([profile.of(replica.name).saturation(share) for replica in scenario.cluster.expand()], np.int64)
    slots.setflags(write=False)
    return slots


@lru_cache(maxsize=32)
def slowing(scenario: Scenario) -> NDArray[np.float64]:
    """Return (R,) by which share of an idle server's time each other call on a route makes a call longer.

    On average up to the saturation point, from the same profiles: among n calls a call takes n over the throughput.
    """
    profile = profile_scenario(scenario)
    shares = []
    for replica in scenario.cluster.expand():
        entry = profile.of(replica.name)
        curve = entry.curve_rps()
        full = min(max(2, entry.saturation()), len(curve) - 1)
        # A server that runs one call at a time makes the others wait for it.
        shares.append(max(0.0, full / curve[full] * curve[1] - 1.0) / (full - 1) if full > 1 else 1.0)
    result = np.array(shares)
    result.setflags(write=False)
    return result
