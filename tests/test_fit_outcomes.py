"""The fit of the outcome generator: its small parts on known input, and the committed numbers again where the data is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aragog_env.outcomes import OutcomeTable
from aragog_env.specs.strict import load_file
from aragog_env.synthetic import load_parameters
from aragog_env.synthetic.parameters import PRESET, GeneratorPreset
from scripts.build_mmlu_pro_table import again_right, build, vote_wins
from scripts.build_mmlu_pro_table import main as build_main
from scripts.fit_outcomes import REPORT, main
from scripts.outcome_fit import data as public
from scripts.outcome_fit import estimates as estimate
from scripts.outcome_fit.checks import inversions
from scripts.outcome_fit.fit import Size, fit_repair, fit_text, length_drift, of_dataset
from scripts.outcome_fit.generated import repair_gains, single_call
from scripts.outcome_fit.normal import both_right, correlation_of, inversion, repeat_correlation_of, tetrachoric
from scripts.outcome_fit.text import area, embed, out_of_fold, signal

needs_data = pytest.mark.skipif(
    not (public.DATA / "zeroeval").is_dir(), reason="the public results are not beside the checkout"
)


def test_bivariate_normal_against_known_values() -> None:
    assert both_right(0.5, 0.5, 0.5) == pytest.approx(1 / 3, abs=1e-9)  # 1/4 + asin(1/2) / (2 pi)
    assert both_right(0.3, 0.8, 0.0) == pytest.approx(0.24, abs=1e-9)
    assert both_right(0.3, 0.8, 0.99999) == pytest.approx(0.3, abs=1e-4)
    assert inversion(0.5, 0.5, 0.0) == pytest.approx(0.25)
    assert tetrachoric(0.4, 0.7, both_right(0.4, 0.7, 0.6)) == pytest.approx(0.6, abs=1e-6)
    assert np.isnan(tetrachoric(0.01, 0.5, 0.01))


def test_correlations_of_drawn_answers_are_found_again() -> None:
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal(40_000), rng.standard_normal((2, 40_000))
    latent = np.sqrt(0.7) * common + np.sqrt(0.3) * own
    a, b = (latent > np.array([[0.3], [-0.2]])).astype(float)
    assert correlation_of(a, b) == pytest.approx(0.7, abs=0.02)
    tries = np.sqrt(0.8) * common[:, None] + np.sqrt(0.2) * rng.standard_normal((40_000, 10)) > 0
    assert repeat_correlation_of(tries.mean(axis=1), 10) == pytest.approx(0.8, abs=0.02)


def test_size_angle_is_found_again() -> None:
    pairs = [
        estimate.Pair(name, "f", "a", "b", 8.0, 8.0 * ratio, 0.4, 0.6, 0.1, base * float(np.cos(0.2 * np.log(ratio))))
        for name, base in (("x", 0.7), ("y", 0.6))
        for ratio in (1.5, 4.0, 20.0)
    ]
    angle, siblings = estimate.fit_siblings(pairs)
    assert angle == pytest.approx(0.2, abs=1e-3)
    assert siblings == pytest.approx({"x": 0.7, "y": 0.6}, abs=1e-3)


def test_area_and_regression_on_known_input() -> None:
    assert area(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == pytest.approx(0.75)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 8))
    y = (x[:, :1] + 0.5 * rng.standard_normal((2000, 1)) > 0).astype(float)
    assert area(out_of_fold(x, y)[0, :, 0], y[:, 0] > 0.5) > 0.9
    assert abs(area(out_of_fold(x, rng.permutation(y))[0, :, 0], y[:, 0] > 0.5) - 0.5) < 0.05


def test_embedding_is_the_same_everywhere_and_tells_texts_apart() -> None:
    x = embed(["How many apples are left?", "How many apples  are LEFT?", "def f(x): return x"])
    assert x.shape == (3, 513)
    assert np.allclose(x[0, :-1], x[1, :-1]), "case and spaces do not count"
    assert x[0, :-1] @ x[2, :-1] < 0.3 * (x[0, :-1] @ x[1, :-1])
    assert int(np.argmax(x[2, :-1])) == int(np.argmax(embed(["a", "b", "def f(x): return x"])[2, :-1]))


def test_generated_single_calls_have_the_inversions_of_their_correlation() -> None:
    parameters = load_parameters()
    models = [("a", 7.6, 0.4), ("b", 32.8, 0.6)]
    p, features = single_call("test", 20_000, models, parameters)
    assert p.mean(axis=0) == pytest.approx([0.4, 0.6], abs=1e-3)
    expected = inversion(0.4, 0.6, parameters.sibling_correlation * np.cos(parameters.size_angle * np.log(32.8 / 7.6)))
    assert float((p[:, 0] * (1 - p[:, 1])).mean()) == pytest.approx(expected, abs=0.006)
    assert features.shape == (20_000, 32)


def test_more_repair_gains_more() -> None:
    gains = [
        repair_gains([0.3, 0.6], dataclasses.replace(load_parameters(), repair=repair), 2048).mean()
        for repair in (0.0, 0.5, 1.0)
    ]
    assert gains[0] < gains[1] < gains[2]


def test_votes() -> None:
    assert vote_wins(4).tolist() == pytest.approx([0, 0.75 / 4, 0.5 + 0.5 / 2, 1, 1])
    assert vote_wins(1).tolist() == [0, 1]
    right = np.array([1.0, 1.0, 0.0, 0.0])
    assert again_right(right, 1.0).tolist() == right.tolist()
    assert again_right(right, 0.5).tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])


def test_without_the_data_the_scripts_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--preset", str(tmp_path / "p"), "--report", str(tmp_path / "r")]) == 2
    assert "committed" in capsys.readouterr().err
    assert build_main(["--data", str(tmp_path), "--out", str(tmp_path / "t.npz")]) == 2
    assert "are not in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_report_states_the_committed_parameters() -> None:
    text = REPORT.read_text(encoding="utf-8")
    for name, value in dataclasses.asdict(load_parameters()).items():
        assert f"| `{name}` | {value:g} |" in text


@needs_data
def test_committed_correlations_come_out_again() -> None:
    preset = load_file(GeneratorPreset, PRESET)
    answers = [*(public.zeroeval(public.DATA, name) for name in public.REPEATS), public.mmlu_pro(public.DATA)]
    pairs = [pair for a in answers for pair in estimate.sibling_pairs(a)]
    angle, siblings = estimate.fit_siblings(pairs)
    assert round(angle, 3) == preset.parameters.size_angle
    assert round(float(np.mean(list(siblings.values()))), 3) == preset.parameters.sibling_correlation
    assert round(siblings["MMLU-Pro"], 3) == preset.workflows["voting_mmlu_pro"]["sibling_correlation"]
    lengths = {a.name: list(estimate.length_correlation(a).values()) for a in answers}
    drift = length_drift(lengths, preset.parameters.sibling_correlation, preset.parameters.repeat_correlation)
    assert drift == pytest.approx(preset.parameters.length_difficulty, abs=2e-3)
    # inversions by family and size gap: generator against data, means of groups of pairs
    for group in inversions(pairs, angle, siblings):
        assert group.generated == pytest.approx(group.seen, abs=0.01)


@needs_data
@pytest.mark.slow
def test_committed_repair_comes_out_again() -> None:
    stages = public.livecodebench(public.DATA)
    repairs = estimate.self_repair(stages)
    assert len(repairs) == 27
    fitted, gained = fit_repair(dataclasses.replace(load_parameters(), repair=0.0), repairs, Size(chain_queries=4096))
    assert fitted.repair == pytest.approx(load_parameters().repair, abs=0.08)
    assert gained == pytest.approx(np.mean([last - first for first, last in repairs.values()]), abs=1e-3)


@needs_data
def test_features_are_as_telling_as_real_texts() -> None:
    answers = public.zeroeval(public.DATA, "math-l5")
    siblings = {"MATH-L5": 0.642}
    fit = fit_text(
        answers,
        embed(answers.texts),
        of_dataset(load_parameters(), "MATH-L5", siblings),
        Size(models=8, pairs=6, replicates=1, steps=5),
    )
    assert 0.6 < fit.real.right_auc < 0.7
    assert fit.generated.right_auc == pytest.approx(fit.real.right_auc, abs=0.02)
    assert fit.text_difficulty == pytest.approx(load_parameters().text_difficulty, abs=0.15)


@needs_data
def test_features_of_a_shipped_workflow_reach_the_measured_area() -> None:
    from scripts.outcome_fit.checks import FAMILIES
    from tests.test_synthetic import make, uniform

    table = make("voting_mmlu_pro", FAMILIES["Llama"])
    right = (np.random.default_rng(0).random((1500, 3)) < uniform(table)).astype(float)
    found = signal(table.query_features.astype(float), right, [(0, 1), (0, 2), (1, 2)])
    assert found.right_auc == pytest.approx(0.67, abs=0.04)  # MMLU texts: 0.686 with 14,042 questions


@needs_data
def test_table_of_real_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_main(["--out", str(tmp_path / "v.npz"), "--queries", "300"]) == 0
    table = OutcomeTable.load(tmp_path / "v.npz")
    assert table.kind == "synthetic" and "real are" in table.source
    assert table.models == ("llama-3.2-3b", "llama-3-8b", "llama-3-70b") and table.queries == 300
    # one model everywhere: its own answers decide, so the accuracy is that of the data
    rows = {row["question_id"]: row for row in public.rows(public.DATA / "mmlu_pro" / "mmlu_pro_correct.csv.gz")}
    columns = list(table.notes["columns"][name] for name in table.models)
    real = np.array([[float(rows[q][c]) for c in columns] for q in table.query_ids])
    uniform = table.p_correct[:, [table.uniform_configuration(m) for m in range(3)]]
    assert (uniform == real).all()
    assert table.almost_as_likely()[:, :-1].any(axis=1).all()
    assert not table.query_texts
    assert build_main(["--out", str(tmp_path / "w.npz"), "--model", "a=GPT-5"]) == 2
    assert "has no model 'GPT-5'" in capsys.readouterr().err
    noisy = build(public.DATA, ("a=Llama-2-7b-hf", "b=Llama-2-13b-hf", "c=Llama-2-70b-hf"), 50, repeat_noise=True)
    assert noisy.models == ("a", "b", "c") and 0 < noisy.p_correct.min() < noisy.p_correct.max() < 1
