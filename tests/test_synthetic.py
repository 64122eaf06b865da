"""What the synthetic generator of outcome tables promises."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable, configuration_digits, synthetic_table
from aragog_env.specs.catalogue import model
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_workflow
from aragog_env.specs.strict import load_file
from aragog_env.specs.workflow import DurationSpec, StageSpec, WorkflowSpec
from aragog_env.synthetic import (
    by_size,
    clipped_lognormal_mean,
    draw_table,
    load_parameters,
    normal_cdf,
)
from aragog_env.synthetic.parameters import PRESET, GeneratorParameters, GeneratorPreset

NAMES = (
    "self_refine_humaneval",
    "self_refine_squad",
    "text_to_sql_bird",
    "voting_mmlu_pro",
    "decomposition_strategyqa",
)
QWEN = ("qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b")
LLAMA = ("llama-3.2-3b", "llama-3-8b", "llama-3-70b")


def make(workflow: str | WorkflowSpec, models: tuple[str, ...] = QWEN, seed: int = 0) -> OutcomeTable:
    spec = load_workflow(workflow) if isinstance(workflow, str) else workflow
    return synthetic_table(spec, unroll(spec), [model(name) for name in models], seed)


def uniform(table: OutcomeTable) -> NDArray[np.float64]:
    """Return p_correct of the one-model configurations, (Q, M)."""
    columns = [table.uniform_configuration(m) for m in range(len(table.models))]
    return table.p_correct[:, columns].astype(np.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("models", [QWEN, LLAMA], ids=["qwen", "llama"])
def test_one_model_everywhere_has_the_stated_accuracy(name: str, models: tuple[str, ...]) -> None:
    table = make(name, models)
    stated = load_workflow(name).accuracy_by_size_b
    wanted = [by_size(stated, model(m).size_b) for m in models]
    assert uniform(table).mean(axis=0) == pytest.approx(wanted, abs=1e-3)
    assert table.kind == "synthetic"
    assert table.p_correct.shape == (table.queries, 3 ** len(table.llm_nodes))
    assert table.p_correct.min() >= 0 and table.p_correct.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("models", [QWEN, LLAMA], ids=["qwen", "llama"])
def test_inversions_are_as_frequent_as_in_published_tables(name: str, models: tuple[str, ...]) -> None:
    # Smaller right, larger wrong, in percent of queries: 1-12 for neighbours and pairs of one family
    # (MATH-L5, CRUXEval, GSM8K, MMLU-Pro, BFCL).
    p = uniform(make(name, models))
    for small, large in ((0, 1), (0, 2), (1, 2)):
        assert 0.01 < float((p[:, small] * (1 - p[:, large])).mean()) < 0.12
    # Mean p(1-p): EvalPerf 2.7-10.7 percent.
    assert 0.02 < float((p * (1 - p)).mean()) < 0.11


@pytest.mark.parametrize("name", NAMES)
def test_nearly_monotone_in_the_size_of_each_call(name: str) -> None:
    table = make(name)
    n = len(table.llm_nodes)
    digits = configuration_digits(3, n)
    worse = []
    for k in range(n):
        lower = np.flatnonzero(digits[:, k] < 2)
        gain = table.p_correct[:, lower + 3 ** (n - 1 - k)] - table.p_correct[:, lower]
        worse.append((gain < -0.1).mean())
        assert gain.mean() > -0.01, "on average a larger model must not hurt"
    # EvalPerf, whole answers: the smaller sibling is better by over 0.1 on 7 to 19% of the tasks
    assert 0.01 < np.mean(worse) < 0.12, "but on some queries it does"
    largest = table.accuracy[-1]
    assert largest > table.accuracy.max() - 0.02


def pair_of_equals(name: str, queries: int = 8000, **changes: float) -> OutcomeTable:
    """Return a table of two models of one size that are right half of the time."""
    workflow = dataclasses.replace(load_workflow(name), queries=queries, accuracy_by_size_b={1: 0.5})
    parameters = dataclasses.replace(load_parameters(), stage_skill_sigma=0.0, **changes)
    models = [model(QWEN[0]), dataclasses.replace(model(QWEN[0]), name="twin")]
    return draw_table(workflow, unroll(workflow), models, parameters=parameters)


def tetrachoric_at_half(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the tetrachoric correlation of two variables that are right half of the time."""
    return float(np.sin(2 * np.pi * ((a & b).mean() - 0.25)))


@pytest.mark.parametrize("name", ["toy_single", "toy_chain", "self_refine_squad", "voting_mmlu_pro"])
def test_final_answers_have_the_fitted_correlations_whatever_the_shape(name: str) -> None:
    fitted = load_parameters()
    p = uniform(pair_of_equals(name))
    right = np.random.default_rng(1).random((2, *p.shape)) < p  # two attempts
    sibling = tetrachoric_at_half(right[0, :, 0], right[1, :, 1])
    repeat = tetrachoric_at_half(right[0, :, 0], right[1, :, 0])
    assert sibling == pytest.approx(fitted.sibling_correlation, abs=0.05)
    assert repeat == pytest.approx(fitted.repeat_correlation, abs=0.03)


def test_models_of_like_size_agree_more() -> None:
    workflow = dataclasses.replace(load_workflow("toy_single"), queries=20_000, accuracy_by_size_b={1: 0.5})
    p = uniform(make(workflow, ("qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-72b")))
    right = np.random.default_rng(1).random(p.shape) < p
    near, far = (tetrachoric_at_half(right[:, a], right[:, b]) for a, b in ((0, 1), (0, 2)))
    fitted = load_parameters()
    assert near > far
    for seen, ratio in ((near, 2), (far, 47)):
        expected = fitted.sibling_correlation * np.cos(fitted.size_angle * np.log(ratio))
        assert seen == pytest.approx(expected, abs=0.03)


def test_a_second_equal_stage_repairs_a_little_and_a_better_one_more() -> None:
    table = pair_of_equals("toy_chain")
    assert table.accuracy == pytest.approx(0.5, abs=0.03), "equal models: no configuration is much better"
    workflow = dataclasses.replace(load_workflow("toy_chain"), queries=8000, accuracy_by_size_b={7.6: 0.4, 32.8: 0.7})
    small_large, large_small = make(workflow, (QWEN[0], QWEN[2])).accuracy[1:3]
    assert 0.42 < small_large < 0.68 and 0.42 < large_small < 0.68, "mixed configurations lie between"


def test_wrong_answers_are_longer_and_lengths_correlate_over_queries() -> None:
    table = make("voting_mmlu_pro")
    p = uniform(table)
    for m in range(3):
        tokens = table.output_tokens[:, 0, m].astype(np.float64)
        wrong = np.average(tokens, weights=1 - p[:, m])
        right = np.average(tokens, weights=p[:, m])
        assert 1.2 < wrong / right < 2.0  # MATH-L5, CRUXEval: 1.6-1.7
    logs = np.log(table.output_tokens[:, 0, :])
    assert 0.45 < np.corrcoef(logs[:, 0], logs[:, 2])[0, 1] < 0.85
    stages = np.corrcoef(np.log(table.output_tokens[:, 0, 0]), np.log(table.output_tokens[:, 4, 0]))[0, 1]
    assert stages > 0.2
    assert (np.median(table.output_tokens[:, 0, :], axis=0) > 0.9 * np.array([295, 276, 263])).all()


@pytest.mark.parametrize("name", NAMES)
def test_expected_lengths_are_the_means_and_know_nothing_of_the_draw(name: str) -> None:
    table = make(name)
    drawn = table.output_tokens.mean(axis=0)
    spread = table.output_tokens.std(axis=0) / np.sqrt(table.queries)
    assert (np.abs(table.expected_output_tokens - drawn) < 5 * spread + 0.5).all()
    assert (make(name, seed=7).expected_output_tokens == table.expected_output_tokens).all()


def test_clipped_mean_against_a_sample() -> None:
    rng = np.random.default_rng(0)
    sample = np.clip(300 * np.exp(0.8 * rng.standard_normal(400_000)), 100, 900)
    assert clipped_lognormal_mean(300, 0.8, 100, 900) == pytest.approx(sample.mean(), rel=3e-3)
    assert clipped_lognormal_mean(300, 0.0, 1, 200) == 200


def test_normal_cdf_against_the_error_function() -> None:
    from math import erf, sqrt

    x = np.linspace(-8, 8, 401)
    assert np.abs(normal_cdf(x) - [0.5 * (1 + erf(v / sqrt(2))) for v in x]).max() < 1e-7


def test_skipping_follows_the_critic_and_hides_the_skipped_model() -> None:
    table = make("self_refine_humaneval")
    workflow = load_workflow("self_refine_humaneval")
    skip = workflow.stages[2].skip
    assert skip is not None
    shares = table.skipped[:, 2, :].mean(axis=0)
    wanted = [by_size(skip.probability_by_size_b, model(m).size_b) for m in QWEN]
    assert shares == pytest.approx(wanted, abs=0.1)
    assert not table.skipped[:, :2].any()
    p = table.p_correct.reshape(-1, 3, 3, 3)
    for critic in range(3):
        gone = table.skipped[:, 2, critic]
        assert (p[gone, :, critic, :] == p[gone, :, critic, :1]).all()
        assert np.ptp(p[~gone, :, critic, :], axis=-1).max() > 0.1


def test_surplus_solvers_are_skipped_for_every_model_and_do_not_count() -> None:
    table = make("decomposition_strategyqa")
    first, second, third = (table.skipped[:, k, :] for k in (1, 2, 3))
    assert not first.any() and not table.skipped[:, [0, 4]].any()
    for copy in (second, third):
        assert (copy == copy[:, :1]).all()
    assert second.mean() == pytest.approx(0.1, abs=0.03)
    assert third.mean() == pytest.approx(0.5, abs=0.05)
    assert (third | ~second).all(), "the third copy never runs without the second"
    p = table.p_correct.reshape(-1, 3, 3, 3, 3, 3)[third[:, 0]]
    assert (p == p[:, :, :, :, :1, :]).all()


def test_prompts_and_tools() -> None:
    table = make("text_to_sql_bird")
    workflow = load_workflow("text_to_sql_bird")
    assert table.nodes[3] == "execute_sql"
    assert table.llm_nodes == (0, 1, 2, 4)
    assert (table.own_prompt_tokens[:, 3] == 0).all()
    prompt = workflow.stages[2].prompt
    assert prompt is not None
    assert (table.own_prompt_tokens[:, 2] == prompt.template_tokens + table.query_tokens).all()
    assert (table.output_tokens[:, 3, :] == table.output_tokens[:, 3, :1]).all()
    assert (table.tool_s[:, [0, 1, 2, 4]] == 0).all()
    assert 0 < table.tool_s[:, 3].min() and table.tool_s[:, 3].max() <= 30
    assert np.median(table.tool_s[:, 3]) == pytest.approx(0.15, rel=0.15)


def test_a_tool_that_comes_first_leaves_the_calls_after_it_their_full_say() -> None:
    chain = load_workflow("toy_chain")
    tool = StageSpec(name="look_up", kind="tool", tool_s=DurationSpec(1.0))
    draft = dataclasses.replace(chain.stages[0], parents=("look_up",))
    with_tool = dataclasses.replace(chain, stages=(tool, draft, chain.stages[1]))
    assert (make(with_tool).p_correct == make(chain).p_correct).all()


def test_equal_inputs_give_equal_bytes_and_another_seed_does_not() -> None:
    a, b, c = make("self_refine_squad"), make("self_refine_squad"), make("self_refine_squad", seed=1)
    for name in ("p_correct", "output_tokens", "own_prompt_tokens", "skipped", "tool_s", "query_tokens"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
    assert a.p_correct.tobytes() != c.p_correct.tobytes()


def test_a_model_is_the_same_in_every_cluster() -> None:
    full, pair = make("self_refine_squad", QWEN), make("self_refine_squad", QWEN[::2])
    assert (uniform(full)[:, [0, 2]] == uniform(pair)).all()
    assert (full.output_tokens[:, :, [0, 2]] == pair.output_tokens).all()


@pytest.mark.slow
def test_generation_is_fast() -> None:
    make("voting_mmlu_pro")
    start = time.process_time()
    make("voting_mmlu_pro")
    assert time.process_time() - start < 0.3


def test_missing_accuracies_and_huge_tables_are_refused() -> None:
    workflow = dataclasses.replace(load_workflow("toy_chain"), accuracy_by_size_b={})
    with pytest.raises(SpecError, match="accuracy_by_size_b"):
        make(workflow)
    huge = dataclasses.replace(load_workflow("voting_mmlu_pro"), queries=10**6)
    with pytest.raises(SpecError, match="fewer models"):
        draw_table(huge, unroll(huge), [model(name) for name in QWEN])


def test_sizes_between_are_interpolated_in_the_logarithm() -> None:
    table = {8.0: 1.0, 32.0: 3.0}
    assert by_size(table, 16.0) == pytest.approx(2.0)
    assert by_size(table, 1.0) == 1.0
    assert by_size(table, 500.0) == 3.0


def test_parameters_come_from_the_preset_file_and_are_used() -> None:
    preset = load_file(GeneratorPreset, PRESET)
    assert load_parameters() == preset.parameters
    assert set(preset.workflows) <= set(NAMES)
    for name in NAMES:
        changed = dataclasses.replace(preset.parameters, **preset.workflows.get(name, {}))
        assert load_parameters(name) == changed
        assert make(name).notes["parameters"] == dataclasses.asdict(changed)
    before = make("toy_chain").p_correct
    for field in dataclasses.fields(GeneratorParameters):
        value = getattr(preset.parameters, field.name)
        other = dataclasses.replace(preset.parameters, **{field.name: 0.9 * value + 0.01})
        workflow = load_workflow("toy_chain")
        again = draw_table(workflow, unroll(workflow), [model(name) for name in QWEN], parameters=other)
        if field.name not in ("copy_sharing", "length_difficulty", "length_sharing", "skip_difficulty"):
            assert (again.p_correct != before).any(), f"{field.name} does nothing"


def test_an_unknown_parameter_in_the_preset_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from aragog_env.synthetic import parameters

    wrong = GeneratorPreset(load_parameters(), {"toy_chain": {"sibling_corelation": 0.5}})
    monkeypatch.setattr(parameters, "_preset", lambda: wrong)
    with pytest.raises(SpecError, match="Did you mean 'sibling_correlation'"):
        make("toy_chain")
    with pytest.raises(SpecError, match="agree with itself more"):
        dataclasses.replace(load_parameters(), repeat_correlation=0.5)


def test_features_do_not_depend_on_the_cluster_and_tell_something_of_right_and_wrong() -> None:
    a, b = make("voting_mmlu_pro", QWEN), make("voting_mmlu_pro", LLAMA)
    assert a.query_features.shape == (1500, 32) and a.query_features.dtype == np.float32
    assert (a.query_features == b.query_features).all()
    assert (a.query_features != make("voting_mmlu_pro", seed=1).query_features).any()
    assert np.abs(np.cov(a.query_features.T) - np.eye(32)).max() < 0.15, "no direction stands out"


def test_more_telling_texts_predict_better() -> None:
    workflow = dataclasses.replace(load_workflow("toy_single"), queries=3000, accuracy_by_size_b={1: 0.5})
    found = []
    for share in (0.0, 0.2, 0.8):
        parameters = dataclasses.replace(load_parameters(), text_difficulty=share)
        table = draw_table(workflow, unroll(workflow), [model(QWEN[0])], parameters=parameters)
        x = np.column_stack([np.ones(3000), table.query_features]).astype(np.float64)
        y = table.p_correct[:, 0].astype(np.float64)
        half = np.linalg.lstsq(x[::2], y[::2], rcond=None)[0]
        found.append(float(np.corrcoef(x[1::2] @ half, y[1::2])[0, 1]))
    assert found[0] < 0.15 < found[1] < found[2]


def test_voters_with_one_prompt_and_one_model_are_interchangeable() -> None:
    p = make("voting_mmlu_pro").p_correct.reshape(-1, 3, 3, 3, 3, 3)
    assert np.allclose(p, p.transpose(0, 2, 1, 3, 4, 5), atol=1e-5)
    assert np.allclose(p, p.transpose(0, 4, 2, 3, 1, 5), atol=1e-5)
    solvers = make("decomposition_strategyqa").p_correct.reshape(-1, 3, 3, 3, 3, 3)
    assert not np.allclose(solvers, solvers.transpose(0, 1, 3, 2, 4, 5), atol=1e-2), "sub-questions differ"
