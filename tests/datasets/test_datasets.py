"""Published formats are read; what does not fit is refused with file and place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from aragog_env.datasets import FORMATS, Record, estimate_tokens, load_dataset, sample
from aragog_env.errors import SpecError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "question_sets"
PROBLEM = {
    "task_id": "T/0",
    "prompt": "def f():\n",
    "entry_point": "f",
    "canonical_solution": "    pass\n",
    "test": "x",
}
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rome",
            "paragraphs": [
                {
                    "context": "Rome fell in 476.",
                    "qas": [
                        {"id": "a", "question": "When?", "answers": [{"text": t} for t in ("476", "in 476")]},
                        {"id": "b", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": []},
                    ],
                }
            ],
        }
    ],
}  # fmt: skip
PRO = {
    "question_id": 70,
    "question": "1+1?",
    "options": ["1", "2", "N/A"],
    "answer": "B",
    "answer_index": 1,
    "category": "math",
}
TABLES = [
    {
        "db_id": "tiny",
        "table_names_original": ["t one", "u"],
        "table_names": ["first", "second"],
        "column_names_original": [[-1, "*"], [0, "id"], [0, "big name"], [1, "a"], [1, "b"]],
        "column_names": [[-1, "*"], [0, "number"], [0, "big name"], [1, "first"], [1, "b"]],
        "column_types": ["text", "integer", "text", "integer", "real"],
        "primary_keys": [1, [3, 4]],
        "foreign_keys": [[3, 1]],
    }
]
BIRD = [
    {
        "question_id": 7,
        "db_id": "tiny",
        "question": "How many?",
        "evidence": "count all",
        "SQL": "SELECT 1",
        "difficulty": "simple",
    }
]


def put(path: Path, *values: Any) -> Path:
    """Write JSON: one value as it is, several as lines."""
    text = "\n".join(json.dumps(value) for value in values) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_humaneval(tmp_path: Path) -> None:
    for name in ("HumanEval.jsonl", "HumanEval.jsonl.gz"):
        [record] = load_dataset("humaneval", put(tmp_path / name, PROBLEM))
        assert record == Record("T/0", "def f():\n", "    pass\n", {"entry_point": "f", "test": "x"})


def test_squad_in_both_formats(tmp_path: Path) -> None:
    nested = load_dataset("squad", put(tmp_path / "dev-v2.0.json", SQUAD))
    rows = [
        {"id": "a", "context": "Rome fell in 476.", "question": "When?", "answers": {"text": ["476", "in 476"]}},
        {"id": "b", "context": "Rome fell in 476.", "question": "Why?", "answers": {"text": []}},
    ]  # fmt: skip
    assert load_dataset("squad", put(tmp_path / "squad_v2.jsonl", *rows)) == nested
    assert nested[0].query == "Passage: Rome fell in 476.\n\nQuestion: When?"
    assert [record.gold for record in nested] == [["476", "in 476"], []]


def test_mmlu_pro_and_mmlu(tmp_path: Path) -> None:
    [record] = load_dataset("mmlu_pro", put(tmp_path / "mmlu_pro.jsonl", PRO))
    assert (record.id, record.gold, record.extras["options"]) == ("70", "B", 2)
    assert record.query == "Question: 1+1?\nOptions:\nA. 1\nB. 2"
    csv = tmp_path / "mmlu_test.csv"
    csv.write_text('subject,question,A,B,C,D,answer\nart,"Who, and\nwhen?",a,b,c,d,D\n')
    [old] = load_dataset("mmlu_pro", csv)
    assert old.gold == "D" and old.query == "Question: Who, and\nwhen?\nOptions:\nA. a\nB. b\nC. c\nD. d"


def test_strategyqa(tmp_path: Path) -> None:
    rows = [
        {"qid": "q1", "question": "Is it?", "answer": True, "facts": []},
        {"qid": "q2", "question": "No?", "answer": False},
    ]
    records = load_dataset("strategyqa", put(tmp_path / "strategyqa_train.json", rows))
    assert [(r.id, r.query, r.gold) for r in records] == [("q1", "Is it?", "yes"), ("q2", "No?", "no")]


def test_bird_with_and_without_databases(tmp_path: Path) -> None:
    put(tmp_path / "dev_tables.json", TABLES)
    path = put(tmp_path / "dev.json", BIRD)
    [record] = load_dataset("bird", path)
    assert record.extras == {"database": "", "db_id": "tiny", "difficulty": "simple"} and record.gold == "SELECT 1"
    assert record.query == (
        "CREATE TABLE `t one` (\n  id integer PRIMARY KEY, -- number\n  `big name` text,\n);\n"
        "CREATE TABLE u (\n  a integer REFERENCES `t one`(id), -- first\n  b real,\n  PRIMARY KEY (a, b),\n);\n\n"
        "Question: How many?\n\nHint: count all"
    )
    (tmp_path / "dev_databases").mkdir()
    with pytest.raises(SpecError, match=r"tiny\.sqlite' is missing"):
        load_dataset("bird", path)
    put(tmp_path / "dev_databases" / "tiny" / "tiny.sqlite", "")
    [record] = load_dataset("bird", tmp_path)
    assert record.extras["database"] == str(tmp_path / "dev_databases" / "tiny" / "tiny.sqlite")


def test_a_format_of_ones_own_and_the_plain_one(tmp_path: Path) -> None:
    path = put(tmp_path / "mine.jsonl", {"id": 1, "query": "q", "gold": {"x": [1]}, "hint": "h"})
    assert load_dataset("jsonl", path) == (Record("1", "q", {"x": [1]}, {"hint": "h"}),)
    assert load_dataset("mine", path, loader=lambda p: [Record("1", p.name, 2)])[0].query == "mine.jsonl"
    with pytest.raises(SpecError, match="its file must be named"):
        load_dataset("mine", loader=lambda p: [])


def without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != key}


@pytest.mark.parametrize(
    ("form", "name", "values", "where", "message"),
    [
        ("humaneval", "x.jsonl", [PROBLEM, without(PROBLEM, "test")], "x.jsonl:2", "'test' is missing"),
        ("humaneval", "x.jsonl", [{**PROBLEM, "prompt": 3}], "x.jsonl:1", "must be text, got a whole number"),
        ("humaneval", "x.jsonl", [PROBLEM, PROBLEM], "x.jsonl", "two questions have the id 'T/0'"),
        ("humaneval", "x.jsonl", [[1]], "x.jsonl:1", "expected an object"),
        ("humaneval", "x.json", [{}], "x.json", "must hold a list"),
        ("humaneval", "x.json", [[]], "x.json", "no questions"),
        ("humaneval", "x.txt", [PROBLEM], "x.txt", "must end in .jsonl"),
        ("squad", "x.json", [{"version": "1"}], "x.json", "the key 'data'"),
        ("squad", "x.json", [{"data": [{"paragraphs": [{"context": "c"}]}]}], "data[0], paragraphs[0]", "'qas' is missing"),
        ("squad", "x.jsonl", [{"answers": ["a"]}], "x.jsonl:1", "must be an object, got a list"),
        ("mmlu_pro", "x.jsonl", [PRO, {**PRO, "answer": "C"}], "x.jsonl:2", "letter from A to B"),
        ("mmlu_pro", "x.jsonl", [{**PRO, "options": ["a"]}], "x.jsonl:1", "2 to 10 options"),
        ("mmlu_pro", "x.jsonl", [{**PRO, "options": [1, 2]}], "x.jsonl:1", "list of texts"),
        ("strategyqa", "x.json", [[{"question": "q", "answer": "yes"}]], "x.json, entry 0", "must be true or false, got text"),
        ("bird", "dev.json", [BIRD], "dev.json", "dev_tables.json"),
        ("jsonl", "x.jsonl", [{"id": "1", "query": "q"}], "x.jsonl:1", "'gold' is missing"),
        ("jsonl", "x.jsonl", [{"id": True, "query": "q", "gold": 1}], "x.jsonl:1", "got true or false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, form: str, name: str, values: list[Any], where: str, message: str
) -> None:
    path = put(tmp_path / name, *values)
    with pytest.raises(SpecError) as error:
        load_dataset(form, path)
    assert message in error.value.message and str(error.value.where).endswith(where)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"task_id": \n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    (tmp_path / "c.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "d.csv").write_text("subject,question,A,B,C,D,answer\nart,q,a,b\n")
    (tmp_path / "e.json").write_text('[\n{"a": 1,}\n]')
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    for name, message in (
        ("a.jsonl", "a.jsonl:1: this is not JSON"),
        ("b.jsonl.gz", "cannot read this data file"),
        ("c.jsonl", "cannot read this data file"),
        ("d.csv", "d.csv:2: this row must have 7 fields"),
        ("e.json", "e.json:2: this is not JSON"),
        ("f.parquet", "parquet"),
    ):
        with pytest.raises(SpecError) as error:
            load_dataset("mmlu_pro", tmp_path / name)
        assert message in str(error.value), name


def test_files_are_found_under_their_published_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "HumanEval.jsonl.gz", PROBLEM)
    assert load_dataset("humaneval", tmp_path)[0].id == "T/0"
    monkeypatch.setenv("ARAGOG_DATASETS", str(tmp_path / "empty") + ":" + str(tmp_path))
    assert load_dataset("humaneval")[0].id == "T/0"
    monkeypatch.setenv("ARAGOG_DATASETS", str(tmp_path / "empty"))
    monkeypatch.setattr("aragog_env.datasets.ROOT", tmp_path / "nowhere")
    with pytest.raises(
        SpecError, match=r"looked for HumanEval\.jsonl\.gz .* ARAGOG_DATASETS to .*download_datasets humaneval"
    ):
        load_dataset("humaneval")
    with pytest.raises(SpecError, match="there is no file or folder"):
        load_dataset("humaneval", tmp_path / "none.jsonl")
    with pytest.raises(SpecError, match="Did you mean 'squad'"):
        load_dataset("squat")


def test_samples_repeat_and_keep_their_order() -> None:
    records = [Record(str(k), f"q{k}", k) for k in range(100)]
    drawn = sample(records, 30)
    assert drawn == sample(records, 30) and len(drawn) == 30
    assert [r.gold for r in drawn] == sorted(r.gold for r in drawn)
    assert {r.id for r in sample(records, 10)} < {r.id for r in drawn}
    assert {r.id for r in sample(records, 30, seed=1)} != {r.id for r in drawn}
    assert sample(records, 200) == tuple(records)
    fewer = sample(records[1:], 30)
    assert len({r.id for r in fewer} & {r.id for r in drawn}) >= 29


def test_tokens_are_a_quarter_of_the_characters() -> None:
    assert [estimate_tokens(text) for text in ("", "a", "abcd", "abcde")] == [0, 1, 1, 2]
    assert Record("1", "abcde", None).tokens == 2


def test_every_format_has_a_reader_and_names() -> None:
    for module in FORMATS.values():
        assert callable(module.load) and isinstance(module.FILES, tuple) and module.__doc__


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public question sets are not here")
@pytest.mark.parametrize(
    ("form", "file", "count"),
    [
        ("humaneval", "humaneval.jsonl.gz", 164),
        ("bird", "bird_dev.json.gz", 1534),
        ("mmlu_pro", "mmlu_test.csv.gz", 14042),
    ],
)
def test_public_question_sets(form: str, file: str, count: int) -> None:
    records = load_dataset(form, SHARED / file)
    assert len(records) == count and all(record.query and record.gold for record in records)
    assert len(load_dataset(form, SHARED / file, count=50)) == 50
