"""What a vLLM server says of itself under /metrics: Prometheus text in, the few numbers that scheduling needs out.

Names differ between versions, so each number has several; a number that a server does not give is None, never 0. Checked
against vLLM 0.32 (`vllm/v1/metrics/loggers.py`); the older names are those of vLLM's V0 engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_SAMPLE: Final = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL: Final = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')

# Counters have the ending _total on the wire; some versions of the client library show the name without it too.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "prefix_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_queries",
        "vllm:gpu_prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries",
    ),
    "prefix_hits": (
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_hits",
        "vllm:gpu_prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits",
    ),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prompt_tokens": ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
    "generation_tokens": ("vllm:generation_tokens_total", "vllm:generation_tokens"),
}
_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_CONFIG: Final = "vllm:cache_config_info"


@dataclass(frozen=True)
class ServerMetrics:
    """One reading. Counters count since the server began; several engines behind one address are added up."""

    running: int | None = None
    """Requests in the running batch."""
    waiting: int | None = None
    kv_usage: float | None = None
    """Share of the KV blocks in use, 0 to 1; the mean over engines."""
    kv_blocks: int | None = None
    block_size: int | None = None
    prefix_queries: int | None = None
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int | None = None
    """Prompt tokens found there."""
    preemptions: int | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield (name, labels, value) of every sample in Prometheus text; lines that are none are passed over."""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {key: re.sub(r"\\(.)", r"\1", text) for key, text in _LABEL.findall(match[2] or "")}
        yield match[1], labels, value


def read_metrics(text: str) -> ServerMetrics:
    """Return what `text` says; what it does not say is None."""
    values: dict[str, list[float]] = {}
    blocks: list[int] = []
    sizes: list[int] = []
    for name, labels, value in samples(text):
        if name == _CONFIG:
            blocks += _whole(labels.get("num_gpu_blocks"))
            sizes += _whole(labels.get("block_size"))
        elif math.isfinite(value):
            values.setdefault(name, []).append(value)
    counts = {
        field: next((round(sum(values[name])) for name in names if name in values), None)
        for field, names in _NAMES.items()
    }
    usage = next((values[name] for name in _USAGE if name in values), None)
    return ServerMetrics(
        **counts,
        kv_usage=None if usage is None else sum(usage) / len(usage),
        kv_blocks=sum(blocks) or None,
        block_size=sizes[0] if sizes else None,
    )


def _whole(text: str | None) -> list[int]:
    """Return a label's number as a list of one, or of none where it is missing or no number ('None')."""
    return [int(text)] if text is not None and text.isdigit() else []
