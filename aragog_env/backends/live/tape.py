"""The traffic of a live episode: the tape that the simulator would draw, played in real time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from ...outcomes import OutcomeTable
from ...specs.scenario import Scenario
from ...workload.tape import Tape, draw_tape


@dataclass(frozen=True)
class _Count:
    """All that drawing a tape needs of an outcome table."""

    queries: int


def draw_live_tape(scenario: Scenario, queries: Sequence[int], seed: int) -> Tape:
    """Draw the traffic of an episode over `queries` questions per workflow.

    With as many questions as the outcome tables have rows it is the very traffic that the simulator has under this seed.
    """
    return draw_tape(scenario, cast("list[OutcomeTable]", [_Count(n) for n in queries]), seed)


class ArrivalQueue:
    """Which request of the tape comes next, and when; in a closed loop completions decide."""

    def __init__(self, tape: Tape) -> None:
        self._think_s = tape.think_s
        self._n = len(tape.workflow)
        self._heap: list[tuple[float, int]] = []
        if tape.think_s is None:
            self._heap = [(float(time_s), i) for i, time_s in enumerate(tape.arrival_s)]
        else:
            # As `simulation._set_arrivals`: the users' first requests in the order in which they come.
            users = min(len(tape.think_s), self._n)
            self._heap = [(time_s, i) for i, time_s in enumerate(sorted(tape.think_s[:users, 0].tolist()))]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_s(self) -> float:
        """When the next request comes; infinite where none is known to come."""
        return self._heap[0][0] if self._heap else math.inf

    def pop(self) -> tuple[float, int]:
        """Take the next request: (time, place on the tape)."""
        return heapq.heappop(self._heap)

    def finished(self, tape: int, now_s: float) -> None:
        """A request is over, well or not: in a closed loop its user thinks and then sends the next."""
        if self._think_s is None:
            return
        users = len(self._think_s)
        following = tape + users
        if following < self._n:
            heapq.heappush(self._heap, (now_s + float(self._think_s[following % users, following // users]), following))

    def forget(self, tapes: Iterable[int]) -> None:
        """Take requests out that have arrived already, in an earlier session."""
        gone = set(tapes)
        self._heap = [entry for entry in self._heap if entry[1] not in gone]
        heapq.heapify(self._heap)
