"""What failures of calls say about a server, without servers: the test decides what comes of every call, and when."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator

import pytest

from aragog_env.servers.client import CallError, Completion, CompletionRequest
from aragog_env.servers.endpoints import Endpoint
from aragog_env.servers.metrics import ServerMetrics
from aragog_env.servers.pool import PoolOptions, RouteState, ServerPool

pytest.importorskip("httpx")
ANSWER = Completion("a", "stop", 1, 1, 0, 0.0, 0.0, 0.0, (0.0,), (1,), True)
CUT = CallError("cut", "the connection broke")


class Held:
    """Stands for a server's client: calls end when the test says so, and the server is always well."""

    def __init__(self) -> None:
        self.calls: dict[str, asyncio.Future[Completion]] = {}

    async def complete(self, request: CompletionRequest, on_first_token: Callable[[], None]) -> Completion:
        self.calls[request.prompt] = asyncio.get_running_loop().create_future()
        return await self.calls[request.prompt]

    async def health(self) -> bool:
        return True

    async def metrics(self) -> ServerMetrics:
        return ServerMetrics()

    async def close(self) -> None:
        pass


class Pool:
    """A pool of one server, and what it tells."""

    def __init__(self) -> None:
        self.ended: queue.Queue[int] = queue.Queue()
        self.ups: queue.Queue[bool] = queue.Queue()
        self.client = Held()
        options = PoolOptions(metrics_interval_s=0.005, quarantine_s=0.02)
        self.pool = ServerPool(
            [Endpoint("r", "m", "http://127.0.0.1:9", "m")], time.perf_counter, self._finished, self._changed,
            options=options,
        )  # fmt: skip
        self.pool._clients = [self.client]  # type: ignore[list-item]
        self._up = False

    def _finished(self, ticket: int, route: int, result: Completion | CallError) -> None:
        self.ended.put(ticket)

    def _changed(self, route: int, state: RouteState) -> None:
        if state.up != self._up:
            self._up = state.up
            self.ups.put(state.up)

    def send(self, ticket: int) -> None:
        self.pool.submit(ticket, 0, CompletionRequest(str(ticket), 1))
        deadline = time.monotonic() + 10.0
        while str(ticket) not in self.client.calls and time.monotonic() < deadline:
            time.sleep(0.001)

    def end(self, ticket: int, result: Completion | CallError) -> RouteState:
        """Let a call end; returns the server's state thereafter."""
        future = self.client.calls[str(ticket)]
        tell = future.set_exception if isinstance(result, CallError) else future.set_result
        self.pool._loop.call_soon_threadsafe(tell, result)
        assert self.ended.get(timeout=10.0) == ticket
        return self.pool.routes[0]

    def next_up(self) -> bool:
        return self.ups.get(timeout=10.0)


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    made.pool.start(10.0)
    assert made.next_up()
    yield made
    made.pool.close()


def test_a_failure_of_a_call_of_before_says_nothing_about_the_server_that_came_back(pool: Pool) -> None:
    for ticket in (0, 1, 2):
        pool.send(ticket)
    assert pool.end(0, CUT).failures == 1
    assert [pool.next_up(), pool.next_up()] == [False, True]
    state = pool.end(1, CallError("timeout", "no answer in time"))
    assert state.up and state.failures == 1 and pool.ups.empty()
    # Nor does its success: that was the server of before.
    assert pool.end(2, ANSWER).failures == 1


def test_calls_of_now_say_how_the_server_is(pool: Pool) -> None:
    pool.send(0)
    pool.end(0, CUT)
    assert [pool.next_up(), pool.next_up()] == [False, True]
    pool.send(1)
    assert pool.end(1, CUT).failures == 2, "failures in a row are counted, for the quarantine"
    assert [pool.next_up(), pool.next_up()] == [False, True]
    pool.send(2)
    assert pool.end(2, CallError("refused", "too long")).up
    pool.send(3)
    assert pool.end(3, ANSWER).failures == 0


def test_calls_that_fail_together_are_one_failure(pool: Pool) -> None:
    """Also one that was sent while the server was down, before anybody could know."""
    for ticket in (0, 1):
        pool.send(ticket)
    pool.client.health = _not_well  # type: ignore[method-assign]
    assert not pool.end(0, CUT).up
    pool.send(2)
    assert pool.end(1, CUT).failures == pool.end(2, CUT).failures == 1


async def _not_well() -> bool:
    return False
