"""What a profile means for a scheduler: how many slots an engine has, and what one more call in it gains.

Aragog, section 3.2: S_m(t), the free slots of an engine, is its profiled saturation point minus its occupancy (running and
waiting); the forecast gain of one more call is the step of the throughput-load curve, thr[load + 1] - thr[load]. Gains are raw
calls per second, added up over models: the paper's U is the *total* throughput gain, so a call on a faster model counts more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.harness.profile import Profile


@dataclass(frozen=True, eq=False)
class Curves:
    """Slots and gains of every route. R routes, L = most slots."""

    slots: NDArray[np.int32]  # (R,) calls an engine should hold at most, at least 1
    gain_rps: NDArray[np.float64]  # (R, L) [r, b]: gain of the call that raises the load from b to b + 1


def curves_for(profile: Profile, routes: Sequence[str], max_seqs: Sequence[int], share: float) -> Curves:
    """Return the slots and gains of the routes called `routes`.

    Args:
        profile: covers every route.
        routes: names of the replicas.
        max_seqs: most running calls of each; no engine gets more slots than that.
        share: the throughput, as a share of its maximum, at which an engine counts as saturated.

    Raises:
        SpecError: the profile lacks a route, or `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise SpecError(f"policy 'aragog': saturation must be above 0 and at most 1, got {share}")
    entries = [profile.of(name) for name in routes]
    slots = [max(1, min(e.saturation(share), limit)) for e, limit in zip(entries, max_seqs, strict=True)]
    gain = np.zeros((len(routes), max(slots)))
    for r, (entry, count) in enumerate(zip(entries, slots, strict=True)):
        gain[r, :count] = np.maximum(np.diff(entry.curve_rps())[:count], 0.0)
    return Curves(np.array(slots, np.int32), gain)
