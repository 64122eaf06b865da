"""The notation: every prompt of a request is what the models were trained on, and every output is read back."""

from __future__ import annotations

import random

import pytest

from aragog_env.datasets import Record
from aragog_env.grading.runtime import WorkflowRuntime, load_runtime
from scripts.arithmetic.examples import STAGES, add_up, combine_example, draw_example, plan_example, solve_example
from scripts.arithmetic.expressions import Query, draw_query
from workflows.arithmetic.stages import ALPHABET, count_parts, mirrored, read_plan, read_value, write_sum


@pytest.fixture(scope="module")
def runtime() -> WorkflowRuntime:
    return load_runtime("arithmetic")


def right_outputs(runtime: WorkflowRuntime, query: Query) -> dict[int, str]:
    """Return what perfect models write, by node, and check every prompt on the way."""
    record = Record("1", query.text, query.value)
    outputs: dict[int, str] = {}
    values: list[tuple[int, int | None]] = [(s, p.value) for s, p in zip(query.signs, query.parts, strict=True)]
    for node, spec in enumerate(runtime.graph.nodes):
        if not runtime.runs(node, outputs):
            assert spec.copy >= len(query.parts)
            continue
        stage = runtime.graph.stage_of[node].name
        if stage == "plan":
            example = plan_example(query)
        elif stage == "solve":
            example = solve_example(query.parts[spec.copy])
        elif stage == "combine":
            example = combine_example(values)
        else:
            assert runtime.prompt(node, record, outputs) == f"V{mirrored(query.text)}|{outputs[node - 1]}\n"
            outputs[node] = add_up(values)
            continue
        assert runtime.prompt(node, record, outputs) == example.prompt
        outputs[node] = example.output
    return outputs


@pytest.mark.parametrize("level", range(1, 6))
def test_prompts_of_a_request_are_those_of_training(level: int, runtime: WorkflowRuntime) -> None:
    rng = random.Random(level)
    for _ in range(50):
        query = draw_query(rng, level, test=True)
        outputs = right_outputs(runtime, query)
        record = Record("1", query.text, query.value)
        assert count_parts(outputs[0]) == len(query.parts)
        assert runtime.grade(record, outputs).correct
        wrong = Record("1", query.text, query.value + 1)
        assert not runtime.grade(wrong, outputs).correct
        limits = [stage.output.max_tokens for stage in runtime.graph.stage_of if stage.output]
        assert all(len(text) + 1 <= limits[node] for node, text in outputs.items()), "outputs fit their limits"


def test_training_uses_no_other_characters() -> None:
    rng = random.Random(0)
    for stage in STAGES:
        for _ in range(300):
            example = draw_example(rng, stage, 1.0)
            assert set(example.prompt + example.output) <= set(ALPHABET)
            assert example.stage == stage and example.prompt.endswith("\n") and "\n" not in example.output


def test_verifier_is_shown_mistakes_and_taught_what_is_right() -> None:
    rng = random.Random(1)
    examples = [draw_example(rng, "verify", 1.0) for _ in range(500)]
    changed = [e for e in examples if e.prompt.partition("|")[2].rstrip("\n") != e.output]
    assert 0.4 < len(changed) / len(examples) < 0.7
    for example in examples:
        expression = mirrored(example.prompt[1:].partition("|")[0])
        assert read_value(example.output) == eval(expression, {"__builtins__": {}})


@pytest.mark.parametrize(
    ("answer", "correct", "status"),
    [
        ("033-91=113", True, "passed"),
        ("311", False, "failed"),
        ("033-91=213", False, "failed"),
        ("033-91=?", False, "error"),
        ("033-91=", False, "error"),
        ("no idea", False, "error"),
        ("", False, "error"),
        ("=1=113", True, "passed"),
        ("=--113", False, "error"),
    ],
)
def test_answers_right_and_wrong(answer: str, correct: bool, status: str, runtime: WorkflowRuntime) -> None:
    last = len(runtime.graph.nodes) - 1
    grade = runtime.grade(Record("1", "(47+8)*6-19", 311), {last: answer})
    assert (grade.correct, grade.status) == (correct, status)


def test_zero_and_negative_answers(runtime: WorkflowRuntime) -> None:
    last = len(runtime.graph.nodes) - 1
    assert runtime.grade(Record("1", "5-5", 0), {last: "5-5=0"}).correct
    assert runtime.grade(Record("1", "5-5", 0), {last: "5-5=-0"}).correct
    assert runtime.grade(Record("1", "5-25", -20), {last: "5-52=-02"}).correct


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        ("74+8;-83-05;+6*7", [(1, "74+8"), (-1, "83-05"), (1, "6*7")]),
        ("74+8", [(1, "74+8")]),
        ("", [(1, "?")]),
        (";", [(1, "?"), (1, "?")]),
        ("1;2;3;4", [(1, "1"), (1, "2"), (1, "3")]),
        ("a\nb1;-\x002", [(1, "1"), (-1, "2")]),
        ("9" * 100, [(1, "9" * 24)]),
    ],
)
def test_any_text_is_read_as_a_plan(plan: str, parts: list[tuple[int, str]]) -> None:
    assert read_plan(plan) == parts
    assert count_parts(plan) == len(parts)


def test_values_are_read_and_written() -> None:
    assert write_sum([(1, 330), (-1, -12), (-1, 5), (1, None)]) == "033+21-5+?"
    assert write_sum([(1, -20), (1, 0)]) == "-02+0"
    assert write_sum([]) == "?"
    assert read_value("1+1=2;2+3=-51") == -15
    assert read_value("1+1=1234567") is None
    assert mirrored(mirrored("(120+7)*30")) == "(120+7)*30"


def test_garbage_from_models_ends_as_a_wrong_answer(runtime: WorkflowRuntime) -> None:
    record = Record("1", "(47+8)*6-(38-50)", 342)
    for text in ("", "???", "PSCV|\n", "((((", "=;=;=", "\u00e9\u4e2d" * 40, "9" * 200):
        outputs: dict[int, str] = {}
        for node in range(len(runtime.graph.nodes)):
            if runtime.runs(node, outputs):
                prompt = runtime.prompt(node, record, outputs)
                assert set(prompt) <= set(ALPHABET) and len(prompt) < 140
                outputs[node] = text
        assert not runtime.grade(record, outputs).correct
