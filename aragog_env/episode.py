"""What an episode leaves behind: every request and every call, as arrays. All backends write it, the harness reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

REQUEST_DTYPE = np.dtype(
    [
        ("workflow", "i4"),  # index into EpisodeLog.workflows
        ("query", "i4"),  # index into the workflow's queries
        ("arrival_s", "f8"),
        ("finish_s", "f8"),  # nan while in flight at the end of the episode
        ("configuration", "i8"),  # index of the models that served it (outcome table order), -1 unknown
        ("correct", "i1"),  # 1, 0, or -1 when unknown
        ("p_correct", "f4"),  # success probability of that configuration, nan when unknown
        ("p_largest", "f4"),  # the same for the largest configuration
        ("standalone_s", "f8"),  # latency on an empty cluster with the fastest routes
    ]
)

CALL_DTYPE = np.dtype(
    [
        ("request", "i4"),
        ("node", "i4"),  # index of the unrolled stage in its workflow
        ("model", "i4"),  # index into EpisodeLog.models
        ("route", "i4"),  # index into EpisodeLog.replicas
        ("prompt_tokens", "i4"),
        ("output_tokens", "i4"),
        ("cached_tokens", "i4"),  # prompt tokens found in the prefix cache at first admission
        ("preemptions", "i4"),
        ("ready_s", "f8"),
        ("dispatch_s", "f8"),
        ("start_s", "f8"),  # first scheduled by the engine
        ("first_token_s", "f8"),
        ("finish_s", "f8"),  # nan when the episode ended before
    ]
)


@dataclass
class EpisodeLog:
    """The log of one (policy, scenario, seed) episode.

    Attributes:
        requests: (n,) of REQUEST_DTYPE, in order of arrival; warm-up requests included.
        calls: (m,) of CALL_DTYPE: dispatched LLM calls, in order of dispatch; tool stages are not calls.
        decision_s: (d,) wall-clock seconds of each `act`.
        busy_s: (R,) seconds each replica spent in iterations.
    """

    scenario: str
    policy: str
    seed: int
    workflows: tuple[str, ...]
    models: tuple[str, ...]
    replicas: tuple[str, ...]
    replica_models: tuple[int, ...]
    replica_gpus: tuple[int, ...]
    replica_usd_per_hour: tuple[float, ...]
    node_names: tuple[tuple[str, ...], ...]
    """node_names[workflow][node]"""
    requests: NDArray[np.void]
    calls: NDArray[np.void]
    decision_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    iterations: NDArray[np.int64]
    duration_s: float
    warmup_requests: int
    truncated: bool
    slo_s: float | None
    slo_scale: float
    outcome_kinds: tuple[str, ...] = ()
    """Per workflow: 'synthetic' or 'measured'."""
    notes: dict[str, object] = field(default_factory=dict)
    """E.g. `num_gpu_blocks` per replica and whether it was given or estimated, overflowed ready calls."""
