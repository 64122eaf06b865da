"""List what can be named on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Final

Rows = tuple[Sequence[str], Sequence[Sequence[str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", nargs="?", choices=[*KINDS, "all"], default="all", help="what to list (default: all)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    kinds = list(KINDS) if options.kind == "all" else [options.kind]
    if options.json:
        listed = {}
        for kind in kinds:
            header, rows = KINDS[kind]()
            listed[kind] = [dict(zip((h.lower() for h in header), row, strict=True)) for row in rows]
        print(json.dumps(listed, indent=2))
        return 0
    from .output import print_rows

    for kind in kinds:
        print_rows(kind, *KINDS[kind]())
    return 0


def _policies() -> Rows:
    from ..registry import policy_entries

    entries = [(e.variants or (f"{n}:{e.argument}".rstrip(":"),), e) for n, e in policy_entries().items()]
    return ("Name", "What it does"), [(", ".join(names), e.summary) for names, e in entries]


def _scenarios() -> Rows:
    from ..specs.load import list_presets, load_scenario

    rows = []
    for name in list_presets("scenarios"):
        s = load_scenario(name)
        arrivals = s.workload.arrivals
        rate = f"{arrivals.rate_rps:g}/s" if arrivals.rate_rps else ""
        rows.append((name, s.cluster.name, f"{arrivals.kind} {rate}".strip(), str(s.horizon.requests), s.description))
    return ("Name", "Cluster", "Arrivals", "Requests", "Description"), rows


def _clusters() -> Rows:
    from ..specs.load import list_presets, load_cluster

    rows = []
    for name in list_presets("clusters"):
        cluster = load_cluster(name)
        parts = (
            f"{r.count * r.tp}x {r.gpu}: {f'{r.count}x ' if r.count > 1 else ''}{r.model} TP{r.tp}"
            for r in cluster.replicas
        )
        rows.append((name, "; ".join(parts), cluster.description))
    return ("Name", "Replicas", "Description"), rows


def _workflows() -> Rows:
    from ..specs.load import list_presets, load_workflow

    rows = []
    for name in list_presets("workflows"):
        workflow = load_workflow(name)
        stages = ", ".join(stage.name for stage in workflow.stages)
        rows.append((name, workflow.dataset, stages, workflow.description))
    return ("Name", "Dataset", "Stages", "Description"), rows


def _models() -> Rows:
    from ..specs.catalogue import load_models

    rows = [
        (m.name, m.family, f"{m.size_b:g}", m.dtype, str(m.max_model_len), m.hf_id)
        for m in sorted(load_models().values(), key=lambda m: (m.family, m.size_b))
    ]
    return ("Name", "Family", "Size (1e9)", "Dtype", "Context", "Weights"), rows


def _gpus() -> Rows:
    from ..specs.catalogue import load_gpus

    rows = [
        (
            g.name,
            f"{g.memory_gib:g}",
            f"{g.bandwidth_gb_s:g}",
            f"{g.bf16_tflops:g}",
            f"{g.price_usd_per_hour:g}",
        )
        for g in load_gpus().values()
    ]
    return ("Name", "Memory (GiB)", "Bandwidth (GB/s)", "BF16 (TFLOP/s)", "USD/h"), rows


def _arrivals() -> Rows:
    from ..specs.load import list_presets, load_arrivals

    rows = []
    for name in list_presets("arrivals"):
        arrivals = load_arrivals(name)
        rate = f"{arrivals.rate_rps:g}" if arrivals.rate_rps else ""
        rows.append((name, arrivals.kind, rate, arrivals.source))
    return ("Name", "Kind", "Rate (req/s)", "Source"), rows


def _metrics() -> Rows:
    from ..harness.metrics import METRICS

    return ("Name", "Unit", "Better", "Meaning"), [(n, m.unit, m.better, m.meaning) for n, m in METRICS.items()]


KINDS: Final[dict[str, Callable[[], Rows]]] = {
    "policies": _policies,
    "scenarios": _scenarios,
    "clusters": _clusters,
    "workflows": _workflows,
    "models": _models,
    "gpus": _gpus,
    "arrivals": _arrivals,
    "workloads": _arrivals,
    "metrics": _metrics,
}
