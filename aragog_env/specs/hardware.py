"""Catalogue entries: what a GPU and what a set of model weights is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["bf16", "fp8"]


@dataclass(frozen=True)
class GpuSpec:
    """One GPU type.

    `max_num_batched_tokens` and `max_num_seqs` are the defaults that vLLM's API server picks on this GPU
    (`vllm/engine/arg_utils.py:EngineArgs.get_batch_defaults`).
    """

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    bf16_tflops: float
    nvlink_gb_s: float
    price_usd_per_hour: float
    max_num_batched_tokens: int
    max_num_seqs: int
    fp8_tflops: float | None = None
    source: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """One set of weights: public architecture dimensions, enough for memory and roofline arithmetic."""

    name: str
    hf_id: str
    family: str
    size_b: float
    """Parameters, in units of 1e9."""
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
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
