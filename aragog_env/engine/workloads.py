"""Seeded engine-level workloads: the six of the comparison with real vLLM, and random small ones.

They test the scheduler, so what matters is that every rule of it is exercised, not that the traffic is fresh
from a trace. Chat lengths are log-normal with the mean and deviation of the logarithms of the public Azure
LLM inference trace 2023, conversation (19,366 requests; CC-BY, github.com/Azure/AzurePublicDataset); agentic
lengths follow reference measurements of tool results (median 330 tokens) and turns (median 121 tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..latency.compiled import PS_PER_MS, PS_PER_S, CompiledLatency
from .config import EngineConfig, EngineRequest

CHAT_PROMPT_LOG = (6.633, 0.985)
"""Mean and deviation of log(prompt tokens), Azure 2023 conversation."""
CHAT_OUTPUT_LOG = (5.019, 0.859)


class EngineWorkload(NamedTuple):
    """An engine and the requests it serves."""

    config: EngineConfig
    requests: tuple[EngineRequest, ...]


def synthetic_latency(config: EngineConfig) -> CompiledLatency:
    """Return made-up iteration times of the order of an 8B model on an A100, with no round number in them.

    Not measured and not for results: it only gives comparisons between engines a clock.
    """
    tokens = np.arange(config.max_num_batched_tokens + 1)
    sequences = np.arange(config.max_num_seqs + 1)
    step_ms = 9.713 + np.maximum(0.0, tokens - 61.0) * 0.05131 + 0.00217 * tokens
    base_ms = 0.2113 + 0.01379 * sequences[:, None] + np.array([0.0, 0.0137, 0.0631, 0.1733])[None, :]
    slope_ps = np.array([93_137, 91_019, 87_433, 83_207])[None, :] + (sequences[:, None] % 7) * 113
    base_ps = (base_ms * PS_PER_MS).astype(np.int64)
    base_ps[0] = 0
    slope_ps[0] = 0
    chunk_new = np.array([16, 64, 256, 1024, 2048, 8192])
    chunk_cached = np.array([0, 512, 2048, 8192, 16384])
    new, cached = np.meshgrid(chunk_new, chunk_cached, indexing="ij")
    chunk_ps = (0.0719 * new * (cached + 0.5 * new) + 4_013.7 * new + 37_000_000.3) * 1.0
    return CompiledLatency(
        step_ps=(step_ms * PS_PER_MS).astype(np.int64) + tokens % 13,
        sample_ps=((0.3071 + 0.00193 * sequences) * PS_PER_MS).astype(np.int64),
        decode_base_ps=base_ps,
        decode_slope_ps=slope_ps.astype(np.int64),
        decode_context=np.array([192, 768, 3072, 12288], np.int64),
        chunk_new=chunk_new.astype(np.int64),
        chunk_cached=chunk_cached.astype(np.int64),
        chunk_table_ps=chunk_ps.astype(np.float64),
    )


def _log_normal(rng: np.random.Generator, log: tuple[float, float], low: int, high: int) -> int:
    return int(np.clip(round(float(rng.lognormal(*log))), low, high))


def _poisson_ps(rng: np.random.Generator, count: int, rate_rps: float) -> list[int]:
    """Return `count` arrival times of a Poisson process."""
    gaps_ps = rng.exponential(PS_PER_S / rate_rps, size=count)
    return [int(t) for t in np.cumsum(gaps_ps.astype(np.int64))]


def _chat_lengths(rng: np.random.Generator, most: int) -> tuple[int, int]:
    """Return prompt and output tokens of a conversation turn with at most `most` tokens in all."""
    while True:
        prompt = _log_normal(rng, CHAT_PROMPT_LOG, 1, most)
        output = _log_normal(rng, CHAT_OUTPUT_LOG, 1, most)
        if prompt + output <= most:
            return prompt, output


def _unshared(request_id: int, arrival_ps: int, prompt: int, output: int, priority: int = 0) -> EngineRequest:
    """Return a request that has no token in common with any other."""
    return EngineRequest(
        request_id=request_id,
        arrival_ps=arrival_ps,
        prompt=((2 * request_id, prompt),),
        output_tokens=output,
        output_content_id=2 * request_id + 1,
        priority=priority,
    )


def chat(seed: int = 0, count: int = 1000) -> EngineWorkload:
    """Conversation traffic on a server with room: Poisson, 6.45 requests/s, no shared prefixes."""
    rng = np.random.default_rng([seed, 1])
    arrivals = _poisson_ps(rng, count, 6.45)
    config = EngineConfig(max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=16384, num_gpu_blocks=27000)
    return EngineWorkload(config, tuple(_unshared(i, t, *_chat_lengths(rng, 4096)) for i, t in enumerate(arrivals)))


def pressure(seed: int = 0, count: int = 900) -> EngineWorkload:
    """The same traffic at 12 requests/s on 4,000 blocks without prefix cache: preemption by recompute."""
    rng = np.random.default_rng([seed, 2])
    arrivals = _poisson_ps(rng, count, 12.0)
    config = EngineConfig(
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        max_model_len=8192,
        num_gpu_blocks=4000,
        enable_prefix_caching=False,
    )
    return EngineWorkload(config, tuple(_unshared(i, t, *_chat_lengths(rng, 4096)) for i, t in enumerate(arrivals)))


def agentic(seed: int = 0, sessions: int = 60, turns: int = 8) -> EngineWorkload:
    """Sessions of turns: each prompt is the previous one, its output, a tool result. The cache overflows."""
    rng = np.random.default_rng([seed, 3])
    config = EngineConfig(max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=32768, num_gpu_blocks=9000)
    requests: list[EngineRequest] = []
    content = iter(range(1, 10**9))
    for arrival_ps in _poisson_ps(rng, sessions, 2.0):
        prompt: tuple[tuple[int, int], ...] = ((0, 512), (next(content), int(rng.integers(1000, 3500))))
        for turn in range(turns):
            request = EngineRequest(
                request_id=len(requests),
                arrival_ps=arrival_ps if turn == 0 else 0,
                prompt=prompt,
                output_tokens=_log_normal(rng, (np.log(121), 0.9), 4, 1200),
                output_content_id=next(content),
                after=None if turn == 0 else len(requests) - 1,
                delay_ps=0 if turn == 0 else int((0.2 + rng.exponential(2.0)) * PS_PER_S),
            )
            requests.append(request)
            tool = (next(content), _log_normal(rng, (np.log(330), 1.0), 16, 4000))
            prompt = (*prompt, (request.output_content_id, request.output_tokens), tool)
    return EngineWorkload(config, tuple(requests))


def shared_prefix(seed: int = 0, count: int = 500) -> EngineWorkload:
    """Bursts of simultaneous requests that share prefixes, whole prompts and even outputs.

    Equal prompts whose length is a multiple of 16 recompute their last block side by side, and equal outputs
    (greedy decoding) fill blocks side by side: equal content in several blocks.
    """
    rng = np.random.default_rng([seed, 4])
    config = EngineConfig(max_num_seqs=48, max_num_batched_tokens=1024, max_model_len=4096, num_gpu_blocks=700)
    prefixes = [(content, int(rng.integers(10, 180)) * 16 + int(rng.integers(0, 2)) * 5) for content in range(12)]
    requests: list[EngineRequest] = []
    arrival_ps = 0
    while len(requests) < count:
        arrival_ps += int(rng.exponential(0.5) * PS_PER_S)
        prefix = prefixes[int(rng.integers(len(prefixes)))]
        for _ in range(min(int(rng.integers(1, 12)), count - len(requests))):
            i = len(requests)
            output = int(rng.integers(1, 120))
            kind = rng.integers(4)
            prompt: tuple[tuple[int, int], ...]
            if kind == 0:  # the very same prompt, and the same output as far as it goes
                prompt, output_id = (prefix,), 1000 + prefix[0]
            elif kind == 1:  # a question drawn from few, outputs of their own
                prompt, output_id = (prefix, (2000 + int(rng.integers(5)), 48)), 10**6 + i
            else:
                prompt, output_id = (prefix, (3000 + i, int(rng.integers(1, 200)))), 10**6 + i
            requests.append(EngineRequest(i, arrival_ps, prompt, output, output_id))
    return EngineWorkload(config, tuple(requests))


def priority(seed: int = 0, count: int = 500) -> EngineWorkload:
    """Four priorities under memory pressure, with equal arrivals, a prefix cache and shared prefixes."""
    rng = np.random.default_rng([seed, 5])
    config = EngineConfig(
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        max_model_len=6144,
        num_gpu_blocks=1200,
        scheduling_policy="priority",
    )
    requests: list[EngineRequest] = []
    arrival_ps = 0
    while len(requests) < count:
        arrival_ps += int(rng.exponential(0.4) * PS_PER_S)
        for _ in range(min(int(rng.integers(1, 5)), count - len(requests))):
            i = len(requests)
            prompt, output = _chat_lengths(rng, 2048)
            request = _unshared(10_000 + i, arrival_ps, prompt, output, int(rng.integers(4)))
            shared = ((int(rng.integers(4)), 320), *request.prompt)
            requests.append(replace(request, request_id=i, prompt=shared))
    return EngineWorkload(config, tuple(requests))


def mixed_lengths(seed: int = 0, count: int = 400) -> EngineWorkload:
    """Prompts of a few tokens among prompts of up to 30,000, few places to run, outputs from one token."""
    rng = np.random.default_rng([seed, 6])
    config = EngineConfig(max_num_seqs=16, max_num_batched_tokens=2048, max_model_len=32768, num_gpu_blocks=4200)
    requests = []
    for i, arrival_ps in enumerate(_poisson_ps(rng, count, 3.2)):
        if rng.random() < 0.12:
            prompt = int(rng.integers(6_000, 30_000))
        else:
            prompt = int(rng.integers(1, 64))
        output = int(rng.choice([1, 2, 16, 17, int(rng.integers(1, 600))]))
        requests.append(_unshared(i, arrival_ps, prompt, output))
    return EngineWorkload(config, tuple(requests))


def random_small(seed: int) -> EngineWorkload:
    """A tiny random engine, starved in some way, and random requests: for comparisons by the thousand."""
    rng = np.random.default_rng([seed, 7])
    max_model_len = int(rng.integers(40, 200))
    needed = -(-max_model_len // 16)
    config = EngineConfig(
        max_num_seqs=int(rng.choice([1, 2, 3, 8, 32])),
        max_num_batched_tokens=int(rng.choice([3, 7, 16, 33, 64, 256])),
        max_model_len=max_model_len,
        num_gpu_blocks=1 + needed + int(rng.choice([0, 1, 3, needed, 4 * needed])),
        enable_prefix_caching=bool(rng.random() < 0.7),
        scheduling_policy=str(rng.choice(["fcfs", "priority"])),
        async_scheduling=bool(rng.random() < 0.4),
    )
    spread_ps = float(rng.choice([0.01, 0.1, 1.0])) * PS_PER_S
    requests: list[EngineRequest] = []
    arrival_ps = 0
    for i in range(int(rng.integers(2, 40))):
        arrival_ps += int(rng.random() * spread_ps) if rng.random() < 0.6 else 0
        segments = [(int(rng.integers(4)), 16 * int(rng.integers(0, 3)) + int(rng.integers(0, 2)) * 7)]
        segments.append((100 + int(rng.integers(3)) if rng.random() < 0.5 else 200 + i, int(rng.integers(1, 33))))
        parent = None
        if requests and rng.random() < 0.4:
            parent = requests[int(rng.integers(len(requests)))]
            segments = [*parent.prompt, (parent.output_content_id, parent.output_tokens), *segments]
        prompt = tuple(segment for segment in segments if segment[1])
        length = sum(tokens for _, tokens in prompt)
        if length >= max_model_len:
            prompt, length = ((300 + i, 5),), 5
        shared_output = rng.random() < 0.2
        requests.append(
            EngineRequest(
                request_id=i,
                arrival_ps=arrival_ps if parent is None else 0,
                prompt=prompt,
                output_tokens=int(rng.integers(1, max_model_len - length + 1)),
                output_content_id=400 if shared_output else 1000 + i,
                priority=int(rng.integers(3)),
                after=None if parent is None else parent.request_id,
                delay_ps=0 if rng.random() < 0.3 else int(rng.random() * spread_ps),
            )
        )
    return EngineWorkload(config, tuple(requests))


WORKLOADS: dict[str, Callable[[], EngineWorkload]] = {
    "chat": chat,
    "pressure": pressure,
    "agentic": agentic,
    "shared_prefix": shared_prefix,
    "priority": priority,
    "mixed_lengths": mixed_lengths,
}
"""The workloads of the comparison with real vLLM (`python -m scripts.compare_with_vllm`)."""


def asynchronous(workload: EngineWorkload) -> EngineWorkload:
    """Return the same requests on the same engine with asynchronous scheduling."""
    return EngineWorkload(replace(workload.config, async_scheduling=True), workload.requests)
