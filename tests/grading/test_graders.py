"""Right and wrong answers, as each benchmark counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aragog_env.datasets import Record, load_dataset
from aragog_env.grading import choices, humaneval, seccomp, squad
from aragog_env.grading.sandbox import Limits

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "question_sets"
PROMPT = (
    "from typing import List\n\n\ndef helper(x: int) -> int:\n    return 2 * x\n\n\n"
    'def twice(xs: List[int]) -> List[int]:\n    """ Double each number.\n    >>> twice([1])\n    [2]\n    """\n'
)
TEST = "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n"
PROBLEM = Record("t/0", PROMPT, "    return [helper(x) for x in xs]\n", {"entry_point": "twice", "test": TEST})
needs_sandbox = pytest.mark.skipif(not seccomp.supported(), reason="programs are run on Linux on x86-64 or arm64 only")


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("```python\ndef twice(xs):\n    return [2 * x for x in xs]\n```", "passed"),
        ("```python\ndef twice(xs: List[int]) -> List[int]:\n    return [helper(x) for x in xs]\n```", "passed"),
        (
            "```python\nfrom __future__ import annotations\ndef twice(xs: Any):\n    return [x + x for x in xs]\n```",
            "passed",
        ),
        ("    return [helper(x) for x in xs]\n", "passed"),
        ("```python\ntwice = lambda xs: [2 * x for x in xs]\n```", "passed"),
        ("```python\ndef twice(xs):\n    return xs\n```", "failed"),
        ("```python\ndef twice(xs):\n    return [helper(x) for x in xs][:-1] or [2\n```", "error"),
        ("```python\ndef twice(xs):\n    exit(0)\n```", "failed"),
        ("```python\ndef twice(xs):\n    while True: pass\n```", "timeout"),
        ("```python\nimport os\nos._exit(0)\ndef twice(xs): pass\n```", "error"),
        ("I do not know.", "error"),
        ("", "error"),
    ],
)
def test_humaneval(answer: str, status: str) -> None:
    grade = humaneval.grade(PROBLEM, answer, Limits(wall_s=1.5))
    assert grade.status == status, grade.detail
    assert grade.correct is (status == "passed") and grade.score == float(grade.correct) and grade.graded


@needs_sandbox
def test_an_answer_without_body_is_the_stub() -> None:
    assert humaneval.grade(PROBLEM, "```python\nimport math\n```").status == "failed"


@needs_sandbox
@pytest.mark.skipif(not SHARED.is_dir(), reason="the public question sets are not here")
@pytest.mark.parametrize("number", [0, 32, 38, 50, 103, 163])
def test_canonical_solutions_of_humaneval_pass(number: int) -> None:
    """As a completion, and as a whole function; 32, 38 and 50 use helpers of their prompts."""
    record = load_dataset("humaneval", SHARED / "humaneval.jsonl.gz")[number]
    assert humaneval.grade(record, record.gold).correct
    start = record.query.rindex(f"def {record.extras['entry_point']}")
    assert humaneval.grade(record, f"Here:\n```python\n{record.query[start:]}{record.gold}\n```").correct
    assert humaneval.grade(record, f"```python\n{record.query[start:]}    return None\n```").status == "failed"


@needs_sandbox
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the public question sets are not here")
def test_all_canonical_solutions_of_humaneval_pass() -> None:
    wrong = [
        record.id
        for record in load_dataset("humaneval", SHARED / "humaneval.jsonl.gz")
        if not humaneval.grade(record, record.gold, Limits(wall_s=30, cpu_s=20)).correct
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("the Norman conquest", ["Norman conquest"], True, 1.0),
        ("The Norman Conquest!", ["norman conquest"], True, 1.0),
        ("in the 10th century", ["10th and 11th centuries", "10th century"], False, 0.8),
        ("France", ["in France", "France."], True, 1.0),
        ("Paris", ["Rome"], False, 0.0),
        ("", [], True, 1.0),
        ("Paris", [], False, 0.0),
        ("", ["Paris"], False, 0.0),
        ("the", ["a"], True, 1.0),
        ("to be or to be", ["to be"], False, 4 / 7),
        ("anti-war", ["antiwar"], True, 1.0),
    ],
)
def test_squad_metrics(answer: str, gold: list[str], exact: bool, f1: float) -> None:
    assert squad.exact_match(answer, gold) is exact
    assert squad.f1(answer, gold) == pytest.approx(f1)


def test_squad_grades() -> None:
    record = Record("q", "Passage: ...", ["10th century", "the 10th century"])
    assert squad.grade(record, "It says so.\nAnswer: 10th century").correct
    part = squad.grade(record, "Answer: early 10th century")
    assert not part.correct and part.status == "failed" and part.score == pytest.approx(0.8)
    assert squad.grade(record, "Answer: unanswerable").score == 0.0
    lost = squad.grade(record, "Let me think.\nOr not.")
    assert lost.status == "error" and lost.score == 0.0
    nothing = Record("q", "Passage: ...", [])
    assert squad.grade(nothing, "Answer: unanswerable").correct
    assert not squad.grade(nothing, "Answer: 10th century").correct


def test_letters() -> None:
    record = Record("1", "Question: ...", "D", {"options": 5})
    assert choices.grade_letter(record, "So the answer is (D).").correct
    assert choices.grade_letter(record, "So the answer is (E).").status == "failed"
    assert choices.grade_letter(record, "So the answer is (J).").status == "error"
    assert choices.grade_letter(record, "Hard to say.").score == 0.0


def test_yes_and_no() -> None:
    record = Record("1", "Do cats purr?", "yes")
    assert choices.grade_yes_no(record, "The answer is yes").correct
    wrong = choices.grade_yes_no(record, "The answer is no")
    assert wrong.status == "failed" and wrong.answer == "no" and "yes" in wrong.detail
    assert choices.grade_yes_no(record, "Perhaps.").status == "error"
