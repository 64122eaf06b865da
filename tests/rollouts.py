"""Scenarios small enough to step through whole episodes, and the loops that do so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aragog_env.specs.cluster import ClusterSpec, ReplicaSpec
from aragog_env.specs.scenario import HorizonSpec, ObservationSpec, Scenario
from aragog_env.specs.workload import ArrivalSpec, MixEntry, WorkloadSpec

ENV_ID = "aragog_env:aragog/StageDispatch-v0"
TOY: dict[str, Any] = {"scenario": "toy", "overrides": {"requests": 12}}
"""Two calls in a row on three idle replicas."""
BUSY: dict[str, Any] = {
    "scenario": Scenario(
        name="busy",
        cluster=ClusterSpec(
            "small",
            tuple(
                ReplicaSpec(
                    name,
                    model,
                    "h100_sxm",
                    max_num_seqs=12,
                    max_num_batched_tokens=512,
                    max_model_len=10752,
                    num_gpu_blocks=700,
                    latency=f"linear:overhead_ms={overhead_ms},per_token_ms=0.03,per_decode_ms=0.1",
                )
                for name, model, overhead_ms in (("a", "qwen2.5-7b", 8), ("b", "qwen2.5-32b", 20))
            ),
        ),
        workload=WorkloadSpec(
            ArrivalSpec("poisson", 30.0),
            (MixEntry("voting_mmlu_pro"), MixEntry("text_to_sql_bird"), MixEntry("self_refine_humaneval")),
        ),
        horizon=HorizonSpec(20, warmup_requests=2),
        observation=ObservationSpec(ready_slots=3),
    )
}
"""Fan-out, tools, skipped stages, prefix cache, queues, preemptions and more ready calls than slots."""
CLOSED: dict[str, Any] = {
    "scenario": "toy",
    "overrides": {"arrivals": "closed", "users": 3, "requests": 12},
}
TRUNCATED: dict[str, Any] = {
    "scenario": "toy",
    "overrides": {"requests": 40, "duration_s": 0.3, "rate_rps": 50.0, "ready_slots": 2},
}
SCENARIOS = {"toy": TOY, "busy": BUSY, "closed": CLOSED, "truncated": TRUNCATED}


@dataclass
class Step:
    """What one step of one environment returned."""

    action: int
    observation: dict[str, Any]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


def choose(rng: np.random.Generator, mask: Any) -> int:
    """Return a random valid action; waiting is rare where something can be dispatched."""
    valid = np.flatnonzero(mask)
    dispatches = valid[valid < len(mask) - 1]
    if len(dispatches) and rng.random() < 0.9:
        return int(rng.choice(dispatches))
    return int(rng.choice(valid))


def episode(env: Any, seed: int | None, action_seed: int = 0) -> list[Step]:
    """Run one episode with random valid actions."""
    rng = np.random.default_rng(action_seed)
    observation, _ = env.reset(seed=seed)
    steps: list[Step] = []
    while not steps or not (steps[-1].terminated or steps[-1].truncated):
        assert len(steps) < 5000
        action = choose(rng, observation["action_mask"])
        observation, *rest = env.step(action)
        steps.append(Step(action, observation, *rest))
    return steps


def replay(env: Any, actions: list[int]) -> list[Step]:
    """Carry out given actions from the present state on."""
    return [Step(action, *env.step(action)) for action in actions]


def same(a: Any, b: Any) -> bool:
    """Return whether two nested results are equal to the last bit; nan equals nan."""
    if isinstance(a, Step):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if a is None or b is None or isinstance(a, str):
        return bool(a == b)
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype == object:
        return same(x.tolist(), y.tolist())
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
