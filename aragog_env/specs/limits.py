"""What a server runs with once vLLM's defaults are filled in."""

from __future__ import annotations

from dataclasses import dataclass

from .catalogue import context_length, gpu, model
from .cluster import ClusterSpec, ReplicaSpec


@dataclass(frozen=True)
class EngineLimits:
    """The numbers of one vLLM server that a `ReplicaSpec` may leave open."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    num_gpu_blocks: int
    """KV blocks of 16 tokens, vLLM's null block included."""
    blocks_estimated: bool
    """Whether `num_gpu_blocks` is an estimate from memory, good to some per cent, rather than given."""


def engine_limits(replica: ReplicaSpec, cluster: ClusterSpec, *, where: str | None = None) -> EngineLimits:
    """Return the limits of a replica, as `vllm/engine/arg_utils.py:EngineArgs` fills them in.

    Raises:
        SpecError: if the model does not fit its GPUs.
    """
    from ..latency.model import kv_blocks

    entry, card = model(replica.model, cluster, where=where), gpu(replica.gpu, cluster, where=where)
    length = context_length(replica, cluster)
    # _set_default_max_num_seqs_and_batched_tokens_args: each default is cut to what the other allows.
    seqs = replica.max_num_seqs or card.max_num_seqs
    tokens = replica.max_num_batched_tokens or min(card.max_num_batched_tokens, seqs * length)
    if replica.max_num_seqs is None:
        seqs = min(seqs, tokens)
    blocks = replica.num_gpu_blocks
    if blocks is None:
        blocks = kv_blocks(entry, card, replica.tp, replica.gpu_memory_utilization, tokens, seqs, where=where)
    return EngineLimits(tokens, seqs, length, blocks, replica.num_gpu_blocks is None)
