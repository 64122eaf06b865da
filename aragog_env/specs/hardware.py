"""Catalogue entries: what a GPU and what a set of model weights is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bounds import Count, Positive

Dtype = Literal["bf16", "fp8"]


@dataclass(frozen=True)
class GpuSpec:
    """One GPU type.

    `max_num_batched_tokens` and `max_num_seqs` are the defaults that vLLM's API server picks on this GPU
    (`vllm/engine/arg_utils.py:EngineArgs.get_batch_defaults`).
    """

    name: str
    memory_gib: Positive
    bandwidth_gb_s: Positive
    bf16_tflops: Positive
    """Dense, without sparsity."""
    nvlink_gb_s: Positive
    """Link to the other GPUs of its server, one direction (PCIe where there is no NVLink)."""
    price_usd_per_hour: Positive
    max_num_batched_tokens: Count
    max_num_seqs: Count
    fp8_tflops: Positive | None = None
    source: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """One set of weights: public architecture dimensions, enough for memory and roofline arithmetic."""

    name: str
    hf_id: str
    family: str
    size_b: Positive
    """Parameters, in units of 1e9."""
    layers: Count
    hidden_size: Count
    intermediate_size: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab_size: Count
    max_model_len: Count
    tie_embeddings: bool = False
    dtype: Dtype = "bf16"
    source: str = ""

    @property
    def bytes_per_weight(self) -> int:
        """Bytes per parameter of the weights (KV cache and activations stay 16 bit)."""
        return 1 if self.dtype == "fp8" else 2

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights, over all GPUs of a replica."""
        return self.size_b * 1e9 * self.bytes_per_weight

    def kv_bytes_per_token(self, tp: int) -> int:
        """Bytes of KV cache per token on one of `tp` GPUs (16-bit keys and values)."""
        return self.layers * 2 * max(1, self.kv_heads // tp) * self.head_dim * 2
