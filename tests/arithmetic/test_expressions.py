"""Expressions: right, worked out step by step, and split between training and testing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from aragog_env.grading.runtime import load_runtime
from scripts.arithmetic.expressions import LEVELS, MAX_VALUE, draw_part, draw_query, is_test, work_out, write_queries
from scripts.arithmetic.expressions import test_queries as queries_for_tests


def python_value(text: str) -> int:
    """Return what Python makes of an expression of digits, brackets and + - * only."""
    assert set(text) <= set("0123456789+-*()")
    return int(eval(text, {"__builtins__": {}}))


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_values_and_steps_are_right(level: int) -> None:
    rng = random.Random(level)
    for _ in range(200):
        query = draw_query(rng, level, test=False)
        assert query.value == python_value(query.text)
        assert max(part.level for part in query.parts) == level
        for part in query.parts:
            assert part.value == python_value(part.text) and abs(part.value) <= MAX_VALUE
            for step in part.steps:
                assert step.result == python_value(f"{step.left}{step.op}{step.right}")
            assert all(step.left >= 0 and step.right >= 0 for step in part.steps)


def test_steps_come_innermost_first_and_products_before_sums() -> None:
    steps = work_out("9-(4+5)*2")
    assert steps is not None
    assert [f"{s.left}{s.op}{s.right}={s.result}" for s in steps] == ["4+5=9", "9*2=18", "9-18=-9"]


def test_what_the_models_are_not_asked() -> None:
    assert work_out("(3-5)*2") is None, "negative on the way"
    assert work_out("12*34") is None, "two long factors"
    assert work_out("7") is None, "nothing to do"


@pytest.mark.parametrize(("text", "reason"), [("(3+4", "not closed"), ("3+", "number is missing"), ("3)", "left over")])
def test_nonsense_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        work_out(text)


def test_training_and_testing_share_no_part() -> None:
    rng = random.Random(0)
    trained = {
        part.text for level in (1, 3, 5) for _ in range(200) for part in draw_query(rng, level, test=False).parts
    }
    trained |= {draw_part(rng, level, test=False).text for level in (1, 2, 3) for _ in range(200)}
    tested = {part.text for query in queries_for_tests(300) for part in query.parts}
    assert not trained & tested
    assert not any(map(is_test, trained)) and all(map(is_test, tested))


def test_shipped_expressions_are_made_by_the_generator(tmp_path: Path) -> None:
    runtime = load_runtime("arithmetic")
    records = runtime.records()
    assert len(records) == runtime.workflow.queries >= 2000
    write_queries(tmp_path / "again.jsonl", len(records))
    assert (tmp_path / "again.jsonl").read_bytes() == (runtime.folder / "expressions.jsonl").read_bytes()
    assert len({record.query for record in records}) == len(records)
    assert all(python_value(record.query) == record.gold for record in records)
    lengths = [len(record.query) for record in records]
    limits = runtime.workflow.query_tokens
    assert limits.minimum <= min(lengths) and max(lengths) <= limits.maximum
    assert {record.extras["level"] for record in records} == set(range(1, LEVELS + 1))
