"""Show what a scenario consists of: cluster, arrivals, workflows, objective, and its hash."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from . import options as shared

if TYPE_CHECKING:
    from ..specs.scenario import Scenario
    from ..specs.workflow import WorkflowSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("scenario", nargs="?", default="default", help="scenario name or path (default: default)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--yaml", action="store_true", help="print the complete scenario as YAML")
    form.add_argument("--json", action="store_true", help="print the complete scenario as JSON")
    shared.add_scenario_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..specs.load import scenario_workflows
    from ..specs.plain import spec_hash, to_dict
    from ..specs.strict import dump_yaml
    from ..specs.validate import validate_scenario

    scenario = shared.scenario_from(options.scenario, options)
    validate_scenario(scenario)
    workflows = scenario_workflows(scenario)
    if options.yaml:
        print(dump_yaml(scenario), end="")
    elif options.json:
        data = {"scenario": to_dict(scenario), "workflows": [to_dict(w) for w in workflows]}
        print(json.dumps({**data, "hash": spec_hash(scenario, *workflows)}, indent=2))
    else:
        _print(scenario, workflows, spec_hash(scenario, *workflows))
    return 0


def _print(scenario: Scenario, workflows: tuple[WorkflowSpec, ...], digest: str) -> None:
    from .output import print_rows

    arrivals, horizon, objective = scenario.workload.arrivals, scenario.horizon, scenario.objective
    slo = f"{objective.slo_s:g} s" if objective.slo_s else f"{objective.slo_scale:g} x standalone latency"
    rate = f", {arrivals.rate_rps:g} requests/s" if arrivals.rate_rps else ""
    users = f", {arrivals.users} users thinking {arrivals.think_s:g} s" if arrivals.kind == "closed" else ""
    trace = f" ({arrivals.path})" if arrivals.path else ""
    cut = f", cut at {horizon.duration_s:g} s" if horizon.duration_s else ""
    facts = [
        ("description", scenario.description),
        ("arrivals", f"{arrivals.kind}{trace}{rate}{users}"),
        ("episode", f"{horizon.requests} requests, {horizon.warmup_requests} of them warm-up{cut}"),
        ("SLO", slo),
        ("observation", f"{scenario.observation.ready_slots} ready calls"),
        ("hash", digest[:16]),
    ]
    print_rows(f"Scenario {scenario.name}", ("", ""), facts)
    replicas = [
        (
            r.name,
            r.model,
            f"{r.tp}x {r.gpu}",
            str(r.count),
            r.scheduling_policy,
            "yes" if r.enable_prefix_caching else "no",
        )
        for r in scenario.cluster.replicas
    ]
    header = ("Replica", "Model", "GPUs", "Count", "Queue", "Prefix cache")
    print_rows(f"Cluster {scenario.cluster.name}", header, replicas)
    total = sum(entry.weight for entry in scenario.workload.mix)
    for entry, workflow in zip(scenario.workload.mix, workflows, strict=True):
        share = 100 * entry.weight / total
        title = f"Workflow {workflow.name}: {share:.0f}% of the requests, {workflow.queries} queries"
        print_rows(title, ("Stage", "Kind", "After", "Models", "Details"), [_stage(s) for s in workflow.stages])


def _stage(stage: object) -> tuple[str, ...]:
    from ..specs.workflow import StageSpec

    assert isinstance(stage, StageSpec)
    details = []
    if stage.output is not None:
        medians = ", ".join(f"{m:g} tokens at {size:g}B" for size, m in sorted(stage.output.median_by_size_b.items()))
        details.append(f"output median {medians}")
    if stage.fan_out is not None:
        details.append(f"up to {len(stage.fan_out.probabilities)} copies")
    if stage.skip is not None:
        details.append(f"may be skipped after {stage.skip.on}")
    if stage.tool_s is not None:
        details.append(f"median {stage.tool_s.median_s:g} s")
    return (
        stage.name,
        stage.kind,
        ", ".join(stage.parents),
        ", ".join(stage.candidates or ()) or "all",
        "; ".join(details),
    )
