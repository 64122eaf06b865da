"""What is read out of outputs, and what is not."""

from __future__ import annotations

import time

import pytest

from aragog_env.grading import answers


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C)", "C"),
        ("the answer is **C**.", "C"),
        ("First I thought the answer is (A). But no: the answer is (D).", "D"),
        ("Answer: B", "B"),
        ("The correct answer is option E because ...", "E"),
        (r"The final answer is $\boxed{\text{F}}$", "F"),
        ("The answer is A because water is wet.", "A"),
        ("C", "C"),
        ("(I)", "I"),
        ("So it must be (J)", "J"),
        ("Options B and C are wrong, leaving G", "G"),
        ("The answer is I think hard to know. H.", "H"),
        ("A dog and I went home.", None),
        ("I cannot say.", None),
        ("the answer is probably none of them", None),
        ("", None),
        ("<think>the answer is (A)</think>The answer is (B)", "B"),
        ("<think>the answer is (A)", None),
    ],
)
def test_letter(text: str, letter: str | None) -> None:
    assert answers.extract_letter(text) == letter


def test_letters_beyond_the_options_do_not_count() -> None:
    assert answers.extract_letter("The answer is (F)", options=4) is None
    assert answers.extract_letter("The answer is (B), never (F)", options=4) == "B"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is yes", "yes"),
        ("The answer is **No**.", "no"),
        ("At first the answer is yes. Then again, the answer is no.", "no"),
        ("Answer: Yes", "yes"),
        ("The answer is definitely yes!", "yes"),
        ("The answer is false.", "no"),
        ("Yes, because cats purr.\nThey always do.", "yes"),
        ("Cats purr.\nNo.", "no"),
        ("Nothing is known about it.", None),
        ("Some say yes, some say no.", None),
        ("", None),
    ],
)
def test_yes_or_no(text: str, found: str | None) -> None:
    assert answers.extract_yes_no(text) == found


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ('The passage says "in 1912".\nAnswer: 1912', "1912"),
        ("Answer: a\nAnswer: b", "b"),
        ("**Answer:** the *Titanic*", "the *Titanic"),
        ("Answer: unanswerable", ""),
        ("Answer: Unanswerable.", ""),
        ("Answer:\nParis", "Paris"),
        ("Paris", "Paris"),
        ("One line.\nAnother line.", None),
        ("Answer:", None),
        ("", None),
    ],
)
def test_span(text: str, span: str | None) -> None:
    assert answers.extract_span(text) == span


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\ndef f():\n    return 1\n```", "def f():\n    return 1\n"),
        ("Draft:\n```\ndef f(): 1\n```\nNow:\n```py\ndef f(): return 2\n```\n```python\nf()\n```", "def f(): return 2\n"),
        ("```python\ndef f():\n    return 1", "def f():\n    return 1"),
        ("~~~\ndef f(): return 3\n~~~", "def f(): return 3\n"),
        ("def f(): return 1", "def f(): return 1"),
        ("    return 1\n", "    return 1\n"),
        ("```java\nint f() {}\n```", None),
        ("I would use a loop here.", None),
        ("", None),
    ],
)  # fmt: skip
def test_python(text: str, code: str | None) -> None:
    assert answers.extract_python(text, "f") == code


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("1. Rows\n```sql\nSELECT 1;\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nno:\n```sql\nSELECT 2;\n```", "SELECT 2"),
        ("```SQLite\nSELECT 1\n```\n```\nresult\n```", "SELECT 1"),
        ("```\nSELECT 3\n```", "SELECT 3"),
        ("```sql SELECT 4; ```", "SELECT 4"),
        ("So:\nSELECT a\nFROM t;\nThis selects.", "SELECT a\nFROM t"),
        ("with x as (select 1) select * from x", "with x as (select 1) select * from x"),
        ("```json\n{}\n```", None),
        ("Nothing fits.", None),
    ],
)
def test_sql(text: str, sql: str | None) -> None:
    assert answers.extract_sql(text) == sql


def test_items_of_a_list() -> None:
    assert answers.extract_items("Sure:\n1. Who?\n2) Where?\n   - a remark\n**3.** When?") == [
        "Who?",
        "Where?",
        "When?",
    ]
    assert answers.extract_items("- Who?\n* Where?") == ["Who?", "Where?"]
    assert answers.extract_items("Who was it?") == ["Who was it?"]
    assert answers.count_items("") == 0


@pytest.mark.parametrize(
    ("text", "nothing"),
    [
        ("NO ISSUES", True),
        ("**No issues.**\n", True),
        ("1. The example gives 3, as it should.\n\nNO ISSUES", True),
        ("No issues found.", True),
        ("No issues with imports, but f([]) raises IndexError.", False),
        ("f([]) raises IndexError.", False),
        ("It is not true that there are no issues", False),
        ("", False),
    ],
)
def test_a_critique_that_finds_nothing(text: str, nothing: bool) -> None:
    assert answers.finds_nothing(text) is nothing


def test_reading_is_never_slow() -> None:
    """Outputs may be anything: no expression may look at them more than about linearly."""
    started = time.perf_counter()
    for piece in (
        "answer is ",
        "answer is" + " " * 40,
        "Answer:\n",
        "```",
        "```\n",
        "1. ",
        "<think>",
        "the option ",
        "( ",
        "**",
        "\n\n",
    ):
        text = piece * (40_000 // len(piece))
        answers.extract_letter(text)
        answers.extract_yes_no(text)
        answers.extract_span(text)
        answers.extract_sql(text)
        answers.extract_items(text)
        answers.finds_nothing(text)
        answers.code_blocks(text)
    assert time.perf_counter() - started < 10
