"""A scenario turned into the arrays that the engines run on. Made once per scenario, shared by all its environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine.config import EngineConfig
from .engine.state import EngineTables, build_tables
from .latency.compiled import PS_PER_S, CompiledLatency
from .latency.model import latency_for
from .latency.table import LatencyTable
from .outcomes import OutcomeTable, outcome_table
from .progress import COPIES, OWN, STAGES, WorkflowTables
from .specs import catalogue
from .specs.cluster import ClusterSpec, ReplicaSpec
from .specs.graph import WorkflowGraph, unroll
from .specs.hardware import ModelSpec
from .specs.limits import engine_limits
from .specs.load import outcome_file, scenario_workflows
from .specs.scenario import Scenario
from .specs.strict import location
from .specs.validate import validate_scenario
from .standalone import standalone_latency
from .view import ClusterInfo


@dataclass(frozen=True, eq=False)
class CompiledScenario:
    """Everything about a scenario that no episode changes."""

    scenario: Scenario
    replicas: tuple[ReplicaSpec, ...]
    """Route order; `count` is expanded."""
    models: tuple[ModelSpec, ...]
    """Distinct models, smallest first."""
    engines: tuple[EngineConfig, ...]  # (R,)
    latencies: tuple[LatencyTable, ...]  # (R,)
    blocks_given: tuple[bool, ...]
    """Per replica: the KV block count was given, not estimated."""
    graphs: tuple[WorkflowGraph, ...]  # (W,)
    outcomes: tuple[OutcomeTable, ...]  # (W,)
    engine: EngineTables
    workflow: WorkflowTables
    standalone_ps: NDArray[np.int64]
    """(Q,) latency of each query alone on the cluster, fastest route at every stage."""
    arena_bound: NDArray[np.int64]
    """(Q,) most KV blocks that one request with this query can hash."""
    max_nodes: int

    @cached_property
    def info(self) -> ClusterInfo:
        """What every policy may know: no outcomes, no true lengths."""
        return ClusterInfo(
            models=tuple(m.name for m in self.models),
            model_sizes_b=tuple(m.size_b for m in self.models),
            routes=tuple(r.name for r in self.replicas),
            route_gpus=tuple(r.tp for r in self.replicas),
            workflows=tuple(g.workflow.name for g in self.graphs),
            nodes=tuple(tuple(n.name for n in g.nodes) for g in self.graphs),
            queries=tuple(o.query_set for o in self.outcomes),
            radix=self.workflow.radix,
            expected_output_tokens=self.workflow.expected_output,
            engine=self.engine,
        )

    @property
    def usd_per_hour(self) -> tuple[float, ...]:
        """Price of each replica's GPUs."""
        cluster = self.scenario.cluster
        return tuple(catalogue.gpu(r.gpu, cluster).price_usd_per_hour * r.tp for r in self.replicas)

    @property
    def log_header(self) -> dict[str, Any]:
        """The fields of an `EpisodeLog` that no episode changes."""
        return {
            "scenario": self.scenario.name,
            "workflows": self.info.workflows,
            "models": self.info.models,
            "replicas": self.info.routes,
            "replica_models": tuple(int(m) for m in self.workflow.route_model),
            "replica_gpus": self.info.route_gpus,
            "replica_usd_per_hour": self.usd_per_hour,
            "node_names": self.info.nodes,
            "warmup_requests": self.scenario.horizon.warmup_requests,
            "slo_s": self.scenario.objective.slo_s,
            "slo_scale": self.scenario.objective.slo_scale,
        }


@lru_cache(maxsize=32)
def compile_scenario(scenario: Scenario) -> CompiledScenario:
    """Validate a scenario and lay out its tables.

    Raises:
        SpecError: the scenario cannot run (see `specs.validate`).
    """
    validate_scenario(scenario)
    cluster = scenario.cluster
    replicas = cluster.expand()
    models = catalogue.cluster_models(cluster)
    position = {m.name: i for i, m in enumerate(models)}
    engines, latencies, compiled = _engines(replicas, cluster)
    specs = scenario_workflows(scenario)
    graphs = tuple(unroll(w) for w in specs)
    outcomes = tuple(
        outcome_table(g, models, outcome_file(scenario, i), location(scenario, f"workload.mix[{i}].outcomes"))
        for i, g in enumerate(graphs)
    )
    route_model = np.array([position[r.model] for r in replicas], np.int32)
    engine = build_tables(engines, compiled, models=[int(m) for m in route_model], gpus=[r.tp for r in replicas])
    workflow = _workflow_tables(graphs, outcomes, models, route_model)
    return CompiledScenario(
        scenario=scenario,
        replicas=replicas,
        models=models,
        engines=engines,
        latencies=latencies,
        blocks_given=tuple(r.num_gpu_blocks is not None for r in replicas),
        graphs=graphs,
        outcomes=outcomes,
        engine=engine,
        workflow=workflow,
        standalone_ps=standalone_latency(engine, workflow),
        arena_bound=_arena_bound(workflow),
        max_nodes=workflow.parents.shape[1],
    )


def _engines(
    replicas: Sequence[ReplicaSpec], cluster: ClusterSpec
) -> tuple[tuple[EngineConfig, ...], tuple[LatencyTable, ...], list[CompiledLatency]]:
    """Return vLLM settings, latency tables and compiled latencies; equal replicas share one compiled latency."""
    configs: list[EngineConfig] = []
    tables: list[LatencyTable] = []
    compiled: list[CompiledLatency] = []
    known: dict[tuple[object, ...], tuple[LatencyTable, CompiledLatency]] = {}
    for r in replicas:
        model, gpu = catalogue.model(r.model, cluster), catalogue.gpu(r.gpu, cluster)
        limits = engine_limits(r, cluster)
        configs.append(
            EngineConfig(
                max_num_seqs=limits.max_num_seqs,
                max_num_batched_tokens=limits.max_num_batched_tokens,
                max_model_len=limits.max_model_len,
                num_gpu_blocks=limits.num_gpu_blocks,
                enable_prefix_caching=r.enable_prefix_caching,
                scheduling_policy=r.scheduling_policy,
                async_scheduling=r.async_scheduling,
            )
        )
        size = (limits.max_num_seqs, limits.max_num_batched_tokens)
        outside_ms = r.submit_ms + r.close_ms + cluster.decision_ms
        if cluster.sharing is not None:
            outside_ms *= cluster.sharing.typical_outside
        key = (model, gpu, r.tp, r.latency, r.latency_scale, r.latency_offset_ms, outside_ms, *size)
        if key not in known:
            table = latency_for(model, gpu, r.tp, r.latency, r.latency_scale, r.latency_offset_ms)
            # Engines know nothing outside themselves: here it goes into the iterations, in `backends.shared_host` it does not.
            if cluster.sharing is not None and cluster.sharing.typical != 1.0:
                table = table.scaled(
                    cluster.sharing.typical, note=f"times {cluster.sharing.typical:g} (shared machine)"
                )
            if outside_ms:
                table = table.with_prompt_cost(
                    outside_ms, note=f"plus {outside_ms:g} ms per prompt (outside the engine)"
                )
            known[key] = (table, table.compile(*size))
        tables.append(known[key][0])
        compiled.append(known[key][1])
    return tuple(configs), tuple(tables), compiled


def _workflow_tables(
    graphs: Sequence[WorkflowGraph],
    outcomes: Sequence[OutcomeTable],
    models: Sequence[ModelSpec],
    route_model: NDArray[np.int32],
) -> WorkflowTables:
    """Stack graphs and outcome tables, padded to the largest workflow."""
    count, width, m = len(graphs), max(len(g.nodes) for g in graphs), len(models)
    queries = [len(o.own_prompt_tokens) for o in outcomes]
    configurations = [o.p_correct.shape[1] for o in outcomes]
    first_row = np.cumsum([0, *queries])
    flat = np.cumsum([0, *(q * c for q, c in zip(queries, configurations, strict=True))])
    shape = (count, width)
    t = WorkflowTables(
        nodes=np.array([len(g.nodes) for g in graphs], np.int32),
        is_tool=np.zeros(shape, np.int32),
        parents=np.zeros(shape, np.int64),
        context=np.zeros(shape, np.int64),
        depth=np.zeros(shape, np.int32),
        radix=np.zeros(shape, np.int64),
        skip_on=np.full(shape, -1, np.int32),
        template=np.zeros(shape, np.int64),
        template_tokens=np.zeros(shape, np.int32),
        prefix_twins=np.zeros(shape, np.int32),
        allowed=np.zeros((count, width, len(route_model)), np.int32),
        expected_output=np.zeros((count, width, m)),
        route_model=route_model,
        first_row=first_row[:-1].astype(np.int64),
        first_configuration=flat[:-1].astype(np.int64),
        configurations=np.array(configurations, np.int64),
        own_prompt=np.zeros((first_row[-1], width), np.int32),
        output=np.zeros((first_row[-1], width, m), np.int32),
        skipped=np.zeros((first_row[-1], width), np.int32),
        tool_ps=np.zeros((first_row[-1], width), np.int64),
        p_correct=np.concatenate([o.p_correct.ravel() for o in outcomes]).astype(np.float32),
    )
    templates: dict[tuple[str, str], int] = {}
    for w, (graph, outcome) in enumerate(zip(graphs, outcomes, strict=True)):
        rows, n = slice(first_row[w], first_row[w + 1]), len(graph.nodes)
        t.own_prompt[rows, :n] = outcome.own_prompt_tokens
        t.output[rows, :n] = outcome.output_tokens
        t.skipped[rows, :n] = (outcome.skipped.astype(np.int64) << np.arange(m)).sum(axis=2)
        t.tool_ps[rows, :n] = np.round(outcome.tool_s.astype(np.float64) * PS_PER_S)
        t.expected_output[w, :n] = outcome.expected_output_tokens
        t.parents[w, :n], t.depth[w, :n] = graph.parents, graph.depth
        for k, node in enumerate(graph.nodes):
            stage = graph.workflow.stages[node.stage]
            t.is_tool[w, k] = node.kind == "tool"
            t.context[w, k] = sum(1 << c for c in node.context)
            t.skip_on[w, k] = node.skip_on
            if stage.prompt is None:
                continue
            t.radix[w, k] = m ** (graph.n_llm - 1 - node.llm_slot)
            t.template[w, k] = templates.setdefault((graph.workflow.name, stage.prompt.template), len(templates))
            t.template_tokens[w, k] = stage.prompt.template_tokens
            t.prefix_twins[w, k] = _prefix_twins(graph, k)
            names = [model.name for model in models]
            allowed = {names.index(c) for c in stage.candidates} if stage.candidates else set(range(m))
            t.allowed[w, k] = np.isin(route_model, list(allowed))
    return t


def _prefix_twins(graph: WorkflowGraph, k: int) -> int:
    """Return which other nodes have prompts that begin as node `k`'s does."""
    prompt = graph.stage_of[k].prompt
    assert prompt is not None
    same = [
        node.stage
        for j, node in enumerate(graph.nodes)
        if j != k and (other := graph.stage_of[j].prompt) is not None and other.template == prompt.template
    ]
    if any(stage != graph.nodes[k].stage for stage in same):
        return STAGES
    return COPIES if same else OWN


def _arena_bound(t: WorkflowTables) -> NDArray[np.int64]:
    """Return for each query the most block hashes all its calls together can need."""
    longest = t.output.max(axis=2).astype(np.int64)  # (Q, N)
    bound = np.zeros(len(longest), np.int64)
    ends = [*t.first_row[1:], len(longest)]
    for w, (begin, end) in enumerate(zip(t.first_row, ends, strict=True)):
        for node in range(t.nodes[w]):
            tokens = t.own_prompt[begin:end, node] + longest[begin:end, node]
            for other in range(node):
                if t.context[w, node] >> other & 1:
                    tokens = tokens + longest[begin:end, other]
            bound[begin:end] += tokens // 16 + 1
    return bound
