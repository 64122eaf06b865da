"""Latency tables from arithmetic: a roofline without kernel data, a line for toys and fitted servers.

Nothing here is measured. A roofline table says so in its `source`: use it where no kernel table exists, and
compare policies with it, not GPUs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from ..specs.hardware import GpuSpec, ModelSpec
from .table import LatencyTable

FloatArray = NDArray[np.float64]

COMPUTE_EFFICIENCY: Final = 0.65
"""Share of the peak rate that the matrix products of a full batch reach.

With these constants a roofline iteration takes 0.76-0.98 of the shipped kernel tables' time on H100,
0.82-0.98 on H200 and 0.81-1.00 on A100 (medians over models and TP, of seven kinds of iteration); over PCIe
with TP > 2 it is far too fast.
"""
MEMORY_EFFICIENCY: Final = 0.75
"""Share of the memory bandwidth that a decode step reaches."""
LAYER_OVERHEAD_MS: Final = 0.02
"""Launches and small kernels of one layer (norms, rotary embedding, activation)."""
ALL_REDUCE_LATENCY_MS: Final = 0.008
"""Latency of one all-reduce, whatever its size."""
_BYTES: Final = 2  # activations and KV cache stay 16 bit
_MS: Final = 1e3

_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_NEW: Final = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CACHED: Final = (0, 512, 2048, 8192, 16384, 32768)
_BATCH: Final = (1, 4, 16, 64, 256, 1024)
_CONTEXT: Final = (64, 1024, 8192, 32768)


def roofline_table(model: ModelSpec, gpu: GpuSpec, tp: int) -> LatencyTable:
    """Return overheads plus the sum over an iteration's parts of max(operations / peak, bytes / bandwidth).

    Peak and bandwidth are reduced by the fixed efficiencies above.

    Tensor parallelism divides weights, heads and KV cache and adds two all-reduces per layer (Megatron-LM),
    each moving 2 (tp - 1) / tp of the activations over the link, plus a latency.
    """
    peak = gpu.bf16_tflops * 1e12
    if model.dtype == "fp8" and gpu.fp8_tflops is not None:
        peak = gpu.fp8_tflops * 1e12
    flops_per_s, bytes_per_s = COMPUTE_EFFICIENCY * peak, MEMORY_EFFICIENCY * gpu.bandwidth_gb_s * 1e9
    attention_flops_per_s = COMPUTE_EFFICIENCY * gpu.bf16_tflops * 1e12

    tokens = np.array(_TOKENS, dtype=np.float64)
    weights = linear_weights(model) / tp
    work = 2 * weights * tokens / flops_per_s
    traffic = weights * model.bytes_per_weight / bytes_per_s
    gemm_s = np.maximum(work, traffic) + _all_reduce_s(model, gpu, tp, tokens)

    kv_bytes = model.kv_bytes_per_token(tp)
    # Two products (scores, values) of 2 operations each, per query, key and head dimension.
    pair_flops = 4 * model.layers * model.heads * model.head_dim / tp
    new, cached = np.array(_NEW, dtype=np.float64)[:, None], np.array(_CACHED, dtype=np.float64)[None, :]
    pairs = new * (cached + (new + 1) / 2)
    chunk_s = np.maximum(pair_flops * pairs / attention_flops_per_s, kv_bytes * (new + cached) / bytes_per_s)
    batch, context = np.array(_BATCH, dtype=np.float64), np.array(_CONTEXT, dtype=np.float64)
    decode_s = kv_bytes * batch[:, None] * context[None, :] / bytes_per_s

    head = model.vocab_size * model.hidden_size / tp
    logits_s = np.maximum(2 * head * batch / attention_flops_per_s, _BYTES * head / bytes_per_s)
    return LatencyTable(
        tokens=tokens,
        gemm_ms=gemm_s * _MS,
        chunk_new=np.array(_NEW, dtype=np.float64),
        chunk_cached=np.array(_CACHED, dtype=np.float64),
        chunk_ms=chunk_s * _MS,
        decode_batch=batch,
        decode_context=context,
        decode_ms=decode_s * _MS,
        logits_batch=batch,
        logits_ms=logits_s * _MS,
        overhead_ms=LAYER_OVERHEAD_MS * model.layers,
        kind="roofline",
        source=(
            f"roofline, uncalibrated: {model.name} on {gpu.name} x{tp}, {COMPUTE_EFFICIENCY:.0%} of peak "
            f"operations, {MEMORY_EFFICIENCY:.0%} of bandwidth"
        ),
    )


def linear_weights(model: ModelSpec) -> float:
    """Return the number of weights that every token passes through: all but embeddings and output head."""
    attention = model.hidden_size * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    mlp = 3 * model.hidden_size * model.intermediate_size
    return float(model.layers * (attention + mlp))


def _all_reduce_s(model: ModelSpec, gpu: GpuSpec, tp: int, tokens: FloatArray) -> FloatArray:
    if tp == 1:
        return np.zeros_like(tokens)
    moved = 2 * (tp - 1) / tp * tokens * model.hidden_size * _BYTES
    once: FloatArray = moved / (gpu.nvlink_gb_s * 1e9) + ALL_REDUCE_LATENCY_MS / _MS
    return 2 * model.layers * once


def linear_table(
    *,
    overhead_ms: float,
    per_token_ms: float = 0.0,
    per_decode_ms: float = 0.0,
    per_kv_token_ms: float = 0.0,
    per_context_ms: float = 0.0,
    per_sampled_ms: float = 0.0,
    per_prompt_ms: float = 0.0,
    source: str = "linear coefficients",
) -> LatencyTable:
    """Return the table of a line: what a regression over a server's log gives, or a toy.

    It is exact on and off its grid.

        t = overhead_ms + per_token_ms * tokens + per_decode_ms * decodes + per_kv_token_ms * kv_tokens
            + per_context_ms * sum over prefill chunks of new * cached + per_sampled_ms * sampled
            + per_prompt_ms * prefill chunks

    Raises:
        SpecError: if a coefficient is negative, or all of them are zero.
    """
    coefficients = {
        "overhead_ms": overhead_ms,
        "per_token_ms": per_token_ms,
        "per_decode_ms": per_decode_ms,
        "per_kv_token_ms": per_kv_token_ms,
        "per_context_ms": per_context_ms,
        "per_sampled_ms": per_sampled_ms,
        "per_prompt_ms": per_prompt_ms,
    }
    for name, value in coefficients.items():
        if not (np.isfinite(value) and value >= 0):
            raise SpecError(f"the coefficient {name} of a linear latency must be a number >= 0, not {value}")
    if not any(coefficients.values()):
        raise SpecError("a linear latency needs at least one coefficient above 0")
    # Every term is (bi)linear, so two grid points per axis reproduce it everywhere.
    tokens, cached = np.array([0.0, 16384.0]), np.array([0.0, 131072.0])
    new, batch, sampled = np.array([1.0, 16384.0]), np.array([1.0, 1024.0]), np.array([0.0, 1024.0])
    return LatencyTable(
        tokens=tokens,
        gemm_ms=per_token_ms * tokens,
        chunk_new=new,
        chunk_cached=cached,
        chunk_ms=per_prompt_ms + per_context_ms * new[:, None] * cached[None, :],
        decode_batch=batch,
        decode_context=cached,
        decode_ms=batch[:, None] * (per_decode_ms + per_kv_token_ms * cached[None, :]),
        logits_batch=sampled,
        logits_ms=per_sampled_ms * sampled,
        overhead_ms=overhead_ms,
        kind="linear",
        source=source,
    )
