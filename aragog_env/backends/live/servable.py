"""Which ready calls some server can take now, and which will never be served: their requests fail, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...servers.pool import RouteState
from .progress import LiveCall, LiveRequest, ReadyCalls
from .view import Routing

Failure = tuple[LiveRequest, str]
"""A request that is to be given up, and why."""


class Servable:
    """Looks at the ready calls of an episode.

    Args:
        ready: they.
        routing: where calls may go.
        patience_s: how long a call waits for a server.
    """

    def __init__(self, ready: ReadyCalls, routing: Routing, patience_s: float) -> None:
        self._ready, self._routing, self.patience_s = ready, routing, patience_s

    def now(self, states: Sequence[RouteState], now_s: float) -> list[LiveCall]:
        """Return the ready calls that some server can take now; note since when the others cannot."""
        found = []
        for call in self._ready:
            if self._routing.permitted(states, call):
                call.parked_s = None
                found.append(call)
            elif call.parked_s is None:
                call.parked_s = now_s
        return found

    def parked(self) -> bool:
        """Return whether some call waits for a server."""
        return any(call.parked_s is not None for call in self._ready)

    def due_s(self) -> list[float]:
        """Return when the waiting of each parked call is over."""
        return [call.parked_s + self.patience_s for call in self._ready if call.parked_s is not None]

    def lost(self, states: Sequence[RouteState], now_s: float) -> Iterator[Failure]:
        """Yield the requests of calls that no server will take, or that have waited too long for one."""
        self.now(states, now_s)
        for call in self._ready:
            if call.request.status != "in flight":
                continue
            if not self._routing.candidates(call):
                yield call.request, f"stage '{call.stage}': every server refuses the call; {call.last_error}"
            elif call.parked_s is not None and now_s - call.parked_s >= self.patience_s:
                waited = f"no server could take the call for {now_s - call.parked_s:.0f} s"
                yield call.request, f"stage '{call.stage}': {waited}; {call.last_error or 'all are down'}"

    def lacking(self, states: Sequence[RouteState]) -> list[LiveCall]:
        """Return the ready calls of which some server is down, or has failed them: a policy may hold them back for it."""
        planned, permitted = self._routing.planned, self._routing.permitted
        return [call for call in self._ready if len(permitted(states, call)) < planned(call)]

    def held_back(self, states: Sequence[RouteState]) -> Iterator[Failure]:
        """Yield the requests whose calls wait for such a server, while the policy sends them to no other."""
        for call in self.lacking(states):
            if call.request.status == "in flight":
                waited = f"the policy waits for a server that did not come back in {self.patience_s:.0f} s"
                yield call.request, f"stage '{call.stage}': {waited}; {call.last_error or 'it is down'}"
