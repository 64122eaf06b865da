"""How many KV blocks a server has room for, and whether a model fits its GPUs at all.

vLLM finds the number by profiling (`v1/worker/gpu_worker.py:determine_available_memory`): memory x
utilisation, minus weights, the peak of a dummy forward pass, and CUDA graphs. Nothing short of running it
gives that number to a few per cent, so this is an estimate: give `num_gpu_blocks` where a simulation must
equal a server.
"""

from __future__ import annotations

from typing import Final

from ..errors import SpecError
from ..specs.hardware import GpuSpec, ModelSpec

BLOCK_TOKENS: Final = 16
_GIB: Final = float(1 << 30)
_CONTEXT_GIB: Final = 0.5
"""CUDA context, cuBLAS and attention workspaces."""
_NCCL_GIB: Final = 0.75
"""Communication buffers, with more than one GPU."""
_GRAPH_GIB_PER_LAYER: Final = 0.016
"""CUDA graphs of the default capture sizes (about 0.5 GiB for 32 layers)."""
_LOGIT_COPIES: Final = 3
"""32-bit copies of the logits alive at once in the sampler's dummy run (logits, sorted, cumulated
probabilities).
"""
_HIDDEN_COPIES: Final = 4
"""16-bit copies of the hidden state alive at once (residual, normalised, attention output, all-reduce)."""


def kv_blocks(
    model: ModelSpec,
    gpu: GpuSpec,
    tp: int,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int | None = None,
    *,
    where: str | None = None,
) -> int:
    """Estimate vLLM's `num_gpu_blocks`: how many blocks of 16 tokens fit beside everything else.

    Args:
        model: the model.
        gpu: the GPU type.
        tp: tensor parallelism, i.e. GPUs per replica.
        gpu_memory_utilization: share of a GPU's memory that vLLM may use.
        max_num_batched_tokens: tokens of the largest forward pass.
        max_num_seqs: most sequences sampled at once; None takes the GPU's default.
        where: location for the error message.

    Raises:
        SpecError: if `tp` does not divide the model's heads, or the weights leave no room for a single block.
    """
    check_tensor_parallel(model, tp, where=where)
    seqs = gpu.max_num_seqs if max_num_seqs is None else max_num_seqs
    free = _free_bytes(model, gpu, tp, gpu_memory_utilization, max_num_batched_tokens, seqs)
    blocks = int(free // (BLOCK_TOKENS * model.kv_bytes_per_token(tp)))
    if blocks >= 2:  # block 0 is vLLM's null block
        return blocks
    fitting = [
        more
        for more in (2, 4, 8)
        if more > tp
        and _divides(model, more)
        and _free_bytes(model, gpu, more, gpu_memory_utilization, max_num_batched_tokens, seqs) > 0
    ]
    remedy = f"use tp {fitting[0]} or a GPU with more memory" if fitting else "use a GPU with more memory"
    usable = gpu.memory_gib * gpu_memory_utilization
    raise SpecError(
        f"model '{model.name}' does not fit {tp} x {gpu.name}: its weights take "
        f"{_weight_gib(model, tp):.1f} GiB per GPU and activations "
        f"{_working_gib(model, tp, max_num_batched_tokens, seqs):.1f} GiB, but {usable:.1f} GiB "
        f"({gpu_memory_utilization:.0%} of {gpu.memory_gib:.1f}) are usable; {remedy}",
        where=where,
    )


def check_tensor_parallel(model: ModelSpec, tp: int, *, where: str | None = None) -> None:
    """Raise SpecError if vLLM cannot split the model's heads over `tp` GPUs (`config/model.py`)."""
    if tp < 1 or not _divides(model, tp):
        raise SpecError(
            f"tp {tp} cannot split the {model.heads} heads and {model.kv_heads} KV heads of '{model.name}'; "
            f"possible: {', '.join(str(n) for n in (1, 2, 4, 8) if _divides(model, n))}",
            where=where,
        )


def check_sequence_fits(model: ModelSpec, num_gpu_blocks: int, max_model_len: int, *, where: str | None = None) -> None:
    """Raise SpecError if one sequence of `max_model_len` tokens does not fit: such a server refuses to start.

    The rule is vLLM's (`v1/core/kv_cache_utils.py:check_enough_kv_cache_memory`); block 0 is its null block.
    """
    longest = (num_gpu_blocks - 1) * BLOCK_TOKENS
    if max_model_len > longest:
        raise SpecError(
            f"one sequence of max_model_len {max_model_len} does not fit the {num_gpu_blocks} KV blocks of "
            f"'{model.name}'; lower max_model_len to {max(longest, 0)}, or use more GPU memory",
            where=where,
        )


def _divides(model: ModelSpec, tp: int) -> bool:
    return model.heads % tp == 0 and (model.kv_heads % tp == 0 or tp % model.kv_heads == 0)


def _weight_gib(model: ModelSpec, tp: int) -> float:
    return model.weight_bytes / tp / _GIB


def _working_gib(model: ModelSpec, tp: int, tokens: int, seqs: int) -> float:
    """Return what a forward pass needs beside weights and KV cache, on one GPU."""
    mlp = 3 * model.intermediate_size / tp  # gate, up and their product
    activations = 2 * tokens * (mlp + _HIDDEN_COPIES * model.hidden_size) / _GIB
    sampler = 4 * _LOGIT_COPIES * min(seqs, tokens) * model.vocab_size / _GIB
    fixed = _CONTEXT_GIB + _GRAPH_GIB_PER_LAYER * model.layers + (_NCCL_GIB if tp > 1 else 0.0)
    return activations + sampler + fixed


def _free_bytes(model: ModelSpec, gpu: GpuSpec, tp: int, utilization: float, tokens: int, seqs: int) -> float:
    free_gib = gpu.memory_gib * utilization - _weight_gib(model, tp) - _working_gib(model, tp, tokens, seqs)
    return free_gib * _GIB
