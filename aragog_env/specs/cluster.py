"""What a cluster is: replicas of models on GPUs, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["mixed", "prefill", "decode"]
SchedulingPolicy = Literal["fcfs", "priority"]


@dataclass(frozen=True)
class ReplicaSpec:
    """One vLLM server, or `count` equal ones. `None` means vLLM's default for the GPU or model."""

    name: str
    model: str
    gpu: str
    tp: int = 1
    count: int = 1
    role: Role = "mixed"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.92
    num_gpu_blocks: int | None = None
    """KV blocks of 16 tokens; None estimates them from memory, which is only good to some per cent."""
    scheduling_policy: SchedulingPolicy = "fcfs"
    enable_prefix_caching: bool = True
    async_scheduling: bool = False
    latency: str = "auto"
    """`auto` (kernel table if shipped, else roofline), `table`, `roofline`, or a path to an npz table."""
    latency_scale: float = 1.0
    latency_offset_ms: float = 0.0
    """Affine calibration of the iteration time: scale * t + offset."""


@dataclass(frozen=True)
class LinkSpec:
    """A directed link between two replicas, for KV transfer."""

    source: str
    target: str
    bandwidth_gb_s: float
    latency_us: float = 0.0


@dataclass(frozen=True)
class ClusterSpec:
    """All replicas a policy can route to, in route order after `count` is expanded."""

    name: str
    replicas: tuple[ReplicaSpec, ...]
    links: tuple[LinkSpec, ...] = ()
    description: str = ""
    source: str = ""
