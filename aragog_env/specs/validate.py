"""Whether the parts of a scenario fit together: what no single file can be checked for."""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path
from typing import Final

from ..errors import SpecError, did_you_mean
from .catalogue import cluster_models, context_length, gpu, model
from .cluster import ClusterSpec, ReplicaSpec
from .graph import WorkflowGraph, unroll
from .hardware import ModelSpec
from .limits import engine_limits
from .load import scenario_workflows
from .ranges import check_ranges
from .scenario import Scenario
from .strict import location
from .workflow import StageSpec
from .workload import ArrivalKind, ArrivalSpec

MAX_CONFIGURATIONS: Final = 4096
"""Configurations of one workflow (models ** LLM nodes): outcome tables hold one column for each."""

_KEYS: Final[dict[ArrivalKind, tuple[str, ...]]] = {
    "poisson": ("rate_rps",),
    "gamma": ("rate_rps", "cv"),
    "mmpp": ("rate_rps", "mmpp_rates", "mmpp_sojourn_s"),
    "schedule": ("rate_rps", "steps", "period_s"),
    "closed": ("users", "think_s"),
    "trace": ("rate_rps", "path", "format", "start_s", "random_offset"),
}
"""Which keys of `ArrivalSpec` count for each kind."""


def validate_scenario(scenario: Scenario) -> None:
    """Refuse a scenario whose parts do not fit together.

    Raises:
        SpecError: one sentence on the first problem, with its file and line where it came from a file.
    """
    check_ranges(scenario)
    _check_horizon(scenario)
    check_cluster(scenario.cluster)
    _check_arrivals(scenario)
    _check_mix(scenario)
    loaded = scenario_workflows(scenario)
    for i, workflow in enumerate(loaded):
        if workflow.name in [other.name for other in loaded[:i]]:
            raise SpecError(
                f"two entries of the mix are workflows named '{workflow.name}'; give each its own name",
                where=location(scenario, f"workload.mix[{i}].workflow"),
            )
        check_ranges(workflow)
        check_workflow(unroll(workflow), scenario.cluster)


def stage_candidates(stage: StageSpec, models: tuple[ModelSpec, ...]) -> tuple[int, ...]:
    """Return the indices of the cluster's models that may serve a stage."""
    return tuple(m for m, entry in enumerate(models) if stage.candidates is None or entry.name in stage.candidates)


def check_cluster(cluster: ClusterSpec) -> None:
    """Refuse a cluster that vLLM would not start, or that is not simulated yet."""
    check_ranges(cluster)
    if not cluster.replicas:
        raise SpecError("a cluster needs at least one replica", where=location(cluster, "replicas"))
    for group in ("models", "gpus"):
        names = [entry.name for entry in getattr(cluster, group)]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise SpecError(f"'{name}' is defined twice", where=location(cluster, f"{group}[{i}].name"))
    seen: set[str] = set()
    for i, replica in enumerate(cluster.replicas):
        _check_replica(cluster, replica, f"replicas[{i}]")
        copies = range(replica.count)
        for name in [replica.name] if replica.count == 1 else [f"{replica.name}-{k}" for k in copies]:
            if name in seen:
                raise SpecError(f"two replicas are called '{name}'", where=location(cluster, f"replicas[{i}].name"))
            seen.add(name)
    for i, link in enumerate(cluster.links):
        for key in ("source", "target"):
            name = getattr(link, key)
            if name not in seen:
                hint = did_you_mean(name, seen)
                raise SpecError(f"unknown replica '{name}'.{hint}", where=location(cluster, f"links[{i}].{key}"))


def _check_replica(cluster: ClusterSpec, replica: ReplicaSpec, key: str) -> None:
    entry = model(replica.model, cluster, where=location(cluster, f"{key}.model"))
    gpu(replica.gpu, cluster, where=location(cluster, f"{key}.gpu"))
    if replica.role != "mixed":
        raise SpecError(
            f"role '{replica.role}' (prefill apart from decode) is not simulated yet; use 'mixed'",
            where=location(cluster, f"{key}.role"),
        )
    length = context_length(replica, cluster)
    if length > entry.max_model_len:
        raise SpecError(
            f"max_model_len {length} is more than '{entry.name}' was made for; at most {entry.max_model_len}",
            where=location(cluster, f"{key}.max_model_len"),
        )
    _check_server(cluster, replica, key)


def _check_server(cluster: ClusterSpec, replica: ReplicaSpec, key: str) -> None:
    """Refuse a server that vLLM would not start, or whose iteration time is unknown."""
    from ..latency.memory import check_sequence_fits, check_tensor_parallel
    from ..latency.model import latency_for

    place = location(cluster, key)
    entry, card = model(replica.model, cluster), gpu(replica.gpu, cluster)
    check_tensor_parallel(entry, replica.tp, where=location(cluster, f"{key}.tp"))
    weights_gib = entry.weight_bytes / replica.tp / 2**30
    usable_gib = card.memory_gib * replica.gpu_memory_utilization
    if weights_gib > usable_gib:
        # Here too, because no estimate is made where num_gpu_blocks is given.
        raise SpecError(
            f"model '{entry.name}' does not fit {replica.tp} x {card.name}: its weights take "
            f"{weights_gib:.1f} GiB per GPU, but {usable_gib:.1f} GiB "
            f"({replica.gpu_memory_utilization:.0%} of {card.memory_gib:.1f}) are usable; raise tp or take a "
            "larger GPU",
            where=place,
        )
    limits = engine_limits(replica, cluster, where=place)
    if limits.max_num_seqs > limits.max_num_batched_tokens:
        # vLLM's config/scheduler.py:SchedulerConfig.verify_max_model_len refuses it.
        raise SpecError(
            f"max_num_seqs {limits.max_num_seqs} is more than max_num_batched_tokens "
            f"{limits.max_num_batched_tokens}; each running sequence needs a token of the budget",
            where=location(cluster, f"{key}.max_num_seqs"),
        )
    check_sequence_fits(entry, limits.num_gpu_blocks, limits.max_model_len, where=place)
    where = location(cluster, f"{key}.latency")
    latency_for(
        entry,
        card,
        replica.tp,
        replica.latency,
        replica.latency_scale,
        replica.latency_offset_ms,
        where=where,
    )


def _check_horizon(scenario: Scenario) -> None:
    horizon = scenario.horizon
    if horizon.warmup_requests >= horizon.requests:
        raise SpecError(
            f"{horizon.warmup_requests} warm-up requests leave none of {horizon.requests} to measure",
            where=location(scenario, "horizon.warmup_requests"),
        )


def _check_arrivals(scenario: Scenario) -> None:
    arrivals = scenario.workload.arrivals

    def fail(message: str, key: str) -> None:
        raise SpecError(message, where=location(scenario, f"workload.arrivals.{key}"))

    if arrivals.preset is not None:
        fail("a preset is filled in when a scenario file is read; in Python use load_arrivals(...)", "preset")
    for f in fields(ArrivalSpec):
        unused = f.name not in ("kind", "source", *_KEYS[arrivals.kind])
        if unused and getattr(arrivals, f.name) != f.default:
            kinds = [kind for kind, keys in _KEYS.items() if f.name in keys]
            fail(f"this key has no effect with kind '{arrivals.kind}' (it is for {', '.join(kinds)})", f.name)
    if arrivals.kind in ("poisson", "gamma", "mmpp") and arrivals.rate_rps is None:
        fail(
            f"arrivals of kind '{arrivals.kind}' need 'rate_rps', the mean number of requests per second",
            "rate_rps",
        )
    if arrivals.kind == "mmpp":
        if len(arrivals.mmpp_rates) < 2 or len(arrivals.mmpp_rates) != len(arrivals.mmpp_sojourn_s):
            fail("kind 'mmpp' needs two or more mmpp_rates and as many mmpp_sojourn_s", "mmpp_rates")
        if not any(arrivals.mmpp_rates):
            fail("at least one rate must be greater than 0", "mmpp_rates")
    if arrivals.kind == "schedule":
        starts = [step.start_s for step in arrivals.steps]
        if not starts or starts[0] != 0.0 or any(b <= a for a, b in itertools.pairwise(starts)):
            fail("kind 'schedule' needs steps with increasing start_s, the first at 0", "steps")
        if not any(step.rate_rps for step in arrivals.steps):
            fail("at least one step must have a rate greater than 0", "steps")
        if arrivals.period_s is not None and arrivals.period_s <= starts[-1]:
            fail(f"the period must end after the last step starts ({starts[-1]:g} s)", "period_s")
    if arrivals.kind == "closed" and arrivals.users < 1:
        fail("a closed loop needs 'users' of at least 1", "users")
    if arrivals.kind == "trace":
        if not arrivals.path:
            fail("kind 'trace' needs 'path', the trace file", "path")
        elif not Path(arrivals.path).expanduser().is_file():
            fail(f"there is no trace file '{arrivals.path}'", "path")


def _check_mix(scenario: Scenario) -> None:
    if not scenario.workload.mix:
        raise SpecError("the mix needs at least one workflow", where=location(scenario, "workload.mix"))
    names = [entry.workflow for entry in scenario.workload.mix]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise SpecError(
                f"workflow '{name}' is listed twice; give it one entry with a larger weight",
                where=location(scenario, f"workload.mix[{i}].workflow"),
            )


def check_workflow(graph: WorkflowGraph, cluster: ClusterSpec) -> None:
    """Refuse a workflow that a cluster cannot serve."""
    workflow = graph.workflow
    models = cluster_models(cluster)
    names = [entry.name for entry in models]
    for i, stage in enumerate(workflow.stages):
        for k, name in enumerate(stage.candidates or ()):
            if name not in names:
                model(name, cluster, where=location(workflow, f"stages[{i}].candidates[{k}]"))
        if not stage_candidates(stage, models):
            raise SpecError(
                f"no candidate of stage '{stage.name}' ({', '.join(stage.candidates or ())}) is in cluster "
                f"'{cluster.name}', which has {', '.join(names)}",
                where=location(workflow, f"stages[{i}].candidates"),
            )
    if len(models) ** graph.n_llm > MAX_CONFIGURATIONS:
        raise SpecError(
            f"{len(models)} models for {graph.n_llm} LLM calls make {len(models) ** graph.n_llm} "
            f"configurations; at most {MAX_CONFIGURATIONS} are possible",
            where=location(workflow, "stages"),
        )
    _check_lengths(graph, cluster)


def call_limits(graph: WorkflowGraph) -> tuple[tuple[int, int], ...]:
    """Return, for each node, the most prompt and output tokens it may have; (0, tokens) for a tool."""
    stages = graph.stage_of
    outputs = [
        stage.output.max_tokens if stage.output else stage.tool_output.maximum if stage.tool_output else 0
        for stage in stages
    ]
    limits = []
    for k, (node, stage) in enumerate(zip(graph.nodes, stages, strict=True)):
        prompt = 0
        if stage.prompt:
            prompt = stage.prompt.template_tokens + sum(outputs[c] for c in node.context)
            prompt += graph.workflow.query_tokens.maximum if stage.prompt.query else 0
        limits.append((prompt, outputs[k]))
    return tuple(limits)


def _check_lengths(graph: WorkflowGraph, cluster: ClusterSpec) -> None:
    """Refuse calls that a server would answer with an error because they exceed its context length."""
    workflow = graph.workflow
    models = cluster_models(cluster)
    for node, (prompt, output) in zip(graph.nodes, call_limits(graph), strict=True):
        stage = workflow.stages[node.stage]
        allowed = {models[m].name for m in stage_candidates(stage, models)} if stage.kind == "llm" else set()
        for replica in cluster.replicas:
            limit = context_length(replica, cluster)
            if replica.model in allowed and prompt + output > limit:
                raise SpecError(
                    f"stage '{stage.name}' may need {prompt + output} tokens (prompt {prompt}, output "
                    f"{output}), more than replica '{replica.name}' accepts ({limit}); lower the maxima or "
                    "change its candidates",
                    where=location(workflow, f"stages[{node.stage}]"),
                )
