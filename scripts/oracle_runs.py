"""Runs of an engine as arrays: asking real vLLM for one, the first difference, digests to commit."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aragog_env.engine.config import EngineRun
from aragog_env.engine.workloads import EngineWorkload, synthetic_latency

ROOT = Path(__file__).resolve().parent.parent
DIGEST_STEPS = 64
"""Iterations under one digest: a difference from committed digests is located to within that many."""
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


def input_digest(workload: EngineWorkload) -> str:
    """Return a digest of a workload and its iteration times: has the input changed, or the engine?"""
    digest = hashlib.sha256(json.dumps(asdict(workload.config), sort_keys=True).encode())
    for request in sorted(workload.requests, key=lambda request: request.request_id):
        digest.update(repr(request).encode())
    for array in synthetic_latency(workload.config):
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def digest(run: RunArrays) -> dict[str, Any]:
    """Return what is committed of a run: digests of everything and a sample that a person can read."""
    steps = []
    for first in range(0, len(run.steps), DIGEST_STEPS):
        last = min(first + DIGEST_STEPS, len(run.steps))
        text = json.dumps([list(_describe(run, step).values()) for step in range(first, last)])
        steps.append(hashlib.sha256(text.encode()).hexdigest()[:10])
    return {
        "requests": len(run.request_id),
        "iterations": len(run.steps),
        "preemptions": int(run.calls[:, CALL_FIELDS.index("preemptions")].sum()),
        "cached_tokens": int(run.calls[:, CALL_FIELDS.index("cached_tokens")].sum()),
        "calls_sha256": hashlib.sha256(np.ascontiguousarray(run.calls, "<i8").tobytes()).hexdigest(),
        "steps_sha256": steps,
        "sample_calls": {str(run.request_id[i]): run.calls[i].tolist() for i in range(0, len(run.request_id), 40)},
    }


def write_golden(path: Path, workloads: Mapping[str, EngineWorkload], runs: Mapping[str, RunArrays]) -> None:
    """Write the digests of vLLM's runs."""
    content: dict[str, Any] = {"call_fields": CALL_FIELDS, "workloads": {}}
    for name, workload in workloads.items():
        entry = digest(runs[name])
        content["workloads"][name] = {"input": input_digest(workload), **entry}
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed time stamp, so that equal digests are equal bytes.
    path.write_bytes(gzip.compress(json.dumps(content, indent=0).encode(), mtime=0))


def read_golden(path: Path) -> dict[str, dict[str, Any]]:
    """Return the committed digests by workload."""
    workloads: dict[str, dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["workloads"]
    return workloads


def golden_differences(golden: Mapping[str, Any], run: RunArrays, *, log: bool) -> Iterator[str]:
    """Yield a sentence for every way in which `run` departs from committed digests; `log`: iterations too."""
    actual = digest(run)
    for key, expected in golden["sample_calls"].items():
        if actual["sample_calls"].get(key) != expected:
            yield f"request {key}: {CALL_FIELDS} = {actual['sample_calls'].get(key)}, vLLM {expected}"
            break
    compared = ["requests", "preemptions", "cached_tokens", "calls_sha256"]
    for name in [*compared, "iterations"] if log else compared:
        if actual[name] != golden[name]:
            yield f"{name}: {actual[name]}, vLLM {golden[name]}"
    if log:
        for part, (ours, theirs) in enumerate(zip(actual["steps_sha256"], golden["steps_sha256"], strict=False)):
            if ours != theirs:
                yield f"first difference in iterations {part * DIGEST_STEPS}..{(part + 1) * DIGEST_STEPS - 1}"
                break
