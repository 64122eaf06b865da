"""`python -m scripts.train_baselines`: what it plans, how it compares, and that a small run goes from traffic to table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from aragog_env.harness.results import Results, RunResult
from scripts.learning import prices
from scripts.learning.decisions import charged
from scripts.learning.plan import (
    COMPARED,
    FULL,
    PAIRS,
    PRICED,
    QUICK,
    REFERENCE,
    Case,
    at_load,
    azure,
    cases,
    table_jobs,
)
from scripts.learning.tables import jct_change
from scripts.train_baselines import main

CASE = Case("text_to_sql_bird", "oracle")
CEILINGS = {(case, ""): 20.0 for case in [*cases(FULL), CASE]}


def test_every_cell_is_run_once_on_the_same_seeds_for_all_that_are_compared(tmp_path: Path) -> None:
    jobs = list(table_jobs(FULL, CEILINGS, tmp_path, tmp_path / "models"))
    assert len({job.key for job in jobs}) == len(jobs)
    cells = len(cases(FULL)) * len(FULL.loads)
    assert len({job.scenario.name for job in jobs}) == cells
    for policy in COMPARED:
        names = {case.policy(policy, tmp_path / "models") for case in cases(FULL)}
        seeds = [job.seed for job in jobs if job.policy in names]
        assert sorted(set(seeds)) == list(range(FULL.seeds)) and len(seeds) == cells * FULL.seeds


def test_all_policies_of_a_case_get_its_viable_sets() -> None:
    models = Path("some/models")
    assert CASE.policy(REFERENCE, models) == "aragog:oracle"
    assert CASE.policy("ppo", models) == "ppo:some/models,viable=oracle"
    assert CASE.policy("aragog:order=fewest_left", models) == "aragog:oracle,order=fewest_left"
    assert CASE.policy("least_loaded", models) == "least_loaded"
    assert replace(CASE, point_s=2.5).policy(PRICED, models) == "shortest_work:oracle,point_s=2.5,most_loss=20"


def test_the_fastest_that_keeps_accuracy_is_taken(tmp_path: Path) -> None:
    """Aragog is right at 80%, the rule the more often the dearer a point is, and it is slower then."""
    wanted = list(prices.jobs(FULL, CEILINGS, tmp_path))
    assert len(wanted) == len(PAIRS) * (1 + len(prices.PRICES_S) * len(prices.MOST_LOSSES))
    size, runs = replace(FULL, pairs=PAIRS[:2]), []
    for job in wanted:
        named = dict(word.split("=") for word in job.policy.split(",")[1:])
        price, most = float(named.get("point_s", 0)), float(named.get("most_loss", 0))
        accuracy = (
            0.8 if not price else 0.79 + 0.003 * price if PAIRS[0] in job.scenario.name else 0.1 + 0.001 * price * most
        )
        metrics = {"accuracy_expected": accuracy, "jct_mean_s": 10 + price + most / 100}
        runs.append(RunResult(job.policy, job.scenario.name, job.seed, rate_rps=job.rate_rps, metrics=metrics))
    assert prices.choose(Results(tmp_path, {}, runs), size, CEILINGS, tmp_path) == {
        PAIRS[0]: (2.0, 1.5),
        PAIRS[1]: (8.0, 20.0),
    }


def test_a_load_is_a_share_of_the_ceiling() -> None:
    scenario = at_load(CASE, FULL, 0.9, CEILINGS)
    assert scenario.workload.arrivals.rate_rps == 18.0 and scenario.horizon.requests == FULL.requests
    assert scenario.horizon.warmup_requests == FULL.requests // 10


def test_what_is_charged_is_what_was_measured() -> None:
    times = {str(CASE): {"ppo": 0.8, "ppo, batched": 0.04}}
    names = [charged(CASE, measured, Path("models"), times) for measured in times[str(CASE)]]
    assert names == ["charged@0.800:ppo:models,viable=oracle", "charged@0.040:ppo:models,viable=oracle"]


def test_without_the_trace_its_fitted_arrivals_are_taken(tmp_path: Path) -> None:
    fitted = azure(CASE, FULL, CEILINGS, tmp_path)
    assert fitted.workload.arrivals.kind == "mmpp" and fitted.workload.arrivals.rate_rps == 18.0
    folder = tmp_path / "azure_llm_2023"
    folder.mkdir()
    (folder / "AzureLLMInferenceTrace_conv.csv.gz").write_bytes(b"")
    traced = azure(CASE, FULL, CEILINGS, tmp_path)
    assert traced.workload.arrivals.kind == "trace" and traced.workload.arrivals.rate_rps == 18.0
    assert traced.name != fitted.name


def run(policy: str, seed: int, jct_s: float) -> RunResult:
    return RunResult(policy, "any", seed, metrics={"jct_mean_s": jct_s})


def test_changes_are_paired_by_seed() -> None:
    """Seeds differ threefold, the policy is a fifth faster on each: the interval is about that, not about the seeds."""
    reference = {seed: run(REFERENCE, seed, 10.0 * (1 + seed)) for seed in range(5)}
    ours = {seed: run("ppo", seed, 8.0 * (1 + seed) * (1 + 0.01 * (-1) ** seed)) for seed in range(4)}
    change = jct_change({REFERENCE: reference, "ppo": ours}, "ppo")
    assert change.value == pytest.approx(-0.2) and change.n == 4
    assert -0.25 < change.low < -0.2 < change.high < -0.15
    assert np.isfinite(change.low)


@pytest.mark.slow
def test_a_small_run_trains_compares_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = replace(QUICK, requests=60, imitated=200, steps=9_000)
    monkeypatch.setattr("scripts.train_baselines.QUICK", size)
    assert main(["--quick", "--out", str(tmp_path), "--workers", "1", "--data", str(tmp_path)]) == 0
    report = (tmp_path / "baselines.md").read_text()
    for text in (PAIRS[0], "ppo", "imitation", "qwen-16xh100-replicated", "azure-conv-mmpp", "Time of decisions"):
        assert text in report
    files = sorted(file.name for file in (tmp_path / "models").iterdir())
    assert files == [f"{kind}-{PAIRS[0]}.safetensors" for kind in ("imitation", "ppo")]
    assert (tmp_path / "figures" / f"ppo-{PAIRS[0]}.png").stat().st_size > 5_000
    lines = (tmp_path / "table" / "results.jsonl").read_text()
    assert main(["--quick", "--out", str(tmp_path), "--workers", "1", "--data", str(tmp_path)]) == 0
    assert (tmp_path / "table" / "results.jsonl").read_text() == lines
    assert (tmp_path / "baselines.md").read_text() == report
