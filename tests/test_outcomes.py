"""Outcome tables: the file format, which table a run uses, and draws that are the same for every policy."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env.backends.sim import SimBackend
from aragog_env.cli import main
from aragog_env.compiled_scenario import compile_scenario
from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable, outcome_table, synthetic_table
from aragog_env.policy import Dispatch
from aragog_env.specs.catalogue import cluster_models, model
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_scenario, load_workflow, scenario_hash
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from aragog_env.specs.workflow import WorkflowSpec
from aragog_env.view import DispatchView

QWEN = ("qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b")


def make(workflow: str | WorkflowSpec, models: tuple[str, ...] = QWEN, seed: int = 0) -> OutcomeTable:
    spec = load_workflow(workflow) if isinstance(workflow, str) else workflow
    return synthetic_table(spec, unroll(spec), [model(name) for name in models], seed)


def test_file_round_trip_is_exact_and_reproducible(tmp_path: Path) -> None:
    table = make("toy_chain")
    table.save(tmp_path / "a.npz")
    again = OutcomeTable.load(tmp_path / "a.npz")
    for field in dataclasses.fields(OutcomeTable):
        left, right = getattr(table, field.name), getattr(again, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype and (left == right).all()
        else:
            assert left == right
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_measured_tables_carry_queries(tmp_path: Path) -> None:
    table = make("toy_single")
    ids = tuple(f"q{i}" for i in range(16))
    measured = dataclasses.replace(table, kind="measured", query_ids=ids, query_texts=("äöü?",) * 16)
    measured.save(tmp_path / "t.npz")
    again = OutcomeTable.load(tmp_path / "t.npz")
    assert (again.kind, again.query_ids, again.query_texts[3]) == ("measured", ids, "äöü?")
    with pytest.raises(SpecError, match="one entry per query"):
        dataclasses.replace(table, query_ids=("a",))


def test_damaged_or_foreign_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    make("toy_chain").save(good)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(good.read_bytes()[:500])
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, x=np.zeros(3))
    newer = tmp_path / "newer.npz"
    with np.load(good) as file:
        content = dict(file)
    content["meta"] = np.array(str(content["meta"]).replace('"schema": 2', '"schema": 99'))
    np.savez(newer, **content)
    for path, message in (
        (tmp_path / "none.npz", "no such outcome table"),
        (cut, "not a complete npz"),
        (foreign, "lacks 'meta'"),
        (newer, "another schema than 2"),
    ):
        with pytest.raises(SpecError, match=message) as caught:
            OutcomeTable.load(path)
        assert caught.value.where == str(path)


def test_arrays_that_do_not_fit_are_refused() -> None:
    table = make("toy_chain")
    with pytest.raises(SpecError, match="must have the shape"):
        dataclasses.replace(table, p_correct=table.p_correct[:, :-1])
    with pytest.raises(SpecError, match="must be float32"):
        dataclasses.replace(table, p_correct=table.p_correct.astype(np.float64))
    bad = table.p_correct.copy()
    bad[3, 1] = np.nan
    with pytest.raises(SpecError, match="between 0 and 1"):
        dataclasses.replace(table, p_correct=bad)
    with pytest.raises(ValueError, match="read-only"):
        table.p_correct[0, 0] = 0.5


def toy_table(**changes: Any) -> OutcomeTable:
    """Return a table for the toy scenario that no generator would draw: every answer is right."""
    scenario = load_scenario("toy")
    workflow = load_workflow(scenario.workload.mix[0].workflow)
    drawn = synthetic_table(workflow, unroll(workflow), cluster_models(scenario.cluster))
    return dataclasses.replace(drawn, p_correct=np.ones_like(drawn.p_correct), kind="measured", **changes)


def kinds(scenario: Scenario) -> tuple[str, ...]:
    return tuple(table.kind for table in compile_scenario(scenario).outcomes)


def test_a_named_table_is_used_and_labelled(tmp_path: Path) -> None:
    toy_table().save(tmp_path / "mine.npz")
    scenario = override(load_scenario("toy"), outcomes=[tmp_path / "mine.npz"], requests=20)
    log = _play(scenario, RoundAbout(False), 0)
    assert log.outcome_kinds == ("measured",)
    assert (log.requests["correct"] == 1).all()
    assert _play(override(load_scenario("toy"), requests=20), RoundAbout(False), 0).outcome_kinds == ("synthetic",)


def test_a_table_in_the_workflows_folder_is_found_when_its_models_fit(tmp_path: Path) -> None:
    scenario = load_scenario("toy")
    source = Path(__file__).parent.parent / "workflows" / "toy_chain"
    shutil.copytree(source, tmp_path / "toy_chain")
    local = override(scenario, workflow=str(tmp_path / "toy_chain" / "workflow.yaml"))
    assert kinds(local) == ("synthetic",)
    before = scenario_hash(local)
    table = toy_table()
    table.save(tmp_path / "toy_chain" / "outcomes" / "b.npz")
    compile_scenario.cache_clear()
    assert kinds(local) == ("measured",)
    assert scenario_hash(local) != before, "another table is another scenario"
    # a synthetic one does not go before it, though it comes first by name
    dataclasses.replace(table, kind="synthetic").save(tmp_path / "toy_chain" / "outcomes" / "a.npz")
    compile_scenario.cache_clear()
    assert kinds(local) == ("measured",)
    # `synthetic` asks for the generator in spite of it
    assert kinds(override(local, outcomes=["synthetic"])) == ("synthetic",)
    assert scenario_hash(override(local, outcomes=["synthetic"])) == before
    # other models: the generator answers
    other = override(local, cluster="qwen-8xh100")
    assert kinds(other) == ("synthetic",)


def test_a_scenario_file_may_name_a_table_beside_it(tmp_path: Path) -> None:
    toy_table().save(tmp_path / "tables" / "mine.npz")
    text = (
        "name: mine\ncluster: toy-3\nworkload:\n  arrivals: {kind: poisson, rate_rps: 2}\n"
        "  mix:\n    - {workflow: toy_chain, outcomes: tables/mine.npz}\n"
    )
    (tmp_path / "scenario.yaml").write_text(text)
    scenario = load_scenario(tmp_path / "scenario.yaml")
    assert kinds(scenario) == ("measured",)
    (tmp_path / "scenario.yaml").write_text(text.replace("mine.npz", "none.npz"))
    with pytest.raises(SpecError, match="no such outcome table"):
        compile_scenario(load_scenario(tmp_path / "scenario.yaml"))


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    scenario = load_scenario("toy")
    workflow = load_workflow("toy_chain")
    models = cluster_models(scenario.cluster)
    good = toy_table()

    def refused(table: OutcomeTable, message: str) -> None:
        path = tmp_path / "t.npz"
        table.save(path)
        with pytest.raises(SpecError, match=message) as caught:
            outcome_table(unroll(workflow), models, path, "here")
        assert caught.value.where == "here"

    refused(dataclasses.replace(good, workflow="other"), "is one of the workflow 'other', not of 'toy_chain'")
    refused(dataclasses.replace(good, models=good.models[::-1]), "needs exactly .*, in this order")
    refused(
        dataclasses.replace(good, nodes=("draft", "polish")),
        "has the calls draft, polish; the workflow has draft, revise",
    )
    refused(dataclasses.replace(good, output_tokens=good.output_tokens + 1), "output tokens of 'draft' from 11 to 11")
    refused(dataclasses.replace(good, own_prompt_tokens=good.own_prompt_tokens * 0), "prompt tokens of 'draft'")
    refused(dataclasses.replace(good, skipped=~good.skipped), "skips 'draft', which the workflow never skips")
    with pytest.raises(SpecError, match="which is not in the mix"):
        dataclasses.replace(good, workflow="other").save(tmp_path / "t.npz")
        override(scenario, outcomes=[tmp_path / "t.npz"])


def test_command_line_takes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_table().save(tmp_path / "mine.npz")
    common = [
        "evaluate",
        "--scenario",
        "toy",
        "--requests",
        "12",
        "--seeds",
        "1",
        "-p",
        "round_robin",
        "--no-report",
        "-q",
        "--json",
    ]
    assert main([*common, "--outcomes", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main([*common, "--outcomes", str(tmp_path / "none.npz"), "--out", str(tmp_path / "other")]) == 2
    assert "there is no outcome table" in capsys.readouterr().err


class RoundAbout:
    """Dispatches the first or the last ready call, to replicas in turn: two orders that meet the same configurations."""

    def __init__(self, last: bool) -> None:
        self.last, self.turn = last, 0

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.turn = 0

    def act(self, view: DispatchView) -> Dispatch:
        call = len(view.calls) - 1 if self.last else 0
        self.turn += 1
        return Dispatch(call, self.turn * (2 if self.last else 1) % len(view.routes))


def _play(scenario: Scenario, policy: RoundAbout, seed: int) -> Any:
    backend = SimBackend(scenario)
    backend.reset(seed)
    policy.reset(scenario, seed)
    while not backend.done:
        backend.step(policy.act(backend.view()))
    return backend.log()


def test_a_query_under_a_configuration_has_one_outcome_whoever_dispatches_in_whatever_order() -> None:
    scenario = override(load_scenario("toy"), requests=160, warmup_requests=0, rate_rps=200)
    logs = [_play(scenario, RoundAbout(last), 3) for last in (False, True)]
    starts = [log.calls["request"][np.argsort(log.calls["dispatch_s"], kind="stable")] for log in logs]
    assert (starts[0] != starts[1]).any(), "the orders differ"
    seen: dict[tuple[int, int], set[int]] = {}
    shared = 0
    for log in logs:
        mine = {(int(r["query"]), int(r["configuration"])) for r in log.requests}
        shared += len(mine & set(seen))
        for row in log.requests:
            seen.setdefault((int(row["query"]), int(row["configuration"])), set()).add(int(row["correct"]))
    assert shared > 10, "both policies meet the same query under the same configuration"
    assert all(len(outcomes) == 1 for outcomes in seen.values())
    assert {outcome for outcomes in seen.values() for outcome in outcomes} == {0, 1}
    other = _play(scenario, RoundAbout(False), 4)
    changed = [
        int(row["correct"]) not in seen[key]
        for row in other.requests
        if (key := (int(row["query"]), int(row["configuration"]))) in seen
    ]
    assert any(changed), "another seed is another draw"
