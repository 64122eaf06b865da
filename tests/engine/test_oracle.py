"""Our engines against the real vLLM scheduler: digests always, vLLM itself where it is installed."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env.engine.open_loop import run_compiled
from aragog_env.engine.reference import run_reference
from aragog_env.engine.workloads import (
    WORKLOADS,
    EngineWorkload,
    asynchronous,
    random_small,
    shared_prefix,
    synthetic_latency,
)
from scripts import compare_with_vllm
from scripts.oracle_runs import (
    as_arrays,
    differences,
    find_vllm_python,
    golden_differences,
    input_digest,
    read_golden,
)

GOLDEN = read_golden(Path(__file__).parent / "golden" / "vllm_0.32.0.json.gz")
NAMED = [name for name in GOLDEN if not name.startswith("random_")]
RANDOM = [name for name in GOLDEN if name.startswith("random_")]


def build(name: str) -> EngineWorkload:
    """Return the workload of a golden entry, checked to be the one vLLM served."""
    if name.startswith("random_"):
        workload = random_small(int(name.removeprefix("random_")))
    elif name.endswith("_async"):
        workload = asynchronous(WORKLOADS[name.removesuffix("_async")]())
    else:
        workload = WORKLOADS[name]()
    assert input_digest(workload) == GOLDEN[name]["input"], (
        "the workload differs from the one that vLLM served; run python -m scripts.compare_with_vllm --write-golden"
    )
    return workload


def reference_differences(name: str) -> list[str]:
    """Return how the reference engine departs from vLLM on a golden workload."""
    workload = build(name)
    latency = synthetic_latency(workload.config)
    run = run_reference(workload.config, latency, workload.requests, log=True)
    return list(golden_differences(GOLDEN[name], as_arrays(run), log=True))


def compiled_differences(name: str) -> list[str]:
    """Return how the compiled engine departs from vLLM on a golden workload."""
    workload = build(name)
    run = run_compiled(workload.config, synthetic_latency(workload.config), workload.requests)
    found = list(golden_differences(GOLDEN[name], as_arrays(run), log=False))
    if run.iterations != GOLDEN[name]["iterations"]:
        found.append(f"iterations: {run.iterations}, vLLM {GOLDEN[name]['iterations']}")
    return found


def test_the_golden_workloads_are_what_they_claim_to_be() -> None:
    assert {*NAMED} == {*WORKLOADS} | {f"{name}_async" for name in WORKLOADS}
    assert len(RANDOM) >= 100
    assert GOLDEN["chat"]["requests"] == 1000
    assert GOLDEN["pressure"]["preemptions"] >= 100
    assert GOLDEN["priority"]["preemptions"] >= 100
    assert GOLDEN["shared_prefix"]["preemptions"] > 0
    assert GOLDEN["agentic"]["cached_tokens"] > 100_000


@pytest.mark.parametrize("name", NAMED)
def test_reference_equals_vllm(name: str) -> None:
    assert reference_differences(name) == []


def test_reference_equals_vllm_on_random_workloads() -> None:
    assert {name: found for name in RANDOM if (found := reference_differences(name))} == {}


@pytest.mark.parametrize("name", NAMED)
def test_compiled_equals_vllm(name: str) -> None:
    assert compiled_differences(name) == []


def test_compiled_equals_vllm_on_random_workloads() -> None:
    assert {name: found for name in RANDOM if (found := compiled_differences(name))} == {}


def test_a_changed_rule_is_noticed_and_located() -> None:
    workload = shared_prefix(count=60)
    latency = synthetic_latency(workload.config)
    truth = as_arrays(run_reference(workload.config, latency, workload.requests, log=True))
    assert list(differences(truth, truth, log=True)) == []
    fewer = dataclasses.replace(workload.config, max_num_seqs=workload.config.max_num_seqs - 40)
    other = as_arrays(run_reference(fewer, latency, workload.requests, log=True))
    found = list(differences(truth, other, log=True))
    assert found[0].startswith("iteration ")
    assert any(sentence.startswith("finish_ps of ") for sentence in found)


def test_one_changed_number_is_noticed_in_digests() -> None:
    name = "shared_prefix"
    workload = build(name)
    latency = synthetic_latency(workload.config)
    run = as_arrays(run_reference(workload.config, latency, workload.requests, log=True))
    steps = run.steps.copy()
    steps[130, -1] += 1
    found = list(golden_differences(GOLDEN[name], dataclasses.replace(run, steps=steps), log=True))
    assert found == ["first difference in iterations 128..191"]
    calls = run.calls.copy()
    calls[1, 3] += np.int64(1)
    found = list(golden_differences(GOLDEN[name], dataclasses.replace(run, calls=calls), log=True))
    assert [sentence.split(":")[0] for sentence in found] == ["calls_sha256"]
    changed: dict[str, Any] = copy.deepcopy(GOLDEN[name])
    changed["sample_calls"]["40"][0] += 1
    assert next(golden_differences(changed, run, log=True)).startswith("request 40")


def test_the_command_fails_on_a_difference_and_without_vllm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = build("shared_prefix")
    run = run_reference(workload.config, synthetic_latency(workload.config), workload.requests, log=True)
    truth = as_arrays(run)
    command = ["--only", "shared_prefix", "--random", "0", "--engine", "reference"]
    monkeypatch.setattr(compare_with_vllm, "find_vllm_python", lambda given: Path(given or "python"))
    monkeypatch.setattr(compare_with_vllm, "run_vllm", lambda python, chosen: {"shared_prefix": (truth, 1.0)})
    assert compare_with_vllm.main(command) == 0
    truth.calls[7, 5] += 16
    assert compare_with_vllm.main(command) == 1
    assert "cached_tokens of 1 requests, first request 7" in capsys.readouterr().out
    monkeypatch.setattr(compare_with_vllm, "find_vllm_python", lambda given: None)
    assert compare_with_vllm.main(command) == 2


@pytest.mark.slow
@pytest.mark.skipif(find_vllm_python() is None, reason="no vLLM environment (scripts/install_vllm_cpu.sh)")
def test_real_vllm_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    code = compare_with_vllm.main(["--random", "60", "--first-seed", "20000"])
    assert code == 0, capsys.readouterr().out
