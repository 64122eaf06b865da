"""Clusters with known iteration times and surroundings, and recordings of runs on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aragog_env import make_policy
from aragog_env.backends.shared_host import SharedHostBackend
from aragog_env.specs.cluster import SharingSpec
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from tests.backends.scenarios import LARGE, SMALL, llm, replica, scenario, workflow
from tests.recording.simulated import record

CHAIN = workflow(
    llm("draft", tokens=24, sigma=0.6, most=60, template_tokens=30),
    llm("revise", "draft", tokens=16, sigma=0.5, most=60, template="b"),
    queries=40,
)
SMALL_LATENCY = "linear:overhead_ms=6,per_token_ms=0.03,per_decode_ms=0.4,per_prompt_ms=1.5"
LARGE_LATENCY = "linear:overhead_ms=15,per_token_ms=0.08,per_decode_ms=0.9,per_prompt_ms=3"
SHARING = SharingSpec((1.0, 1.3, 1.8), 1.4)


def world(*, sharing: SharingSpec | None = SHARING, requests: int = 120, rate_rps: float = 4.0) -> Scenario:
    """Return two servers of a small and one of a large model, which slow each other down."""
    small = replica("small", SMALL, latency=SMALL_LATENCY, submit_ms=4.0, close_ms=0.8, enable_prefix_caching=False)
    replicas = [
        replace(small, count=2),
        replace(small, name="large", model=LARGE, latency=LARGE_LATENCY, submit_ms=7.0),
    ]
    made = override(scenario(CHAIN, replicas, requests=requests), rate_rps=rate_rps)
    return replace(made, cluster=replace(made.cluster, decision_ms=2.5, sharing=sharing))


def plain(made: Scenario) -> Scenario:
    """Return the cluster as a user would describe it, knowing nothing of its times."""
    replicas = tuple(
        replace(r, latency="linear:overhead_ms=1", submit_ms=0.0, close_ms=0.0) for r in made.cluster.replicas
    )
    return replace(made, cluster=replace(made.cluster, replicas=replicas, decision_ms=0.0, sharing=None))


def write(made: Scenario, policy: str, path: Path, seed: int = 0) -> Path:
    """Record a run."""
    record(SharedHostBackend(made), make_policy(policy), policy, seed, path)
    return path
