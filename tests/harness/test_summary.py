"""Tables: pairing, best values, formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.harness.evaluate import evaluate
from aragog_env.harness.results import Results, read
from aragog_env.harness.summary import COMPARABLE, choose_baseline, format_value, short_names, summarise
from aragog_env.harness.tables import differences_table, metrics_table

from .fakes import FakeBackend, Fixed, Large, Raises, make_scenario


def test_means_and_differences_are_those_of_the_runs(results: Results) -> None:
    (table,) = summarise(results, ("jct_mean_s",), "small")
    by_policy = {p: [r.metrics["jct_mean_s"] for r in results.ok if r.policy == p] for p in ("small", "large")}
    row = {row.policy: row for row in table.rows}["large"]
    assert row.cells["jct_mean_s"].estimate.value == pytest.approx(np.mean(by_policy["large"]))
    difference = row.cells["jct_mean_s"].difference
    assert difference is not None
    assert difference.value == pytest.approx(np.mean(np.subtract(by_policy["large"], by_policy["small"])))
    assert row.cells["jct_mean_s"].significant
    assert {row.policy: row for row in table.rows}["small"].cells["jct_mean_s"].difference is None
    assert [row.policy for row in table.rows] == ["small", "spread", "large"]
    assert table.requests == 3 * 4 * 55


def test_a_failed_policy_keeps_its_row(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path)
    results = evaluate(
        {"small": Fixed, "bad": Raises},
        scenario,
        2,
        out=tmp_path / "out",
        workers=1,
        make_backend=FakeBackend,
    )
    (table,) = summarise(results, ("jct_mean_s", "accuracy"))
    bad = table.rows[1]
    assert (bad.policy, bad.seeds, bad.failed) == ("bad", 0, 2)
    text = metrics_table(table, ("jct_mean_s",), "caption").to_markdown(1)
    assert "| bad 2 of 2 runs failed | \N{EN DASH} |" in text


def test_several_scenarios_get_a_table_each_and_one_together(tmp_path: Path) -> None:
    scenarios = [make_scenario(tmp_path, name="a"), make_scenario(tmp_path, name="b", rate_rps=0.2)]
    results = evaluate(
        {"small": Fixed, "large": Large},
        scenarios,
        2,
        out=tmp_path / "out",
        workers=1,
        make_backend=FakeBackend,
    )
    tables = summarise(results)
    assert [table.scenario for table in tables] == ["a", "b", None]
    assert set(tables[2].metrics) == set(COMPARABLE)
    values = [run.metrics["accuracy"] for run in results.ok if run.policy == "large"]
    assert tables[2].rows[1].cells["accuracy"].estimate.value == pytest.approx(np.mean(values))


def test_only_common_seeds_are_paired(folder: Path) -> None:
    results = read(folder)
    for key in list(results._runs):
        if key[0] == "small" and key[2] == 3:
            del results._runs[key]
    (table,) = summarise(results, ("jct_mean_s",), "small")
    difference = table.rows[2].cells["jct_mean_s"].difference
    assert difference is not None and difference.n == 3
    assert table.rows[2].seeds == 4


def test_baseline_choice() -> None:
    assert choose_baseline(["a", "round_robin"]) == "round_robin"
    assert choose_baseline(["a", "b"]) == "a"
    assert choose_baseline(["a", "b"], "b") == "b"
    with pytest.raises(SpecError, match="baseline 'c'"):
        choose_baseline(["a", "b"], "c")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.6543, "65.4"),
        ("jct_mean_s", 12.345, "12.35"),
        ("accuracy", float("nan"), "\N{EN DASH}"),
        ("jct_mean_s", -0.0001, "0.00"),
        ("jct_mean_s", -0.01, "-0.01"),
    ],
)
def test_values_are_shown_with_their_unit_and_decimals(name: str, value: float, text: str) -> None:
    assert format_value(name, value) == text


def test_best_of_a_column_is_bold_in_its_direction(results: Results) -> None:
    (table,) = summarise(results)
    drawn = metrics_table(table, ("jct_mean_s", "accuracy", "utilisation"), "c")
    strong = [[entry.strong for entry in row[1:]] for row in drawn.rows]
    assert strong == [[True, False, False], [False, False, False], [False, True, False]]
    assert differences_table(replace(table, rows=table.rows[:1])) is None


def test_models_are_shown_by_the_end_of_their_path_where_that_tells_them_apart() -> None:
    names = ["aragog:beam=8", "ppo:runs/a/first,sample", "ppo:runs/a/second", "dqn:runs/b/second/", "fixed:x=a/b"]
    assert list(short_names(names).values()) == [
        "aragog:beam=8", "ppo:first,sample", "ppo:second", "dqn:second", "fixed:x=a/b",
    ]  # fmt: skip
    same = ["ppo:one/best.safetensors", "ppo:two/best.safetensors", "ppo:two/model.safetensors"]
    assert list(short_names(same).values()) == [*same[:2], "ppo:model.safetensors"]
