"""Scenarios for comparisons between backends: random tiny ones, and a few built by hand."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml
from hypothesis import strategies as st

from aragog_env.specs.cluster import ClusterSpec, ReplicaSpec
from aragog_env.specs.graph import unroll
from aragog_env.specs.plain import to_dict
from aragog_env.specs.scenario import HorizonSpec, Scenario
from aragog_env.specs.validate import call_limits
from aragog_env.specs.workflow import (
    DurationSpec,
    FanOutSpec,
    LengthSpec,
    OutputSpec,
    PromptSpec,
    SkipSpec,
    StageSpec,
    WorkflowSpec,
)
from aragog_env.specs.workload import ArrivalSpec, MixEntry, WorkloadSpec

FOLDER = Path(mkdtemp(prefix="aragog-test-"))
"""Scenarios name workflows by file. Equal workflows have equal names, since hypothesis wants the same example twice."""
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
SMALL, LARGE = "toy-small", "toy-large"


def written(workflow: WorkflowSpec) -> str:
    """Write a workflow to a file and return its path, which is all a scenario can name."""
    plain = _without_none(to_dict(workflow, defaults=False))
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
    path = FOLDER / f"{digest}.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return str(path)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def workflow(*stages: StageSpec, queries: int = 8, name: str = "made_up", **more: Any) -> WorkflowSpec:
    """Return a workflow of `stages` with queries of some tokens."""
    settings: dict[str, Any] = {
        "query_tokens": LengthSpec(median=20, sigma=0.5, minimum=1, maximum=60),
        "accuracy_by_size_b": {0.187: 0.5, 8.047: 0.8},
    }
    return WorkflowSpec(name=name, stages=stages, queries=queries, **{**settings, **more})


def llm(
    name: str,
    *parents: str,
    tokens: float = 10,
    sigma: float = 0.5,
    most: int = 40,
    template: str = "a",
    template_tokens: int = 16,
    query: bool = True,
    context: tuple[str, ...] | None = None,
    **more: Any,
) -> StageSpec:
    """Return an LLM stage that writes some `tokens`, more on the small model."""
    return StageSpec(
        name,
        parents=parents,
        prompt=PromptSpec(template, template_tokens, query, context),
        output=OutputSpec({0.187: tokens * 1.5, 8.047: tokens}, sigma, most),
        **more,
    )


def tool(name: str, *parents: str, median_s: float = 0.02, sigma: float = 0.5, **more: Any) -> StageSpec:
    """Return a tool stage."""
    output = LengthSpec(median=9, sigma=0.5, minimum=1, maximum=30)
    return StageSpec(
        name,
        kind="tool",
        parents=parents,
        tool_s=DurationSpec(median_s, sigma, 1.0),
        tool_output=output,
        **more,
    )


def replica(name: str, model: str = SMALL, **more: Any) -> ReplicaSpec:
    """Return a small server whose iteration takes some milliseconds."""
    settings: dict[str, Any] = {
        "gpu": "h100_sxm",
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "max_model_len": 512,
        "num_gpu_blocks": 400,
        "latency": "linear:overhead_ms=2.3,per_token_ms=0.011,per_decode_ms=0.13,per_kv_token_ms=0.0017",
    }
    return ReplicaSpec(name, model, **{**settings, **more})


def scenario(
    workflows: WorkflowSpec | Sequence[WorkflowSpec],
    replicas: Sequence[ReplicaSpec],
    *,
    requests: int = 12,
    duration_s: float | None = None,
    arrivals: ArrivalSpec | None = None,
) -> Scenario:
    """Put a scenario together."""
    mix = (workflows,) if isinstance(workflows, WorkflowSpec) else workflows
    return Scenario(
        name="made-up",
        cluster=ClusterSpec("made-up", tuple(replicas)),
        workload=WorkloadSpec(arrivals or ArrivalSpec(rate_rps=40.0), tuple(MixEntry(written(one)) for one in mix)),
        horizon=HorizonSpec(requests, duration_s),
    )


@st.composite
def random_workflows(draw: st.DrawFn, models: Sequence[str]) -> WorkflowSpec:
    """Draw a workflow of up to four stages that `models` can serve."""
    stages: list[StageSpec] = []
    ancestors: dict[str, set[str]] = {}
    count = draw(st.integers(1, 4))
    for i in range(count):
        name = f"s{i}"
        parents = tuple(draw(st.permutations([s.name for s in stages if draw(st.booleans())])))
        above = set(parents).union(*(ancestors[p] for p in parents))
        ancestors[name] = above
        fan_out = draw(st.sampled_from((None, None, None, FanOutSpec((0.4, 0.6)))))
        judges = [s.name for s in stages if s.name in above and s.kind == "llm" and not s.fan_out]
        skip = None
        if judges and draw(st.booleans()):
            skip = SkipSpec(draw(st.sampled_from(judges)), {0.187: 0.3, 8.047: 0.7})
        more = {"fan_out": fan_out, "skip": skip}
        all_tools = all(s.kind == "tool" for s in stages)
        if draw(st.integers(0, 3)) == 3 and not (all_tools and i == count - 1):
            seconds = draw(st.sampled_from((0.0, 0.002, 0.03)))
            stages.append(tool(name, *parents, median_s=seconds, **more))
            continue
        context = None
        if draw(st.booleans()):
            context = tuple(draw(st.permutations([name for name in sorted(above) if draw(st.booleans())])))
        stages.append(
            llm(
                name,
                *parents,
                tokens=draw(st.sampled_from((1, 5, 17, 30))),
                sigma=draw(st.sampled_from((0.0, 0.6))),
                template=draw(st.sampled_from("ab")),
                template_tokens=draw(st.sampled_from((1, 16, 37))),
                query=draw(st.booleans()),
                context=context,
                candidates=draw(st.sampled_from((None, None, models[:1], models[-1:]))),
                **more,
            )
        )
    return workflow(*stages, queries=draw(st.sampled_from((1, 2, 20))), name=f"w{draw(st.integers(0, 3))}")


@st.composite
def random_scenarios(draw: st.DrawFn) -> Scenario:
    """Draw a tiny scenario: servers that are starved in some way, and traffic that makes them feel it."""
    models = draw(st.sampled_from(((SMALL,), (LARGE, SMALL))))
    mix = draw(st.lists(random_workflows(models), min_size=1, max_size=2, unique_by=lambda w: w.name))
    longest = max(sum(limits) for one in mix for limits in call_limits(unroll(one)))
    replicas = []
    for i in range(draw(st.integers(len(models), 3))):
        needed = -(-longest // 16)
        seqs = draw(st.sampled_from((1, 2, 3, 8)))
        overhead, per_token = draw(st.sampled_from(((1, 0.0), (2, 0.01), (0.7, 0.031))))
        replicas.append(
            replica(
                f"r{i}",
                models[i % len(models)],
                max_model_len=longest + draw(st.integers(0, 20)),
                max_num_seqs=seqs,
                max_num_batched_tokens=seqs + draw(st.sampled_from((0, 5, 16, 61, 500))),
                num_gpu_blocks=needed + 3 + draw(st.sampled_from((0, 1, 4, 30))),
                scheduling_policy=draw(st.sampled_from(("fcfs", "priority"))),
                enable_prefix_caching=draw(st.booleans()),
                async_scheduling=draw(st.sampled_from((False, False, True))),
                latency=f"linear:overhead_ms={overhead},per_token_ms={per_token},per_kv_token_ms=0.0013",
            )
        )
    if draw(st.integers(0, 3)) == 3:
        think_s = draw(st.sampled_from((0.0, 0.02)))
        arrivals = ArrivalSpec(kind="closed", users=draw(st.integers(1, 5)), think_s=think_s)
    else:
        arrivals = ArrivalSpec(rate_rps=draw(st.sampled_from((5.0, 100.0, 3000.0))))
    return scenario(
        mix,
        replicas,
        requests=draw(st.integers(1, 14)),
        duration_s=draw(st.sampled_from((None, None, 0.02, 0.3))),
        arrivals=arrivals,
    )
