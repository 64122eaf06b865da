"""What the recorded policy did, as something that can be done again although times differ a little.

Each call goes to the server that it went to. Calls that are ready together go in the recorded order. A call that the policy
held back (it chose to wait although the call was ready) goes when that has happened which came last before it was sent: a call
or tool ended, a request arrived, or the time came that the policy had named.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..recording.reader import Recording

Event = tuple[int, int]
"""(request on the tape, node that ended), with ARRIVAL as the node of an arrival."""
ARRIVAL: Final = -1
_ROUNDING_S: Final = 1e-9
"""Clocks are read in floating point and, in simulation, tick in whole picoseconds."""


@dataclass(frozen=True)
class PlannedCall:
    """One dispatch of a recording."""

    order: int
    route: int
    priority: int
    after: Event | None = None
    """What must have happened first."""
    held_s: float = 0.0
    """How long after it was ready it may go at the earliest."""


def planned_calls(recording: Recording, index: Mapping[int, int]) -> dict[Event, PlannedCall]:
    """Return the dispatches of a recording by (request on the tape, node).

    Args:
        recording: of a run that ended.
        index: number on the tape of each recorded request.
    """
    decisions = {row["decision"]: row for row in recording.rows("decisions")}
    last_waits = _last_waits(recording, decisions)
    times, events = _events(recording, index)
    plan: dict[Event, PlannedCall] = {}
    rows = list(recording.rows("calls", "status IN ('ok', 'lost', 'in flight')"))
    rows.sort(key=lambda row: float(row["dispatch_s"]))
    for order, row in enumerate(rows):
        if row["request"] not in index:
            continue
        key = (index[row["request"]], row["node"])
        after, held_s = None, 0.0
        decision = decisions.get(row["decision"])
        wait = last_waits.get((row["request"], row["node"]))
        if decision is not None and wait is not None and wait["time_s"] <= decision["time_s"]:
            i = bisect.bisect_right(times, decision["time_s"] + _ROUNDING_S) - 1
            until_s = wait["until_s"]
            if until_s is not None and decision["time_s"] >= until_s - _ROUNDING_S and (i < 0 or times[i] < until_s):
                held_s = max(0.0, until_s - row["ready_s"])
            elif i >= 0 and times[i] > row["ready_s"]:
                after = events[i]
        plan[key] = PlannedCall(order, row["route"], row["priority"], after, held_s)
    return plan


def _last_waits(recording: Recording, decisions: Mapping[int, dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    """Return, for each call that a policy saw and waited, the last such decision."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number, row in decisions.items():
        if row["action"] == "wait" and row["ready"]:
            seen = recording.view(number).calls
            for key in zip(seen["request"].tolist(), seen["node"].tolist(), strict=True):
                found[key] = row
    return found


def _events(recording: Recording, index: Mapping[int, int]) -> tuple[list[float], list[Event]]:
    """Return when what happened that a policy is asked after, in order."""
    found: list[tuple[float, Event]] = []
    for row in recording.rows("requests"):
        found.append((row["arrival_s"], (row["request"], ARRIVAL)))
    for row in recording.rows("calls", "status = 'ok'"):
        found.append((row["finish_s"], (row["request"], row["node"])))
    for row in recording.rows("tools"):
        found.append((row["finish_s"], (row["request"], row["node"])))
    kept = [(time_s, (index[request], node)) for time_s, (request, node) in sorted(found) if request in index]
    return [time_s for time_s, _ in kept], [event for _, event in kept]
