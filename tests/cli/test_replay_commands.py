"""`aragog calibrate`, `evaluate --backend replay`, `fidelity` and `validate` on recordings of simulated runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aragog_env import cli
from aragog_env.errors import SpecError
from aragog_env.harness.replay import Replayed, with_recorded
from aragog_env.harness.results import read
from aragog_env.specs.load import load_cluster
from tests.calibration.worlds import world, write


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings of two policies and two seeds."""
    folder = tmp_path_factory.mktemp("commands")
    scenario = world(requests=40, rate_rps=3.0)
    for policy in ("random", "fixed:smallest"):
        for seed in (0, 1):
            write(scenario, policy, folder / f"{policy.partition(':')[0]}-{seed}.db", seed)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with links to the recordings."""
    monkeypatch.chdir(tmp_path)
    for path in made.glob("*.db"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_the_whole_way(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "random-1.db", "fixed-1.db", "--out", "mine.yaml"]) == 0
    text = capsys.readouterr().out
    assert "small: overhead" in text and "cluster: mine.yaml" in text and "servers slow each other down" in text
    assert load_cluster("mine.yaml").sharing is not None

    words = ["evaluate", "--backend", "replay", "--recording", "random-0.db", "--recording", "fixed-0.db"]
    words += ["--cluster", "mine.yaml", "--workers", "1", "--out", "r"]
    assert cli.main([*words, "-p", "recorded", "-p", "fixed:largest"]) == 0
    text = capsys.readouterr().out
    assert "recorded: 0.0% of 80 calls had never been recorded" in text and "fixed:largest: " in text
    results = read("r")
    assert {run.policy: run.seed for run in results.ok} == {"recorded": 0, "fixed:largest": 0}
    (repeated,) = [run for run in results.ok if run.policy == "recorded"]
    assert (
        repeated.details["calls"] == repeated.details["recorded"] == 80
        and repeated.metrics["replay/never_recorded"] == 0
    )
    settings = results.manifest["sessions"][0]["settings"]
    assert (
        settings["backend"] == "replay" and not settings["calibrated_here"] and "random-1.db" in settings["calibration"]
    )
    page = Path("r/report.html").read_text()
    assert (
        "Replayed from recordings of live runs (random-0.db, fixed-0.db)" in page and "had never been recorded" in page
    )
    assert cli.main(["validate", "r", "--all"]) == 0
    assert "2 runs re-run, 2 reproduced exactly" in capsys.readouterr().out

    assert cli.main(["fidelity", "random-0.db", "fixed-0.db", "-c", "mine.yaml", "--out", "f"]) == 0
    text = capsys.readouterr().out
    assert (
        "JCT: error" in text and ": met." in text and "Ranks of 2 policies on made-up at 3 req/s: Spearman 1.00" in text
    )
    assert json.loads(Path("f/fidelity.json").read_text())["met"] == {"latency": True, "jct": True, "ranking": True}


def test_without_a_cluster_it_is_calibrated_on_the_spot(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--backend", "replay", "--recording", "random-0.db", "--recording", "random-1.db", "-j", "1"]
    assert cli.main([*words, "-p", "least_loaded", "--out", "r", "--json", "--no-report"]) == 0
    captured = capsys.readouterr()
    assert "calibrated on these recordings themselves" in captured.err
    (row,) = json.loads(captured.out)["tables"][0]["policies"]
    assert row["seeds"] == 2
    results = read("r")
    assert [run.seed for run in results.ok] == [0, 1]
    assert results.manifest["sessions"][0]["settings"]["calibrated_here"]
    # The slower machine of the same command, gone on with: nothing is done twice.
    assert cli.main([*words, "-p", "least_loaded", "--out", "r", "--resume", "--no-report", "--quiet"]) == 0
    assert len(read("r").runs) == 2


def test_missed_targets_are_an_exit_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "random-1.db", "--out", "mine.yaml", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["servers"][0]["latency"].startswith("linear:overhead_ms=")
    slow = Path("mine.yaml").read_text().replace("submit_ms: ", "submit_ms: 9")
    Path("slow.yaml").write_text(slow)
    assert cli.main(["fidelity", "random-0.db", "--calibration", "slow.yaml", "--out", "f", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["met"]["latency"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--backend", "replay"], "needs at least one recording; name it with --recording"),
        (["evaluate", "--backend", "replay", "--recording", "no.db"], "no such recording"),
        (["evaluate", "--backend", "replay", "--recording", "random-0.db", "--rate", "3"], "leave the option out"),
        (["evaluate", "--backend", "replay", "--recording", "random-0.db", "-s", "toy"], "leave the option out"),
        (["evaluate", "--recording", "random-0.db"], "only replays read recordings; add --backend replay"),
        (["evaluate", "-s", "toy", "-p", "recorded"], "runs only with --backend replay"),
        (["calibrate", "no.db", "--out", "x.yaml"], "no such recording"),
        (["calibrate", "random-0.db", "--out", "x.txt"], "must end in .yaml"),
        (["calibrate", "random-0.db", "--cluster", "toy-3", "--out", "x.yaml"], "of another cluster"),
        (["fidelity", "no.db", "-c", "toy-3"], "no such recording"),
        (["fidelity", "random-0.db", "-c", "nothing"], "unknown cluster 'nothing'"),
        (["profile", "toy", "--recording", "x.db"], "only calls to real servers are recorded; add --live"),
        (["profile", "toy", "--live"], "cluster 'toy-3' was not started"),
    ],
)
def test_bad_input_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    more = (
        ["--out", "o", "-j", "1", "--quiet", "--seeds", "1", "--requests", "5"]
        if words[:3] == ["evaluate", "-s", "toy"]
        else []
    )
    assert cli.main([*words, *more]) != 0
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err


def test_an_slo_of_ones_own(here: Path) -> None:
    recordings = (str(here / "random-0.db"),)
    target = Replayed(recordings, world().cluster, slo_s=3.0, warmup_requests=7)
    adapted = target.adapt(world())
    assert adapted.objective.slo_s == 3.0 and adapted.horizon.warmup_requests == 7 and target.seeds == [0]
    assert with_recorded(["random"]) == ["random"]
    with pytest.raises(SpecError, match="at least one recording"):
        Replayed((), world().cluster).adapt(world())
