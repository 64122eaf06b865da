"""The client against a server that talks like vLLM: answers, times, and every way in which a call can fail."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from aragog_env.errors import SpecError
from aragog_env.servers.client import CallError, Completion, CompletionRequest, ServerClient, Timeouts
from aragog_env.servers.endpoints import Endpoint
from tests.live.fake_server import FakeServer

pytest.importorskip("httpx")
QUICK = Timeouts(connect_s=1.0, first_token_s=0.5, between_tokens_s=0.3, probe_s=0.5)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(lambda prompt: f"you said {prompt}", token_s=0.02) as running:
        yield running


def ask(
    server: FakeServer, prompt: str = "x y", api: str = "chat", timeouts: Timeouts = QUICK, **more: object
) -> Completion:
    async def go() -> Completion:
        endpoint = Endpoint("r", "m", server.url, "served-m", api, **more)  # type: ignore[arg-type]
        async with ServerClient(endpoint, timeouts) as client:
            return await client.complete(CompletionRequest(prompt, 64, seed=7, priority=3))

    return asyncio.run(go())


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_an_answer_with_the_time_of_every_token(server: FakeServer, api: str) -> None:
    result = ask(server, "x y", api)
    assert result.text == "you said x y" and result.finish_reason == "stop"
    assert (result.prompt_tokens, result.output_tokens, result.cached_tokens) == (3, 4, 0)
    assert result.counted and result.token_count == (1, 2, 3, 4)
    # Each token takes 20 ms; a sleep may be longer but is never shorter.
    assert result.first_token_s - result.begin_s >= 0.02
    assert all(s - result.begin_s >= 0.0199 * (i + 1) for i, s in enumerate(result.token_s))
    assert result.begin_s < result.first_token_s == result.token_s[0] < result.token_s[-1] <= result.finish_s
    (body,) = server.seen
    assert body["model"] == "served-m" and body["max_tokens"] == 64 and body["temperature"] == 0.0 and body["seed"] == 7
    assert "priority" not in body and "ignore_eos" not in body  # vLLM refuses a priority unless it schedules by it


def test_what_is_sent_only_where_it_is_understood(server: FakeServer) -> None:
    ask(server, priority=True)
    assert server.seen[-1]["priority"] == 3

    async def go() -> None:
        async with ServerClient(Endpoint("r", "m", server.url, "m")) as client:
            await client.complete(CompletionRequest("x", 2, ignore_eos=True))

    asyncio.run(go())
    assert server.seen[-1]["ignore_eos"] is True and server.seen[-1]["max_tokens"] == 2


@pytest.mark.parametrize(
    ("fault", "kind", "message", "partial"),
    [
        ("500", "server", "500: .*out of cheese", ""),
        ("refuse", "refused", "400: .*too long", ""),
        ("hang", "timeout", "before the first token", ""),
        ("stall", "timeout", "between tokens", "you"),
        ("garbage", "garbage", "no JSON", "you"),
        ("cut", "cut", "connection broke", "you"),
        ("error", "server", "EngineCore died", "you"),
        ("die", "cut", "connection broke", ""),
    ],
)
def test_every_way_to_fail(server: FakeServer, fault: str, kind: str, message: str, partial: str) -> None:
    server.fault = fault
    with pytest.raises(CallError, match=message) as caught:
        ask(server)
    assert (caught.value.kind, caught.value.partial) == (kind, partial)


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = FakeServer()
        server.port = probe.getsockname()[1]
        with pytest.raises(CallError, match="cannot connect") as caught:
            ask(server)
    assert caught.value.kind == "connect"


def test_an_answer_that_is_no_stream(server: FakeServer) -> None:
    async def go() -> None:
        # /metrics answers 200 with plain text to anything
        endpoint = Endpoint("r", "m", f"{server.url}/metrics?", "m")
        async with ServerClient(endpoint, QUICK) as client:
            await client.complete(CompletionRequest("x", 2))

    with pytest.raises(CallError) as caught:
        asyncio.run(go())
    assert caught.value.kind in ("garbage", "refused")


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(key="sesame") as server:
        monkeypatch.setenv("FAKE_KEY", "sesame")
        assert ask(server, api_key_env="FAKE_KEY").text
        monkeypatch.setenv("FAKE_KEY", "wrong")
        with pytest.raises(CallError, match="401"):
            ask(server, api_key_env="FAKE_KEY")
        monkeypatch.delenv("FAKE_KEY")
        with pytest.raises(SpecError, match="FAKE_KEY"):
            ask(server, api_key_env="FAKE_KEY")


def test_proxies_of_the_environment_are_not_used(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(server).text == "you said x y"


def test_health_and_metrics(server: FakeServer) -> None:
    async def go() -> tuple[bool, bool, int | None]:
        async with ServerClient(Endpoint("r", "m", server.url, "m"), QUICK) as client:
            well = await client.health()
            metrics = await client.metrics()
            server.healthy = False
            return well, await client.health(), metrics.kv_blocks

    assert asyncio.run(go()) == (True, False, 257)
