"""The catalogue of GPUs and models: shipped entries, plus what a cluster file adds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

from ..errors import SpecError, did_you_mean
from .cluster import ClusterSpec, ReplicaSpec
from .hardware import GpuSpec, ModelSpec
from .strict import load_file

PRESETS: Final = Path(__file__).parent / "presets"


@lru_cache(maxsize=1)
def load_gpus() -> dict[str, GpuSpec]:
    """Return the shipped GPU types by name."""
    entries: tuple[GpuSpec, ...] = load_file(tuple[GpuSpec, ...], PRESETS / "gpus.yaml")
    return {entry.name: entry for entry in entries}


@lru_cache(maxsize=1)
def load_models() -> dict[str, ModelSpec]:
    """Return the shipped models by name."""
    entries: tuple[ModelSpec, ...] = load_file(tuple[ModelSpec, ...], PRESETS / "models.yaml")
    return {entry.name: entry for entry in entries}


def gpu(name: str, cluster: ClusterSpec | None = None, *, where: str | None = None) -> GpuSpec:
    """Return a GPU type by name; entries of `cluster` go before shipped ones."""
    known = {**load_gpus(), **({entry.name: entry for entry in cluster.gpus} if cluster else {})}
    if name not in known:
        raise SpecError(f"unknown GPU '{name}'.{did_you_mean(name, known)}", where=where)
    return known[name]


def model(name: str, cluster: ClusterSpec | None = None, *, where: str | None = None) -> ModelSpec:
    """Return a model by name; entries of `cluster` go before shipped ones."""
    known = {**load_models(), **({entry.name: entry for entry in cluster.models} if cluster else {})}
    if name not in known:
        raise SpecError(f"unknown model '{name}'.{did_you_mean(name, known)}", where=where)
    return known[name]


def cluster_models(cluster: ClusterSpec) -> tuple[ModelSpec, ...]:
    """Return the distinct models of a cluster, smallest first: the order that model indices refer to."""
    names = dict.fromkeys(replica.model for replica in cluster.replicas)
    return tuple(sorted((model(name, cluster) for name in names), key=lambda entry: (entry.size_b, entry.name)))


def context_length(replica: ReplicaSpec, cluster: ClusterSpec) -> int:
    """Return the longest sequence a replica accepts, prompt and output together."""
    return replica.max_model_len or model(replica.model, cluster).max_model_len
