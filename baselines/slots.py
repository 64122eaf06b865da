"""How many calls a server is given at a time before further ones are held back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aragog_env.harness.profile import profile_scenario
from aragog_env.specs.scenario import Scenario


@lru_cache(maxsize=32)
def saturation_slots(scenario: Scenario) -> NDArray[np.int64]:
    """Return (R,) the saturation point of every route: the load past which its throughput hardly rises.

    Profiled offline, the same numbers that Aragog's scheduler uses, so that no policy gains by larger or smaller batches.
    """
    profile = profile_scenario(scenario)
    slots = np.array([profile.of(replica.name).saturation() for replica in scenario.cluster.expand()], np.int64)
    slots.setflags(write=False)
    return slots
