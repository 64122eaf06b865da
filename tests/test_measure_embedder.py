"""What an embedder tells of real questions, and outcome tables of which features tell as much."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable
from aragog_env.specs.load import load_scenario
from scripts.measure_embedder import markdown, measure
from scripts.outcome_fit.data import DATA, NEEDED
from scripts.outcome_fit.fit import LIKE, Size, read
from scripts.outcome_fit.text import Signal, signal
from scripts.reproduction.embedders import SHARES, told_by
from scripts.reproduction.plan import WITHOUT_ROUTER, Pair

SCENARIO = "aragog-self_refine_humaneval-qwen"


def told(path: Path) -> Signal:
    """Return how well the features of a table predict which queries its configurations answer."""
    table = OutcomeTable.load(path)
    right = (np.random.default_rng(0).random(table.p_correct[:, [0, -1]].shape) < table.p_correct[:, [0, -1]]).astype(
        float
    )
    return signal(table.query_features.astype(float), right, [(1, 0)])


def test_features_tell_as_much_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = tmp_path / "embedders.json"
    monkeypatch.setattr("scripts.reproduction.embedders.SHARES", shares)
    monkeypatch.setenv("ARAGOG_CACHE", str(tmp_path))
    known = {name: {"text_difficulty": share, "text_strength": 0.05} for name, share in (("poor", 0.02), ("rich", 0.9))}
    shares.write_text(json.dumps({name: {"all": found, "workflows": {}} for name, found in known.items()}))
    scenario = load_scenario(SCENARIO)
    poor, rich = told_by("poor", scenario), told_by("rich", scenario)
    assert told(poor).right_auc + 0.1 < told(rich).right_auc
    accuracy, other = (OutcomeTable.load(path).p_correct.mean(axis=0) for path in (poor, rich))
    assert np.allclose(accuracy[[0, -1]], other[[0, -1]], atol=1e-3), "as accurate where one model does everything"
    assert np.allclose(accuracy, other, atol=0.05)
    with pytest.raises(SpecError, match=r"scripts\.measure_embedder unheard"):
        told_by("unheard", scenario)


def test_the_scenario_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARAGOG_CACHE", str(tmp_path))
    pair = Pair("self_refine_humaneval", "qwen")
    other = pair.on(WITHOUT_ROUTER["qwen"], "minilm")
    assert other.name == f"{SCENARIO}+minilm@{WITHOUT_ROUTER['qwen']}" and other.cluster.name == WITHOUT_ROUTER["qwen"]
    assert other.workload.mix[0].outcomes and pair.on(WITHOUT_ROUTER["qwen"]).workload.mix[0].outcomes is None


def test_the_committed_shares_are_of_all_workflows() -> None:
    known = json.loads(SHARES.read_text())
    assert set(known["minilm"]["workflows"]) == set(LIKE)
    assert "| minilm, GSM8K |" in markdown(known)


@pytest.mark.skipif(not all((DATA / name).is_dir() for name in NEEDED), reason="the public results are not here")
def test_measuring_on_real_questions() -> None:
    source = read(DATA)
    few = replace(source, texts={name: source.texts["CRUXEval"] for name in ("CRUXEval", "MMLU")})
    found = measure("ngrams:64", few, Size(models=8, pairs=6, replicates=1, steps=2))
    fit = found["datasets"]["CRUXEval"]
    assert fit["queries"] == 800 and 0.55 < fit["real"]["right_auc"] < 0.7
    assert 0 < found["workflows"]["text_to_sql_bird"]["text_difficulty"] < 0.6
