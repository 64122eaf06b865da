"""Iteration time in integer picoseconds: the one formula that every engine here evaluates.

Whole picoseconds make sums exact in any order, so the compiled engine can add up a thousand decode iterations in closed
form and still equal, to the bit, an engine that adds them one by one. An int64 holds 106 days.

    iteration = step_ps[tokens] + sample_ps[sampled] + sum over prefill chunks of chunk_ps(new, cached)
                + decode_base_ps[decodes, seg] + decode_slope_ps[decodes, seg] * kv_tokens

`tokens` are all tokens scheduled in the iteration, `sampled` the requests that sample one, `decodes` the requests that
generate (one new token and nothing else to compute), `kv_tokens` the sum of their contexts, the new token included.
`seg` is the stretch of the piecewise linear decode-attention curve that the mean context kv_tokens / decodes lies in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..jit import inlined

PS_PER_S = 1_000_000_000_000
"""Picoseconds in a second."""
PS_PER_MS = 1_000_000_000


class CompiledLatency(NamedTuple):
    """One replica's iteration time, tabulated for direct look-up. T = most tokens, B = most sequences."""

    step_ps: NDArray[np.int64]  # (T + 1,) everything that depends on the token count, and the constant overhead
    sample_ps: NDArray[np.int64]  # (B + 1,) logits and sampling
    decode_base_ps: NDArray[np.int64]  # (B + 1, X) row 0 is zero
    decode_slope_ps: NDArray[np.int64]  # (B + 1, X) per token of KV
    decode_context: NDArray[np.int64]  # (X,) mean-context grid; seg 0 is below the first point
    chunk_new: NDArray[np.int64]  # (N,) grid of new tokens of a prefill chunk
    chunk_cached: NDArray[np.int64]  # (C,) grid of its cached context
    chunk_table_ps: NDArray[np.float64]  # (N, C)


@inlined
def decode_segment(context_grid, decodes, kv_tokens):
    """Return the segment of the decode curve for `decodes` sequences with `kv_tokens` tokens of context in all."""
    segment = 0
    for j in range(context_grid.shape[0] - 1):
        if kv_tokens >= decodes * context_grid[j]:
            segment = j + 1
        else:
            break
    return segment


@inlined
def chunk_ps(chunk_new, chunk_cached, table_ps, new, cached):
    """Return the attention time of one prefill chunk of `new` tokens on `cached` earlier ones.

    Bilinear on the grid and beyond its upper ends; a chunk below the smallest grid point takes its share of that point.
    """
    scale = 1.0
    if new < chunk_new[0]:
        scale = new / chunk_new[0]
        new = chunk_new[0]
    i = 0
    while i < chunk_new.shape[0] - 2 and new >= chunk_new[i + 1]:
        i += 1
    j = 0
    while j < chunk_cached.shape[0] - 2 and cached >= chunk_cached[j + 1]:
        j += 1
    u = (new - chunk_new[i]) / (chunk_new[i + 1] - chunk_new[i])
    v = (cached - chunk_cached[j]) / (chunk_cached[j + 1] - chunk_cached[j])
    low = table_ps[i, j] + (table_ps[i, j + 1] - table_ps[i, j]) * v
    high = table_ps[i + 1, j] + (table_ps[i + 1, j + 1] - table_ps[i + 1, j]) * v
    return np.int64((low + (high - low) * u) * scale + 0.5)


def iteration_ps(
    latency: CompiledLatency, chunks: list[tuple[int, int]], decodes: int, kv_tokens: int, sampled: int
) -> int:
    """Return the duration of one iteration in picoseconds, in plain Python.

    Args:
        latency: the replica's tables.
        chunks: (new tokens, cached context) of every prefill chunk.
        decodes: how many requests generate one token.
        kv_tokens: the sum of their contexts, the new tokens included.
        sampled: how many requests sample a token (decodes and finished prompts).
    """
    tokens = decodes + sum(new for new, _ in chunks)
    total = int(latency.step_ps[tokens]) + int(latency.sample_ps[sampled])
    for new, cached in chunks:
        total += int(chunk_ps.py_func(latency.chunk_new, latency.chunk_cached, latency.chunk_table_ps, new, cached))
    if decodes:
        segment = decode_segment.py_func(latency.decode_context, decodes, kv_tokens)
        total += int(latency.decode_base_ps[decodes, segment])
        total += int(latency.decode_slope_ps[decodes, segment]) * kv_tokens
    return total
