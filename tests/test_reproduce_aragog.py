"""The reproduction of the paper at toy size, from the first run to tables and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aragog_env.episode import REQUEST_DTYPE
from aragog_env.errors import AragogError
from aragog_env.harness.progress import Silent
from scripts.reproduce_aragog import main, reproduce
from scripts.reproduction import paper
from scripts.reproduction.measure import Curve, Point, cut, gain, steady_throughput_rps
from scripts.reproduction.plan import FULL, QUICK, WITH_ROUTER, Pair, Setting, all_runs, bound_rps, requests_at

TOY = replace(
    QUICK,
    fractions=(0.3, 1.3),
    fillings=0.02,
    least_requests=24,
    seeds=2,
    workflows=("self_refine_humaneval",),
    viable="oracle",
    snapshots=0,
)


class Counts(Silent):
    """Counts the runs that are started."""

    def __init__(self) -> None:
        self.started = 0

    def start(self, job: object) -> None:
        self.started += 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduction") / "results"
    counts = Counts()
    reproduce(TOY, out, progress=counts)
    assert counts.started == sum(len(run.rates_rps) for run in all_runs(TOY)) * 2
    return out


def test_tables_and_figures_are_written(folder: Path) -> None:
    text = (folder / "reproduction.md").read_text()
    for heading in (
        "Throughput ceiling",
        "Same knowledge",
        "Ranges over pairs",
        "Latency at the highest rate",
        "Accuracy",
        "Binding",
    ):
        assert f"## {heading}" in text
    assert "+217.0" in text and "+42.8 to +76.3" in text and "60.0 to 86.1" in text
    assert "nan" not in text
    for name in ("throughput_latency", "gains", "latency_cuts", "binding", "ablations"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_follow_from_the_runs(folder: Path) -> None:
    data = json.loads((folder / "reproduction.json").read_text())
    (pair,) = data["pairs"]
    assert set(pair["curves"]) == {"aragog", "per_input", "per_workflow"}
    for name, curve in pair["curves"].items():
        best = max(point["value"] for point in curve["throughput_rps"])
        assert pair["ceiling_rps"][name]["value"] == pytest.approx(best)
    assert pair["curves"]["per_input"]["cluster"] == "qwen-8xh100-2x7b"
    assert pair["curves"]["aragog"]["cluster"] == "qwen-8xh100"
    (binding,) = data["binding"]
    assert max(binding["share"].values()) == 1.0 and len(binding["share"]) == 4
    (ablated,) = data["ablations"]
    variants = ablated["variants"]
    # A true oracle takes no time to charge for, so these are one and the same policy.
    assert variants["oracle"]["ceiling_rps"]["aragog"] == variants["free_routing"]["ceiling_rps"]["aragog"]
    assert variants["4_gpus"]["ceiling_rps"] != variants["default"]["ceiling_rps"]
    assert variants["beam_1"]["paper"] == {"per_input": 0.163, "per_workflow": 0.822}


def test_a_second_start_runs_nothing_and_gives_the_same(folder: Path) -> None:
    before = (folder / "reproduction.json").read_bytes()
    counts = Counts()
    reproduce(TOY, folder, progress=counts)
    assert counts.started == 0 and (folder / "reproduction.json").read_bytes() == before


def test_a_missing_run_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AragogError, match=r"no result of .* seed 2"):
        reproduce(replace(TOY, seeds=3), folder, run=False)
    assert main(["--report-only", "--out", str(tmp_path / "nothing")]) == 1
    assert "no results folder" in capsys.readouterr().err


def log_with(finish_s: np.ndarray) -> SimpleNamespace:
    requests = np.zeros(len(finish_s), REQUEST_DTYPE)
    requests["finish_s"] = finish_s
    return SimpleNamespace(requests=requests)


def test_throughput_is_that_of_the_steady_part() -> None:
    """Nothing for 50 s, then two a second for 100 s, then a tail of 20 requests over 1000 s."""
    finish_s = np.concatenate([50 + 0.5 * np.arange(200), 150 + 50.0 * np.arange(20)])
    assert steady_throughput_rps(log_with(finish_s)) == pytest.approx(2.0)  # type: ignore[arg-type]
    assert np.isnan(steady_throughput_rps(log_with(np.arange(5.0))))  # type: ignore[arg-type]


def test_the_ceiling_is_the_highest_mean_and_gains_are_paired() -> None:
    points = tuple(
        Point(rate, {"throughput_rps": np.array(values)}) for rate, values in ((1.0, [1.0, 1.0]), (2.0, [1.5, 1.9]))
    )
    curve = Curve(Setting("p", "c"), (*points, Point(3.0, {"throughput_rps": np.array([1.6, 1.7])})))
    assert curve.best.rate_rps == 2.0 and curve.top.rate_rps == 3.0
    assert gain(curve.ceiling, np.array([1.0, 0.5])).value == pytest.approx((0.5 + 2.8) / 2)
    assert cut(np.array([1.0, 3.0]), np.array([2.0, 4.0])).value == pytest.approx((0.5 + 0.25) / 2)


def test_the_plan_covers_the_paper() -> None:
    runs = all_runs(FULL)
    assert {(run.pair.workflow, run.pair.family) for run in runs} == {
        (w, f) for w in paper.WORKFLOWS for f in paper.FAMILIES
    }
    keys = [(run.scenario.name, run.setting.policy) for run in runs]
    assert len(set(keys)) == len(keys)
    voting = Pair("voting_mmlu_pro", "qwen")
    own = voting.on(WITH_ROUTER["qwen"])
    rate = FULL.fractions[-1] * bound_rps(own)
    # Enough requests for the servers to fill several times, and equally long arrivals at lower rates.
    assert requests_at(voting, FULL, rate) == pytest.approx(2 * requests_at(voting, FULL, rate / 2), rel=0.01)
    assert requests_at(voting, FULL, rate) > 1000 and requests_at(voting, FULL, 0.01) == FULL.least_requests
    assert bound_rps(voting.on("qwen-4xh100")) < bound_rps(own) < bound_rps(voting.on("qwen-8xh100-2x7b"))


def test_the_papers_numbers_are_consistent_with_each_other() -> None:
    for name, values in paper.GAIN.items():
        for baseline, value in values.items():
            low, high = paper.GAIN_RANGE[baseline]
            assert low <= value <= high, name
            assert value == paper.ABLATIONS["default"][name[0]][baseline]
    for kinds in paper.GAIN_RANGE_BY_KIND.values():
        for baseline, (low, high) in kinds.items():
            assert paper.GAIN_RANGE[baseline][0] <= low < high <= paper.GAIN_RANGE[baseline][1]
    losses = [top - ours for pairs in paper.ACCURACY.values() for top, ours in pairs]
    assert max(losses) == pytest.approx(paper.LARGEST_ACCURACY_LOSS)
