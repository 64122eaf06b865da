"""A server that talks like vLLM's OpenAI server and can be told to misbehave. Standard library only.

In tests it runs in a thread (`FakeServer`); as a program (`python fake_server.py --port 8101 ...`) it stands in for
`vllm.entrypoints.openai.api_server` and understands the arguments that matter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Answer = Callable[[str], str]

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{model}"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="{model}"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="{model}"}} {usage}
vllm:prefix_cache_queries_total{{engine="0",model_name="{model}"}} {prompt}.0
vllm:prefix_cache_hits_total{{engine="0",model_name="{model}"}} 16.0
vllm:num_preemptions_total{{engine="0",model_name="{model}"}} 0.0
vllm:prompt_tokens_total{{engine="0",model_name="{model}"}} {prompt}.0
vllm:generation_tokens_total{{engine="0",model_name="{model}"}} {written}.0
vllm:cache_config_info{{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="257",num_gpu_blocks_override="None"}} 1.0
"""


class FakeServer:
    """One server.

    Attributes:
        fault: what the next completions do: "" (work), "500", "refuse", "hang" (no answer), "stall" (stop in the middle),
            "garbage", "cut", "error" (an error event in the stream), "die" (the whole server, at the next completion).
        faults_left: how many completions have the fault; then it works again. None: all.
        dev: whether it has the door /reset_prefix_cache, as vLLM in its mode for developers; `resets` counts its use.
        healthy: what /health says; None: it does not answer, and /metrics neither.
        seen: bodies of the completions that were asked for.
    """

    def __init__(
        self, answer: Answer = lambda prompt: "a b c", *, model: str = "m", token_s: float = 0.001, max_seqs: int = 8,
        key: str = "", host: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self.answer, self.model, self.token_s, self.max_seqs, self.key, self.host = (
            answer, model, token_s, max_seqs, key, host,
        )  # fmt: skip
        self.fault, self.faults_left = "", None
        self.healthy: bool | None = True
        self.seen: list[dict[str, Any]] = []
        self.dev, self.resets = False, 0
        self.port = 0
        self.running = self.waiting = self.prompt = self.written = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # In a thread

    def start(self) -> FakeServer:
        """Listen, on the port of before if there was one."""
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve(started.set)), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def stop(self) -> None:
        """Break all connections off, as a killed process does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._die)
            self._thread.join(10)

    def __enter__(self) -> FakeServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # In the event loop

    async def serve(self, started: Callable[[], object] = lambda: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._seats = asyncio.Semaphore(self.max_seqs)
        self.running = self.waiting = 0
        server = await asyncio.start_server(self._connected, self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        started()
        await self._over.wait()
        server.close()
        while asyncio.all_tasks() - {asyncio.current_task()}:  # connections that are being accepted have tasks too
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0.001)
        for _ in range(5):  # what was aborted closes its socket
            await asyncio.sleep(0)

    def _die(self) -> None:
        self._over.set()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Known from the first moment on, so that none is left open when the server dies.
        task = asyncio.get_running_loop().create_task(self._client(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(lambda task: (self._tasks.discard(task), writer.transport.abort()))  # no goodbye

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                await self._respond(head[0].split()[1], headers, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass

    async def _respond(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        if path in ("/health", "/metrics") and self.healthy is None:
            await asyncio.sleep(3600)
        if path == "/health":
            await self._send(writer, 200 if self.healthy else 503, "")
        elif path == "/reset_prefix_cache" and self.dev:
            self.resets += 1
            await self._send(writer, 200, '{"success": true}', "application/json")
        elif path == "/metrics":
            text = METRICS.format(
                model=self.model, running=self.running, waiting=self.waiting, usage=self.running / 64,
                prompt=self.prompt, written=self.written,
            )  # fmt: skip
            await self._send(writer, 200, text, "text/plain; version=0.0.4")
        elif self.key and headers.get("authorization") != f"Bearer {self.key}":
            await self._send(writer, 401, '{"error": "Unauthorized"}', "application/json")
        elif path in ("/v1/chat/completions", "/v1/completions"):
            await self._complete(path.startswith("/v1/chat"), json.loads(body), writer)
        else:
            await self._send(writer, 404, "")

    def _next_fault(self) -> str:
        fault = self.fault
        if self.faults_left is not None:
            self.faults_left -= 1
            if self.faults_left < 0:
                return ""
        return fault

    async def _complete(self, chat: bool, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.seen.append(body)
        fault = self._next_fault()
        if fault == "die":
            self._die()
            await asyncio.sleep(3600)
        if fault == "500":
            await self._send(writer, 500, '{"error": "out of cheese"}', "application/json")
            return
        if fault == "refuse":
            await self._send(writer, 400, '{"error": "prompt too long"}', "application/json")
            return
        if fault == "hang":
            await asyncio.sleep(3600)
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        self.waiting += 1
        async with self._seats:
            self.waiting -= 1
            self.running += 1
            try:
                await self._stream(chat, prompt, body, fault, writer)
            finally:
                self.running -= 1

    async def _stream(
        self, chat: bool, prompt: str, body: dict[str, Any], fault: str, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        words = self.answer(prompt).split(" ")[: body["max_tokens"]]
        usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt), "completion_tokens": 0}
        self.prompt += len(prompt)
        if chat:
            await self._event(writer, self._chunk(chat, "", None, usage, role=True))
        for i, word in enumerate(words):
            await asyncio.sleep(self.token_s)
            if i == 1 and fault in ("cut", "stall", "garbage", "error"):
                if fault == "cut":
                    writer.transport.abort()
                    return
                if fault == "error":
                    await self._event(writer, {"error": {"message": "EngineCore died", "code": 500}})
                if fault == "garbage":
                    await self._raw(writer, "data: {this is no JSON\n\n")
                await asyncio.sleep(3600)
            self.written += 1
            usage = {**usage, "completion_tokens": i + 1, "total_tokens": len(prompt) + i + 1}
            text = word if i == 0 else " " + word
            await self._event(writer, self._chunk(chat, text, "stop" if i == len(words) - 1 else None, usage))
        final = {**usage, "prompt_tokens_details": {"cached_tokens": 16 if len(prompt) > 16 else 0}}
        await self._event(writer, {"id": "x", "object": "chunk", "choices": [], "usage": final})
        await self._raw(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _chunk(
        self, chat: bool, text: str, reason: str | None, usage: dict[str, Any], *, role: bool = False
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if chat:
            choice["delta"] = {"role": "assistant", "content": ""} if role else {"content": text}
        else:
            choice["text"] = text
        return {"id": "x", "object": "chunk", "model": self.model, "choices": [choice], "usage": usage}

    async def _event(self, writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
        await self._raw(writer, f"data: {json.dumps(data)}\n\n")

    async def _raw(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
        await writer.drain()

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, text: str, content: str = "text/plain; charset=utf-8"
    ) -> None:
        body = text.encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {content}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()


def main() -> None:
    """Stand in for vLLM's server: --startup-s waits before listening, --crash ends with a message."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="m")
    parser.add_argument("--startup-s", type=float, default=0.0)
    parser.add_argument("--token-s", type=float, default=0.001)
    parser.add_argument("--crash", action="store_true")
    options, _ = parser.parse_known_args()
    print("fake server", " ".join(sys.argv[1:]), flush=True)
    time.sleep(options.startup_s)
    if options.crash:
        print("RuntimeError: CUDA out of memory (not really)", file=sys.stderr)
        sys.exit(1)
    server = FakeServer(
        lambda prompt: "a b c", model=options.served_model_name, token_s=options.token_s, host=options.host
    )
    server.port = options.port
    asyncio.run(server.serve())


if __name__ == "__main__":
    main()
