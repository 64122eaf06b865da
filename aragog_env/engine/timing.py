"""Compiled iteration times: one mixed iteration, and whole stretches of decode-only iterations in closed form.

In a stretch every one of D running requests generates one token per iteration, so the KV tokens read grow by D each time
and, inside one segment of the piecewise linear decode curve, the iteration times are an arithmetic series. With integer
picoseconds its sum is exact, hence equal to adding the iterations one by one.
"""

from __future__ import annotations

import numpy as np

from ..jit import inlined, kernel
from ..latency.compiled import chunk_ps, decode_segment

# mypy: disable-error-code="no-untyped-def"


@inlined
def decode_ps(tables, row, decodes, kv_tokens):
    """Return the attention time of `decodes` generating requests with `kv_tokens` tokens of context in all."""
    segment = decode_segment(tables.decode_context[row], decodes, kv_tokens)
    return tables.decode_base_ps[row, decodes, segment] + tables.decode_slope_ps[row, decodes, segment] * kv_tokens


@inlined
def prefill_ps(tables, row, new, cached):
    """Return the attention time of a prefill chunk of `new` tokens on `cached` earlier ones."""
    rows, columns = tables.chunk_sizes[row, 0], tables.chunk_sizes[row, 1]
    return chunk_ps(
        tables.chunk_new[row, :rows], tables.chunk_cached[row, :columns], tables.chunk_table_ps[row], new, cached
    )


@inlined
def _segment_steps(tables, row, decodes, kv_tokens, segment, steps):
    """Return how many of `steps` iterations, the first reading `kv_tokens`, stay inside `segment`."""
    grid = tables.decode_context[row]
    if segment >= grid.shape[0] - 1:
        return steps
    limit = decodes * grid[segment]
    return min(steps, max(1, (limit - kv_tokens + decodes - 1) // decodes))


@inlined
def stretch_ps(tables, row, decodes, kv_tokens, steps):
    """Return the duration of `steps` decode-only iterations of `decodes` requests, the first reading `kv_tokens`."""
    fixed = tables.step_ps[row, decodes] + tables.sample_ps[row, decodes]
    total = 0
    while steps > 0:
        segment = decode_segment(tables.decode_context[row], decodes, kv_tokens)
        n = _segment_steps(tables, row, decodes, kv_tokens, segment, steps)
        slope = tables.decode_slope_ps[row, decodes, segment]
        first = fixed + tables.decode_base_ps[row, decodes, segment] + slope * kv_tokens
        total += n * first + slope * decodes * (n * (n - 1) // 2)
        kv_tokens += n * decodes
        steps -= n
    return total


@kernel
def steps_until(tables, row, decodes, kv_tokens, steps, elapsed_ps):
    """Return the least number of iterations (1..steps) of a stretch that last at least `elapsed_ps`, and their time."""
    fixed = tables.step_ps[row, decodes] + tables.sample_ps[row, decodes]
    total = counted = 0
    while counted < steps:
        segment = decode_segment(tables.decode_context[row], decodes, kv_tokens)
        n = _segment_steps(tables, row, decodes, kv_tokens, segment, steps - counted)
        slope = tables.decode_slope_ps[row, decodes, segment]
        first = fixed + tables.decode_base_ps[row, decodes, segment] + slope * kv_tokens
        growth = slope * decodes
        in_segment = n * first + growth * (n * (n - 1) // 2)
        if total + in_segment >= elapsed_ps:
            k = _series_length(first, growth, n, elapsed_ps - total)
            return counted + k, total + k * first + growth * (k * (k - 1) // 2)
        total += in_segment
        kv_tokens += n * decodes
        counted += n
    return steps, total


@inlined
def _series_length(first, growth, most, target):
    """Return the least k in 1..most with k * first + growth * k (k - 1) / 2 >= target."""
    if growth == 0:
        k = np.int64(target / first)
    else:
        # The root of the quadratic in floating point, then made exact by steps of one.
        b = first - 0.5 * growth
        k = np.int64((np.sqrt(b * b + 2.0 * growth * target) - b) / growth)
    k = min(max(k, 1), most)
    while k > 1 and (k - 1) * first + growth * ((k - 1) * (k - 2) // 2) >= target:
        k -= 1
    while k < most and k * first + growth * (k * (k - 1) // 2) < target:
        k += 1
    return k
