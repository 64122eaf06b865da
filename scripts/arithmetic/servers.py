"""Completions from OpenAI-compatible servers, each distinct call made once and remembered in a file.

The file has one line per call: model, prompt, limit, text, tokens. A measurement that was stopped goes on from it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx

from aragog_env.errors import SpecError

from .measuring import Completion

RETRIES = 4
PAUSE_S = 1.0
"""First pause before a call is made again; it doubles."""
Key = tuple[str, str, int]


@dataclass
class Cache:
    """Calls by (model, prompt, limit), appended to a file as they come in."""

    path: Path | None
    calls: dict[Key, Completion] = field(default_factory=dict)
    _file: TextIO | None = None

    def __post_init__(self) -> None:
        """Read what is there; a line that was cut off by a crash is dropped."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.calls[(row["model"], row["prompt"], row["limit"])] = Completion(row["text"], row["tokens"])
            if not self.path.read_bytes().endswith(b"\n"):
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n")
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, key: Key, completion: Completion) -> None:
        """Remember a call."""
        self.calls[key] = completion
        if self._file is not None:
            row = {
                "model": key[0],
                "prompt": key[1],
                "limit": key[2],
                "text": completion.text,
                "tokens": completion.tokens,
            }
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Servers:
    """Models on servers: calls them with `concurrency` requests at a time each.

    Args:
        urls: base URL of each model, such as ``http://127.0.0.1:8101``, by the name it is served under.
        cache: calls made before.
        concurrency: requests in flight at one model.
        api_key: sent as bearer token; None: none.
        timeout_s: of one call.
    """

    def __init__(
        self,
        urls: Mapping[str, str],
        cache: Cache,
        *,
        concurrency: int = 16,
        api_key: str | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        self.names = tuple(urls)
        self.urls = {name: url.rstrip("/").removesuffix("/v1") for name, url in urls.items()}
        self.cache, self.concurrency, self.timeout_s = cache, concurrency, timeout_s
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.made = 0

    def complete(self, index: int, prompts: Sequence[str], max_tokens: int) -> list[Completion]:
        """Return a completion per prompt.

        Raises:
            SpecError: a server cannot be reached, or does not answer as the OpenAI completions API does.
        """
        name = self.names[index]
        missing = [prompt for prompt in dict.fromkeys(prompts) if (name, prompt, max_tokens) not in self.cache.calls]
        if missing:
            asyncio.run(self._ask_all(name, missing, max_tokens))
        return [self.cache.calls[name, prompt, max_tokens] for prompt in prompts]

    async def _ask_all(self, name: str, prompts: Sequence[str], max_tokens: int) -> None:
        waiting = list(reversed(prompts))
        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(
            headers=self.headers, timeout=self.timeout_s, limits=limits, trust_env=False
        ) as client:

            async def worker() -> None:
                while waiting:
                    prompt = waiting.pop()
                    completion = await self._ask(client, name, prompt, max_tokens)
                    self.cache.add((name, prompt, max_tokens), completion)
                    self.made += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(prompts))):
                    group.create_task(worker())

    async def _ask(self, client: httpx.AsyncClient, name: str, prompt: str, max_tokens: int) -> Completion:
        body = {"model": name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        url = f"{self.urls[name]}/v1/completions"
        reason = ""
        for attempt in range(RETRIES):
            if attempt:
                await asyncio.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                response = await client.post(url, json=body)
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                continue
            if response.status_code >= 500:
                reason = f"status {response.status_code}"
                continue
            return _read(response, url)
        raise SpecError(f"the server of '{name}' did not answer in {RETRIES} tries ({reason})", where=url)


def _read(response: httpx.Response, url: str) -> Completion:
    try:
        data: dict[str, Any] = response.json()
        return Completion(data["choices"][0]["text"], int(data["usage"]["completion_tokens"]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        message = f"this is no answer of a completions API (status {response.status_code}): {response.text[:200]}"
        raise SpecError(message, where=url) from error
