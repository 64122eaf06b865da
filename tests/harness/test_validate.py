"""Re-running results: exact, and honest about what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aragog_env.errors import SpecError
from aragog_env.harness.capacity import capacity
from aragog_env.harness.jobs import OwnPolicies
from aragog_env.harness.results import read
from aragog_env.harness.validate import validate

from .fakes import POLICIES, FakeBackend, Fixed, Large, make_scenario

MAKE = OwnPolicies(POLICIES)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_honest_results_are_reproduced(folder: Path) -> None:
    found = validate(folder, sample=None, make_policy=MAKE, make_backend=FakeBackend)
    assert found.ok and len(found.checked) == 12


def test_a_sample_is_drawn_with_a_seed(folder: Path) -> None:
    a = validate(folder, sample=3, seed=1, make_policy=MAKE, make_backend=FakeBackend)
    b = validate(folder, sample=3, seed=1, make_policy=MAKE, make_backend=FakeBackend)
    assert a.checked == b.checked and len(set(a.checked)) == 3


def test_a_changed_metric_is_found(copy: Path) -> None:
    path = copy / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["metrics"]["jct_p95_s"] *= 0.999
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = validate(copy, sample=None, make_policy=MAKE, make_backend=FakeBackend)
    key = (lines[2]["policy"], lines[2]["scenario"], lines[2]["seed"], None)
    assert list(found.mismatches) == [key]
    assert found.mismatches[key][0].startswith("metric jct_p95_s: ")


def test_wall_clock_metrics_may_differ(copy: Path) -> None:
    path = copy / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["metrics"]["decision_p99_ms"] *= 10
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert validate(copy, sample=None, make_policy=MAKE, make_backend=FakeBackend).ok


def test_another_policy_behind_the_same_name_is_found(folder: Path) -> None:
    make = OwnPolicies({**POLICIES, "small": Large})
    found = validate(folder, sample=None, make_policy=make, make_backend=FakeBackend)
    assert {key[0] for key in found.mismatches} == {"small"} and len(found.mismatches) == 4


def test_sweeps_are_validated_at_their_rates(tmp_path: Path) -> None:
    capacity(
        {"small": Fixed},
        make_scenario(tmp_path),
        1,
        out=tmp_path / "out",
        workers=1,
        make_backend=FakeBackend,
    )
    found = validate(tmp_path / "out", sample=4, make_policy=MAKE, make_backend=FakeBackend)
    assert found.ok and len({key[3] for key in found.checked}) == 4


def test_a_workflow_that_changed_is_said_rather_than_compared(tmp_path: Path) -> None:
    from aragog_env.harness.evaluate import evaluate

    scenario = make_scenario(tmp_path)
    evaluate({"small": Fixed}, scenario, 1, out=tmp_path / "out", workers=1, make_backend=FakeBackend)
    path = tmp_path / "beta" / "workflow.yaml"
    path.write_text(path.read_text().replace("queries: 50", "queries: 60"))
    with pytest.raises(SpecError, match="workflow 'beta' has changed"):
        validate(tmp_path / "out", make_policy=MAKE, make_backend=FakeBackend)


def test_changed_versions_are_noted(copy: Path) -> None:
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sessions"][0]["versions"]["numba"] = "0.1"
    path.write_text(json.dumps(manifest))
    found = validate(copy, sample=1, make_policy=MAKE, make_backend=FakeBackend)
    assert any(note.startswith("numba was 0.1, is ") for note in found.notes)


def test_nothing_to_validate_is_bad_input(copy: Path) -> None:
    (copy / "results.jsonl").write_text("")
    assert read(copy).runs == []
    with pytest.raises(SpecError, match="no finished runs"):
        validate(copy, make_policy=MAKE, make_backend=FakeBackend)
