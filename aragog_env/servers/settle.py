"""Between two live runs: wait until the servers have nothing to do, and empty their prefix caches where they allow it.

Else the second run would find the first one's prompts in the caches, and with the same questions all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from ..errors import AragogError
from .client import CallError, ServerClient, Timeouts
from .endpoints import Endpoint

_POLL_S: Final = 0.2
_TRIES: Final = 10
"""Of emptying a cache: a server refuses while calls that were broken off still hold blocks."""


def settle(endpoints: Sequence[Endpoint], patience_s: float = 60.0) -> tuple[str, ...]:
    """Wait until every server is well and idle, then empty its prefix cache.

    Args:
        endpoints: the servers.
        patience_s: how long to wait for each.

    Returns:
        What could not be had, a sentence each: a server that others keep busy, a cache that stays as it is.

    Raises:
        AragogError: a server does not answer.
    """

    async def all_of_them() -> list[list[str]]:
        return await asyncio.gather(*(_settle(endpoint, patience_s) for endpoint in endpoints))

    return tuple(note for notes in asyncio.run(all_of_them()) for note in notes)


async def _settle(endpoint: Endpoint, patience_s: float) -> list[str]:
    deadline = time.monotonic() + patience_s
    async with ServerClient(endpoint, Timeouts()) as client:
        while not await client.health():
            if time.monotonic() >= deadline:
                message = (
                    f"server '{endpoint.name}' at {endpoint.url} does not answer; start it, then go on with --resume"
                )
                raise AragogError(message)
            await asyncio.sleep(_POLL_S)
        notes = []
        while busy := await _busy(client):
            if time.monotonic() >= deadline:
                notes.append(f"server '{endpoint.name}' is not idle: it has {busy} requests of others")
                break
            await asyncio.sleep(_POLL_S)
        for _ in range(_TRIES):
            emptied = await client.reset_prefix_cache()
            if emptied is not False:
                break
            await asyncio.sleep(_POLL_S)
        if not emptied:
            why = "the server does not allow it (vLLM: VLLM_SERVER_DEV_MODE=1)" if emptied is None else "it is in use"
            notes.append(f"the prefix cache of server '{endpoint.name}' was not emptied: {why}")
        return notes


async def _busy(client: ServerClient) -> int:
    """Return how many requests a server has; 0 where it does not say."""
    try:
        metrics = await client.metrics()
    except CallError:
        return 0
    return (metrics.running or 0) + (metrics.waiting or 0)
