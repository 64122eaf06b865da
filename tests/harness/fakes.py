"""A tiny cluster that serves a three-stage chain: enough dynamics to test the harness by itself."""

from __future__ import annotations

import heapq
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from aragog_env.episode import CALL_DTYPE, REQUEST_DTYPE, EpisodeLog
from aragog_env.policy import Dispatch, Wait
from aragog_env.specs.cluster import ClusterSpec, ReplicaSpec
from aragog_env.specs.scenario import HorizonSpec, ObjectiveSpec, Scenario
from aragog_env.specs.workload import ArrivalSpec, MixEntry, WorkloadSpec

NODES = ("generate", "critique", "refine")
SECONDS_PER_TOKEN = (0.006, 0.012, 0.025)
P_CORRECT = (0.6, 0.75, 0.85)
SLOTS = 6
WORKFLOW_YAML = """\
name: {name}
dataset: none
query_tokens: {{median: 100}}
queries: 50
accuracy_by_size_b: {{7: 0.6, 32: 0.85}}
stages:
  - name: generate
    prompt: {{template: t, template_tokens: 20}}
    output: {{median_by_size_b: {{7: 100}}, sigma: 0.5, max_tokens: 512}}
"""


def make_scenario(
    folder: Path, *, rate_rps: float = 1.0, requests: int = 60, name: str = "fake", **horizon: Any
) -> Scenario:
    """Return a scenario whose two workflows are files in `folder`."""
    mix = []
    for workflow in ("alpha", "beta"):
        path = folder / workflow / "workflow.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(WORKFLOW_YAML.format(name=workflow))
        mix.append(MixEntry(str(path)))
    replicas = tuple(ReplicaSpec(f"r{m}", f"m{m}", "h100", tp=2**m) for m in range(3))
    return Scenario(
        name,
        ClusterSpec("fake-cluster", replicas),
        WorkloadSpec(ArrivalSpec("poisson", rate_rps), tuple(mix)),
        HorizonSpec(requests, **horizon),
        ObjectiveSpec(slo_scale=5.0),
    )


class FakeBackend:
    """Three replicas, `SLOTS` calls at a time; a call takes output tokens x its replica's pace."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.done = True
        self.truncated = False
        self.now_s = 0.0

    def reset(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n, rate = self.scenario.horizon.requests, self.scenario.workload.arrivals.rate_rps or 1.0
        self.requests = np.zeros(n, REQUEST_DTYPE)
        self.requests["arrival_s"] = np.cumsum(rng.exponential(1 / rate, n))
        self.requests["workflow"] = rng.integers(0, 2, n)
        self.requests["finish_s"] = np.nan
        self.tokens = rng.integers(40, 300, (n, 3))
        self.requests["standalone_s"] = self.tokens.sum(1) * SECONDS_PER_TOKEN[0]
        self.requests["p_largest"] = P_CORRECT[2]
        self.luck = rng.random(n)
        self.calls: list[tuple[Any, ...]] = []
        self.models = [[] for _ in range(n)]  # type: list[list[int]]
        self.free_s = [[0.0] * SLOTS for _ in range(3)]
        self.busy_s = np.zeros(3)
        self.ready: list[tuple[int, int, float]] = []
        self.events = [(float(t), i, 0) for i, t in enumerate(self.requests["arrival_s"])]
        heapq.heapify(self.events)
        self.now_s, self.done, self.truncated = 0.0, False, False
        self._advance()

    def view(self) -> Any:
        allowed = np.ones((len(self.ready), 3), np.bool_)
        return SimpleNamespace(calls=[c[0] for c in self.ready], routes=[0, 1, 2], allowed=allowed, now_s=self.now_s)

    def step(self, action: Dispatch | Wait) -> None:
        if isinstance(action, Dispatch):
            if not (0 <= action.call < len(self.ready) and 0 <= action.route < 3):
                raise ValueError(f"call {action.call} or route {action.route} does not exist")
            self._serve(*self.ready.pop(action.call), action.route)
        if isinstance(action, Wait) and not self.events:
            raise ValueError("waiting would never end")
        if not self.ready or isinstance(action, Wait):
            self._advance()

    def _serve(self, request: int, node: int, ready_s: float, route: int) -> None:
        free = self.free_s[route]
        start = max(heapq.heappop(free), self.now_s)
        tokens = int(self.tokens[request, node])
        pace = SECONDS_PER_TOKEN[route]
        finish = start + tokens * pace
        heapq.heappush(free, finish)
        self.busy_s[route] += (finish - start) / SLOTS
        cached = 80 if node else 0
        self.models[request].append(route)
        self.calls.append(
            (
                request,
                node,
                route,
                route,
                100,
                tokens,
                cached,
                0,
                ready_s,
                self.now_s,
                start,
                start + 5 * pace,
                finish,
            )
        )
        heapq.heappush(self.events, (finish, request, node + 1))

    def _advance(self) -> None:
        limit = self.scenario.horizon.duration_s or float("inf")
        moved = False
        while self.events and (not moved or self.events[0][0] == self.now_s):
            if self.events[0][0] > limit:
                self.now_s, self.done, self.truncated = limit, True, True
                return
            self.now_s, request, node = heapq.heappop(self.events)
            if node == 3:
                self._complete(request)
            else:
                self.ready.append((request, node, self.now_s))
                moved = True
        self.done = not self.events and not self.ready

    def _complete(self, request: int) -> None:
        row = self.requests[request]
        p = float(np.mean([P_CORRECT[m] for m in self.models[request]]))
        row["finish_s"], row["p_correct"], row["correct"] = self.now_s, p, self.luck[request] < p
        row["configuration"] = sum(m * 3**i for i, m in enumerate(reversed(self.models[request])))

    def log(self) -> EpisodeLog:
        calls = np.array(self.calls, CALL_DTYPE)
        for name in ("start_s", "first_token_s", "finish_s"):
            calls[name][calls[name] > self.now_s] = np.nan
        return EpisodeLog(
            scenario=self.scenario.name,
            policy="",
            seed=-1,
            workflows=("alpha", "beta"),
            models=("m0", "m1", "m2"),
            replicas=("r0", "r1", "r2"),
            replica_models=(0, 1, 2),
            replica_gpus=(1, 2, 4),
            replica_usd_per_hour=(3.0, 6.0, 12.0),
            node_names=(NODES, NODES),
            requests=self.requests.copy(),
            calls=calls,
            decision_s=np.zeros(0),
            busy_s=self.busy_s.copy(),
            iterations=np.zeros(3, np.int64),
            duration_s=self.now_s,
            warmup_requests=self.scenario.horizon.warmup_requests,
            truncated=self.truncated,
            slo_s=self.scenario.objective.slo_s,
            slo_scale=self.scenario.objective.slo_scale,
            outcome_kinds=("synthetic", "synthetic"),
            notes={"num_gpu_blocks": [1000, 900, 800], "num_gpu_blocks_given": [True, False, False]},
        )

    def close(self) -> None:
        """Nothing to release."""


class Fixed:
    """Always the same replica."""

    def __init__(self, route: int = 0) -> None:
        self.route = route

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Nothing to forget."""

    def act(self, view: Any) -> Dispatch | Wait:
        return Dispatch(0, self.route)


class Spread(Fixed):
    """A random replica."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, view: Any) -> Dispatch | Wait:
        return Dispatch(0, int(self.rng.integers(3)))


class Large(Fixed):
    """Always the largest model."""

    def __init__(self) -> None:
        super().__init__(2)


class Raises(Fixed):
    """Breaks after some decisions."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.left = 10

    def act(self, view: Any) -> Dispatch | Wait:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of ideas")
        return Dispatch(0, 0)


class Invalid(Fixed):
    """Answers with a route that does not exist."""

    def act(self, view: Any) -> Dispatch | Wait:
        return Dispatch(0, 7)


class NoDecision(Fixed):
    """Answers with something that is no decision."""

    def act(self, view: Any) -> Any:
        return (0, 1)


class Exits(Fixed):
    """Kills its process."""

    def act(self, view: Any) -> Dispatch | Wait:
        import os

        os._exit(3)


POLICIES = {"small": Fixed, "spread": Spread, "large": Large}
