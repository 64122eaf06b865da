"""When requests are submitted: at their own time, or a think time after another one finished."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .config import CallTimes, EngineRequest


class OpenLoop:
    """Hands out requests when they are due; followers become due after their predecessor's finish."""

    def __init__(self, requests: Iterable[EngineRequest]) -> None:
        self._due: list[tuple[int, int, EngineRequest]] = []
        self._followers: dict[int, list[EngineRequest]] = {}
        for request in requests:
            if request.after is None:
                self._push(request, request.arrival_ps)
            else:
                self._followers.setdefault(request.after, []).append(request)

    @property
    def next_ps(self) -> int | None:
        """When the next request is due, None if none is."""
        return self._due[0][0] if self._due else None

    def take(self, now_ps: int) -> list[EngineRequest]:
        """Return the requests that have arrived by `now_ps`, by (arrival, id)."""
        arrived = []
        while self._due and self._due[0][0] <= now_ps:
            arrived.append(heapq.heappop(self._due)[2])
        return arrived

    def completed(self, calls: Sequence[CallTimes]) -> None:
        """Note finished requests: their followers arrive a think time later."""
        for call in calls:
            for request in self._followers.pop(call.request_id, ()):
                self._push(request, call.finish_ps + request.delay_ps)

    def _push(self, request: EngineRequest, arrival_ps: int) -> None:
        due = replace(request, arrival_ps=arrival_ps, after=None)
        heapq.heappush(self._due, (arrival_ps, request.request_id, due))
