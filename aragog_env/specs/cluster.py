"""What a cluster is: replicas of models on GPUs, and the links between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from .bounds import Bound, Count, NonNegative, Positive
from .hardware import GpuSpec, ModelSpec

Role = Literal["mixed", "prefill", "decode"]
SchedulingPolicy = Literal["fcfs", "priority"]
_LATER: Final[dict[str, Any]] = {"later": True}
"""Metadata of keys that leave the hash of a spec alone where they are not set (see `plain.to_dict`)."""


@dataclass(frozen=True)
class ReplicaSpec:
    """One vLLM server, or `count` equal ones. `None` means vLLM's default for the GPU or model."""

    name: str
    model: str
    gpu: str
    tp: Count = 1
    count: Count = 1
    role: Role = "mixed"
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    max_model_len: Count | None = None
    gpu_memory_utilization: Annotated[float, Bound(0.0, 1.0, exclusive=True)] = 0.92
    num_gpu_blocks: Annotated[int, Bound(2)] | None = None
    """KV blocks of 16 tokens; None estimates them from memory, which is only good to some per cent."""
    scheduling_policy: SchedulingPolicy = "fcfs"
    enable_prefix_caching: bool = True
    async_scheduling: bool = False
    latency: str = "auto"
    """`auto` (kernel table if shipped, else roofline), `table`, `roofline`, a path to an npz table, or
    `linear:overhead_ms=5,per_token_ms=0.02,per_decode_ms=0.1,per_kv_token_ms=0.00001`."""
    latency_scale: Positive = 1.0
    latency_offset_ms: float = 0.0
    """Affine calibration of the iteration time: scale * t + offset."""
    submit_ms: NonNegative = field(default=0.0, metadata=_LATER)
    """Outside the engine, per call: from the client until the engine has it (network, HTTP, tokenizer)."""
    close_ms: NonNegative = field(default=0.0, metadata=_LATER)
    """Outside the engine, per call: from the last token until the client knows that it was the last."""


@dataclass(frozen=True)
class LinkSpec:
    """A directed link between two replicas, for KV transfer."""

    source: str
    target: str
    bandwidth_gb_s: Positive
    latency_us: NonNegative = 0.0


@dataclass(frozen=True)
class SharingSpec:
    """Servers that share a machine's processor: an iteration takes longer while others are busy."""

    slowdown: tuple[Annotated[float, Bound(1.0)], ...]
    """Factor on an iteration's time while 0, 1, 2, ... other servers of the cluster are busy; the last one holds for more."""
    typical: Annotated[float, Bound(1.0)] = 1.0
    """Its mean over the busy time of recorded runs. The simulator uses it throughout, a replay the factor of the moment."""
    outside: tuple[Annotated[float, Bound(1.0)], ...] = ()
    """The same for what lies outside the engines: `submit_ms`, `close_ms` and `decision_ms`."""
    typical_outside: Annotated[float, Bound(1.0)] = 1.0
    """Mean of that."""


@dataclass(frozen=True)
class ClusterSpec:
    """All replicas a policy can route to, in route order after `count` is expanded."""

    name: str
    replicas: tuple[ReplicaSpec, ...]
    links: tuple[LinkSpec, ...] = ()
    description: str = ""
    source: str = ""
    models: tuple[ModelSpec, ...] = ()
    """Models this cluster adds to the catalogue, or replaces in it."""
    gpus: tuple[GpuSpec, ...] = ()
    """GPU types this cluster adds to the catalogue, or replaces in it."""
    decision_ms: NonNegative = field(default=0.0, metadata=_LATER)
    """The client's time per dispatch, decisions of the policy included; it decides about one call after the other."""
    sharing: SharingSpec | None = field(default=None, metadata=_LATER)
    """How the servers slow each other down; None where each has its own GPUs."""
    locations: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each key stands in its file, for error messages."""

    def expand(self) -> tuple[ReplicaSpec, ...]:
        """Return one entry per server: a replica with `count` 3 becomes name-0, name-1, name-2."""
        return tuple(
            replica if replica.count == 1 else replace(replica, name=f"{replica.name}-{i}", count=1)
            for replica in self.replicas
            for i in range(replica.count)
        )
