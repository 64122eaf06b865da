"""One server under the OpenAI API: streamed completions with the time of every token, and errors that say what broke.

Times are read where a piece of the answer reaches this process: first token and gaps between tokens are those that a user of
the server would see, network included. vLLM may put several tokens into one piece when it is busy; with
`continuous_usage_stats` each piece says how many there are so far.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import AragogError, SpecError
from .endpoints import Endpoint
from .metrics import ServerMetrics, read_metrics

if TYPE_CHECKING:
    import httpx

Kind = Literal["connect", "timeout", "server", "refused", "garbage", "cut", "cancelled"]
"""``connect``: nobody there. ``timeout``: no answer in time. ``server``: 5xx, or an error in the stream. ``refused``: 4xx, the
server will never take this request. ``garbage``: an answer that is none. ``cut``: the stream ended in the middle.
``cancelled``: we broke it off, the server is not to blame."""


class CallError(AragogError):
    """A call that came to nothing.

    Attributes:
        kind: what went wrong, see `Kind`.
        status: HTTP status, 0 where there was none.
        partial: what of the output had arrived.
    """

    def __init__(self, kind: Kind, message: str, *, status: int = 0, partial: str = "") -> None:
        self.kind: Kind = kind
        self.status = status
        self.partial = partial
        super().__init__(message)


@dataclass(frozen=True)
class Timeouts:
    """How long a client waits. A queue at the server counts into `first_token_s`."""

    connect_s: float = 5.0
    first_token_s: float = 600.0
    between_tokens_s: float = 60.0
    probe_s: float = 5.0
    """For /health and /metrics."""


@dataclass(frozen=True)
class CompletionRequest:
    """What a server is asked."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    """Write exactly `max_tokens` tokens (vLLM only)."""
    priority: int = 0
    """Lower first; sent only to servers that schedule by priority."""


@dataclass(frozen=True)
class Completion:
    """What a server answered. Times are those of the client's clock."""

    text: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens found in the prefix cache; 0 where the server does not say."""
    begin_s: float
    """When the request was sent."""
    first_token_s: float
    finish_s: float
    token_s: tuple[float, ...]
    """When each piece of the output arrived."""
    token_count: tuple[int, ...]
    """Output tokens so far at each of these times."""
    counted: bool
    """Whether the server counted tokens; else one piece is taken for one token."""


@dataclass
class _Stream:
    """What has arrived of an answer so far."""

    begin_s: float
    pieces: list[str] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    token_count: list[int] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def completion(self, finish_s: float) -> Completion:
        """Return the whole answer, once the stream has ended well."""
        written = self.usage.get("completion_tokens")
        output_tokens = written if isinstance(written, int) else len(self.token_s)
        details = self.usage.get("prompt_tokens_details") or {}
        return Completion(
            text=self.text,
            finish_reason=self.finish_reason,
            prompt_tokens=int(self.usage.get("prompt_tokens") or 0),
            output_tokens=output_tokens,
            cached_tokens=int(details.get("cached_tokens") or 0),
            begin_s=self.begin_s,
            # An answer without text still took until its end to say so.
            first_token_s=self.token_s[0] if self.token_s else finish_s,
            finish_s=finish_s,
            token_s=tuple(self.token_s),
            token_count=tuple(self.token_count),
            counted=isinstance(written, int),
        )


class ServerClient:
    """A client of one server; belongs to the event loop it is first used in. Use as an asynchronous context manager.

    Args:
        endpoint: the server.
        timeouts: how long to wait.
        clock: seconds, for all times in answers.

    Raises:
        SpecError: httpx is not installed, or the environment lacks the server's key.
    """

    def __init__(
        self, endpoint: Endpoint, timeouts: Timeouts | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise SpecError("calling servers needs httpx; install it with: pip install 'aragog-gym[live]'") from error
        self.endpoint = endpoint
        self.timeouts = timeouts or Timeouts()
        self.clock = clock
        self._errors = httpx
        # No proxy and no .netrc from the environment, no redirects: only the address that was named is contacted.
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            headers=endpoint.headers(),
            timeout=httpx.Timeout(None, connect=self.timeouts.connect_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> ServerClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def complete(
        self, request: CompletionRequest, on_first_token: Callable[[], None] | None = None
    ) -> Completion:
        """Send a request and return its answer, when it is complete.

        Args:
            request: what to ask.
            on_first_token: called once, as soon as some output has arrived.

        Raises:
            CallError: it came to nothing; see `CallError.kind`.
        """
        path, body = self._body(request)
        stream = _Stream(self.clock())
        try:
            async with asyncio.timeout(self.timeouts.first_token_s) as patience:
                async with self._http.stream("POST", path, json=body) as response:
                    await self._check(response)
                    async with aclosing(self._events(response, stream)) as events:
                        async for data in events:
                            self._take(data, stream)
                            if not stream.token_s:
                                continue
                            patience.reschedule(asyncio.get_running_loop().time() + self.timeouts.between_tokens_s)
                            if on_first_token is not None:
                                on_first_token()
                                on_first_token = None
        except TimeoutError as error:
            where = "between tokens" if stream.token_s else "before the first token"
            raise CallError("timeout", f"no answer in time {where}", partial=stream.text) from error
        except self._errors.ConnectError as error:
            raise CallError("connect", f"cannot connect to {self.endpoint.url}: {error}") from error
        except self._errors.ConnectTimeout as error:
            raise CallError("connect", f"cannot connect to {self.endpoint.url} in time") from error
        except self._errors.RequestError as error:
            what = f"the connection broke ({type(error).__name__}: {error})"
            raise CallError("cut", what, partial=stream.text) from error
        return stream.completion(self.clock())

    async def health(self) -> bool:
        """Return whether the server says that it is well, in time."""
        try:
            async with asyncio.timeout(self.timeouts.probe_s):
                return (await self._http.get("/health")).status_code == 200
        except (TimeoutError, self._errors.RequestError):
            return False

    async def metrics(self) -> ServerMetrics:
        """Return a reading of /metrics; all None where a server has no such page.

        Raises:
            CallError: of kind ``connect``, ``timeout``, ``cut`` or ``server``.
        """
        try:
            async with asyncio.timeout(self.timeouts.probe_s):
                response = await self._http.get("/metrics")
        except TimeoutError as error:
            raise CallError("timeout", "no answer to /metrics in time") from error
        except self._errors.ConnectError as error:
            raise CallError("connect", f"cannot connect to {self.endpoint.url}: {error}") from error
        except self._errors.RequestError as error:
            raise CallError("cut", f"the connection broke ({type(error).__name__})") from error
        if response.status_code >= 500:
            raise CallError("server", f"/metrics answered {response.status_code}", status=response.status_code)
        return read_metrics(response.text) if response.status_code == 200 else ServerMetrics()

    async def reset_prefix_cache(self) -> bool | None:
        """Empty the prefix cache; returns whether that was done, or None where the server has no such door (vLLM only)."""
        try:
            async with asyncio.timeout(self.timeouts.probe_s):
                response = await self._http.post("/reset_prefix_cache")
            return bool(response.json()["success"]) if response.status_code == 200 else None
        except (TimeoutError, self._errors.RequestError, ValueError, KeyError, TypeError):
            return None

    def _body(self, request: CompletionRequest) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self.endpoint.served_name,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.ignore_eos:
            body["ignore_eos"] = True
        if self.endpoint.priority:
            body["priority"] = request.priority
        if self.endpoint.api == "chat":
            return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": request.prompt}]}
        return "/v1/completions", {**body, "prompt": request.prompt}

    async def _check(self, response: httpx.Response) -> None:
        """Refuse an answer that is no stream."""
        status = response.status_code
        if status != 200:
            text = (await response.aread())[:500].decode("utf-8", "replace")
            kind: Kind = "server" if status >= 500 or status in (408, 429) else "refused"
            raise CallError(kind, f"the server answered {status}: {text}", status=status)
        content = response.headers.get("content-type", "")
        if not content.startswith("text/event-stream"):
            raise CallError(
                "garbage", f"the server answered with '{content}', not with a stream of events", status=status
            )

    async def _events(self, response: httpx.Response, stream: _Stream) -> AsyncGenerator[dict[str, Any]]:
        """Yield the JSON of each event until the stream says that it is done."""
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                if line and not line.startswith((":", "event:", "id:", "retry:")):
                    raise CallError("garbage", f"not an event: '{line[:80]}'", partial=stream.text)
                continue
            text = line[5:].strip()
            if text == "[DONE]":
                if not stream.finish_reason:
                    raise CallError("cut", "the stream ended without a reason to finish", partial=stream.text)
                return
            try:
                data = json.loads(text)
            except ValueError as error:
                raise CallError("garbage", f"an event that is no JSON: '{text[:80]}'", partial=stream.text) from error
            if not isinstance(data, dict):
                raise CallError("garbage", f"an event that is no object: '{text[:80]}'", partial=stream.text)
            yield data
        raise CallError("cut", "the stream ended in the middle", partial=stream.text)

    def _take(self, data: dict[str, Any], stream: _Stream) -> None:
        """Add one event to the answer."""
        if "error" in data:
            raise CallError("server", f"the server broke off: {str(data['error'])[:300]}", partial=stream.text)
        try:
            choices = data["choices"]
            usage = data.get("usage") or {}
            if usage:
                stream.usage = usage
            if not choices:
                return
            choice = choices[0]
            piece = (choice["delta"].get("content") if self.endpoint.api == "chat" else choice["text"]) or ""
            reason = choice.get("finish_reason")
            written = usage.get("completion_tokens")
            before = stream.token_count[-1] if stream.token_count else 0
            count = written if isinstance(written, int) else before + bool(piece)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise CallError("garbage", f"an event of another form: {str(data)[:80]}", partial=stream.text) from error
        if count > before:
            stream.token_s.append(self.clock())
            stream.token_count.append(count)
        if piece:
            stream.pieces.append(piece)
        if reason:
            stream.finish_reason = str(reason)
