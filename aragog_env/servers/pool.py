"""All servers of a cluster behind one door: send calls, know which servers are well, read their metrics.

An event loop in a thread of its own does the talking; two callbacks, which run in that thread, say what happened. A server is
*down* when it refuses connections, breaks off, answers 5xx or nonsense, or does not answer at all for a while (calls in flight
there then end). It is up again when /health answers 200 and its quarantine is over, which doubles with every failure in a
row: a server that looks well but fails every call is not tried again and again. What comes of a call that was sent before it
came up again says nothing about the server that is there now.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..errors import AragogError
from .client import CallError, Completion, CompletionRequest, ServerClient, Timeouts
from .endpoints import Endpoint
from .metrics import ServerMetrics

DOWN_KINDS: Final = frozenset(("connect", "timeout", "server", "garbage", "cut"))
"""Failures that say something about the server, not about the request."""


@dataclass(frozen=True)
class PoolOptions:
    """How servers are watched."""

    metrics_interval_s: float = 0.5
    """Between readings of /metrics: what a view shows of a server is at most about this old (see `RouteState.age_s`)."""
    unresponsive_s: float = 15.0
    """A server that does not answer /metrics or /health for this long is taken for hung."""
    quarantine_s: float = 0.5
    """How long a server stays down after one failure, at least; doubles with each failure in a row."""
    quarantine_limit_s: float = 30.0


@dataclass(frozen=True)
class RouteState:
    """What is known of one server; replaced as a whole, so that any thread may read it."""

    up: bool = False
    reason: str = "it does not say that it is healthy"
    """Why it is down."""
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    """The last reading."""
    read_s: float = float("nan")
    """When that was asked for."""
    in_flight: int = 0
    """Our own calls there at that moment."""
    failures: int = 0
    """In a row."""
    quarantined_until_s: float = 0.0
    lives: int = 0
    """Times it came up: a call belongs to the life in which it was sent."""


Finished = Callable[[int, int, Completion | CallError], None]
"""(ticket, route, what came of it)"""
Changed = Callable[[int, RouteState], None]
"""(route, its new state): it went up or down, or new metrics were read"""


class ServerPool:
    """The servers of a cluster, watched and called from a thread of its own.

    Args:
        endpoints: one per route.
        clock: seconds; all times that the pool gives are of this clock.
        finished: told what came of every call, in the loop's thread.
        changed: told about every reading and every change of a server, in the loop's thread.
        timeouts: how long calls may take.
        options: how servers are watched.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        clock: Callable[[], float],
        finished: Finished,
        changed: Changed,
        timeouts: Timeouts | None = None,
        options: PoolOptions | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.options = options or PoolOptions()
        self.routes: list[RouteState] = [RouteState() for _ in self.endpoints]
        self._clock = clock
        self._finished, self._changed = finished, changed
        self._clients = [ServerClient(endpoint, timeouts, clock) for endpoint in self.endpoints]
        self._calls: dict[int, tuple[int, asyncio.Task[Completion | CallError]]] = {}
        self._unwanted: dict[int, str] = {}
        self._started: set[int] = set()
        self._silent_since: dict[int, float] = {}
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._all_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aragog-servers", daemon=True)

    def start(self, patience_s: float) -> None:
        """Begin; returns when every server has answered that it is well, or after `patience_s`."""
        self._thread.start()
        self._all_up.wait(patience_s)

    def submit(self, ticket: int, route: int, request: CompletionRequest) -> None:
        """Send a call; `finished` is told about it under its ticket."""
        self._loop.call_soon_threadsafe(self._submit, ticket, route, request)

    def cancel(self, ticket: int, why: str) -> None:
        """Break a call off, which frees the server of it; `finished` is told, unless it has ended meanwhile."""
        self._loop.call_soon_threadsafe(self._cancel, ticket, why)

    def started(self, ticket: int) -> bool:
        """Return whether the first token of a call in flight has arrived."""
        return ticket in self._started

    def close(self) -> None:
        """Abandon all calls and end the thread; `finished` hears nothing more."""
        if not self._thread.is_alive():
            if not self._loop.is_closed():
                self._loop.close()
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=30.0)
        if self._thread.is_alive():
            raise AragogError("the thread that talks to the servers does not end")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            # What generators of answers that were not read to their end still have to close, asyncio closes in tasks.
            self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        finally:
            self._all_up.set()
            self._loop.close()

    async def _main(self) -> None:
        watchers = [self._loop.create_task(self._watch(r)) for r in range(len(self.endpoints))]
        await self._stopping.wait()
        left = [*watchers, *(task for _, task in self._calls.values())]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for client in self._clients:
            await client.close()

    def _submit(self, ticket: int, route: int, request: CompletionRequest) -> None:
        task = self._loop.create_task(self._call(ticket, route, request))
        self._calls[ticket] = (route, task)
        task.add_done_callback(lambda task: self._ended(ticket, route, task))

    def _cancel(self, ticket: int, why: str) -> None:
        if ticket in self._calls:
            self._unwanted[ticket] = why
            self._calls[ticket][1].cancel()

    async def _call(self, ticket: int, route: int, request: CompletionRequest) -> Completion | CallError:
        life = self.routes[route].lives
        try:
            result: Completion | CallError
            result = await self._clients[route].complete(request, lambda: self._started.add(ticket))
        except CallError as error:
            result = error
        except Exception as error:
            # Whatever it is, the call must not be lost without a word.
            result = CallError("garbage", f"{type(error).__name__}: {error}")
        if life != self.routes[route].lives:
            return result
        if isinstance(result, Completion):
            self._set(route, failures=0)
        elif result.kind in DOWN_KINDS:
            self._down(route, str(result))
        return result

    def _ended(self, ticket: int, route: int, task: asyncio.Task[Completion | CallError]) -> None:
        """Say what came of a call; also of one that was broken off before it began."""
        del self._calls[ticket]
        self._started.discard(ticket)
        why = self._unwanted.pop(ticket, None)
        if not task.cancelled():
            self._finished(ticket, route, task.result())
        elif self._stopping.is_set():
            return
        elif why is not None:
            self._finished(ticket, route, CallError("cancelled", why))
        else:
            # The server was found to hang; the call is over for us.
            reason = f"the server does not answer: {self.routes[route].reason}"
            self._finished(ticket, route, CallError("timeout", reason))

    async def _watch(self, route: int) -> None:
        """Read metrics while the server is up, ask for its health while it is down."""
        while True:
            if self.routes[route].up:
                await self._read(route)
            elif self._clock() >= self.routes[route].quarantined_until_s and await self._clients[route].health():
                self._silent_since.pop(route, None)
                self._set(route, up=True, reason="", lives=self.routes[route].lives + 1)
                self._changed(route, self.routes[route])
                await self._read(route)
                if all(state.up for state in self.routes):
                    self._all_up.set()
            await asyncio.sleep(self.options.metrics_interval_s)

    async def _read(self, route: int) -> None:
        asked_s, in_flight = self._clock(), sum(r == route for r, _ in self._calls.values())
        try:
            metrics = await self._clients[route].metrics()
        except CallError as error:
            if error.kind != "timeout":
                self._down(route, str(error))
                return
            since_s = self._silent_since.setdefault(route, asked_s)
            if self._clock() - since_s >= self.options.unresponsive_s:
                self._down(route, f"no answer for {self._clock() - since_s:.0f} s")
                for of, task in list(self._calls.values()):
                    if of == route:
                        task.cancel()
            return
        self._silent_since.pop(route, None)
        if self.routes[route].up:
            self._set(route, metrics=metrics, read_s=asked_s, in_flight=in_flight)
            self._changed(route, self.routes[route])

    def _down(self, route: int, reason: str) -> None:
        """Take a server out for as long as its quarantine, at least."""
        state, options = self.routes[route], self.options
        if not state.up:
            return  # calls that were in flight together fail together: that is one failure
        quarantine_s = min(options.quarantine_limit_s, options.quarantine_s * 2 ** min(state.failures, 16))
        until_s = self._clock() + quarantine_s
        self._set(route, up=False, reason=reason, failures=state.failures + 1, quarantined_until_s=until_s)
        self._changed(route, self.routes[route])

    def _set(self, route: int, **values: Any) -> None:
        self.routes[route] = replace(self.routes[route], **values)
