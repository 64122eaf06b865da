"""The five workflows from question to grade, with outputs made up here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from aragog_env.datasets import Record, load_dataset
from aragog_env.errors import SpecError
from aragog_env.grading import seccomp
from aragog_env.grading.runtime import WorkflowRuntime, load_runtime
from scripts.make_sqlite_database import write

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "self_refine_humaneval",
    "self_refine_squad",
    "text_to_sql_bird",
    "voting_mmlu_pro",
    "decomposition_strategyqa",
)
NASTY = "{braces} {0} }{ {{x}} %s $y \\n {query} {generate!r}"
needs_sandbox = pytest.mark.skipif(not seccomp.supported(), reason="programs are run on Linux on x86-64 or arm64 only")


@pytest.fixture(scope="module")
def runtimes() -> Mapping[str, WorkflowRuntime]:
    return {name: load_runtime(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_is_its_template_filled(name: str, runtimes: Mapping[str, WorkflowRuntime]) -> None:
    """Compared with `str.format`; query and outputs are full of braces."""
    runtime = runtimes[name]
    record = Record("1", f"What is {NASTY}?", "secret gold")
    outputs = {k: f"output {k} {NASTY}" for k in range(len(runtime.graph.nodes))}
    for k, stage in enumerate(runtime.graph.stage_of):
        if stage.prompt is None:
            continue
        template = (ROOT / "workflows" / name / stage.prompt.template).read_text(encoding="utf-8")
        fields = {"query": record.query, "copy": str(runtime.graph.nodes[k].copy + 1)}
        for node in runtime.graph.nodes[k].context:
            parent = runtime.graph.stage_of[node]
            number = f"[{runtime.graph.nodes[node].copy + 1}]\n" if parent.fan_out else ""
            joined = fields.get(parent.name)
            fields[parent.name] = (joined + "\n\n" if joined else "") + number + outputs[node]
        prompt = runtime.prompt(k, record, outputs)
        assert prompt == template.format(**fields)
        assert record.gold not in prompt
        assert runtime.messages(k, record, outputs) == [{"role": "user", "content": prompt}]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_share_the_prefix_that_the_specification_promises(
    name: str, runtimes: Mapping[str, WorkflowRuntime]
) -> None:
    runtime = runtimes[name]
    record = Record("1", "What?", None)
    outputs = {k: f"output {k}" for k in range(len(runtime.graph.nodes))}
    for k, stage in enumerate(runtime.graph.stage_of):
        if stage.prompt is not None:
            prompt = runtime.prompt(k, record, outputs)
            before = prompt.index("What?")
            assert all(prompt.find(text) > before or text not in prompt for text in outputs.values())


@pytest.mark.parametrize("name", ["self_refine_humaneval", "self_refine_squad"])
def test_refinement_is_skipped_when_the_critique_finds_nothing(
    name: str, runtimes: Mapping[str, WorkflowRuntime]
) -> None:
    runtime = runtimes[name]
    assert runtime.skips("refine", {0: "draft", 1: "All is well.\nNO ISSUES"})
    assert not runtime.runs(2, {0: "draft", 1: "NO ISSUES"})
    assert runtime.answer({0: "draft", 1: "NO ISSUES"}) == "draft"
    assert runtime.runs(2, {0: "draft", 1: "f([]) fails."}) and not runtime.skips("generate", {})
    assert runtime.answer({0: "draft", 1: "f([]) fails.", 2: "better"}) == "better"


def test_as_many_solvers_as_sub_questions(runtimes: Mapping[str, WorkflowRuntime]) -> None:
    runtime = runtimes["decomposition_strategyqa"]
    for text, copies in (
        ("1. Who?", 1),
        ("1. Who?\n2. Where?", 2),
        ("1. Who?\n2. Where?\n3. When?\n4. Why?", 3),
        ("Who was it?", 1),
        ("", 1),
    ):
        assert runtime.copies("solve", {0: text}) == copies
        assert [runtime.runs(k, {0: text}) for k in (1, 2, 3)] == [k <= copies for k in (1, 2, 3)]
    record = Record("1", "Did Aristotle use a laptop?", "no")
    outputs = {0: "1. When did he live?\n2. When were laptops made?", 1: "Finding: 384 BC", 2: "Finding: 1981"}
    assert runtime.prompt(2, record, outputs).rstrip().endswith("Answer only sub-question number 2.")
    assert "Findings:\n[1]\nFinding: 384 BC\n\n[2]\nFinding: 1981" in runtime.prompt(4, record, outputs)
    assert runtime.grade(record, {**outputs, 4: "So the answer is no."}).correct
    assert not runtime.grade(record, {**outputs, 4: "So the answer is yes."}).correct


def test_all_voters_vote(runtimes: Mapping[str, WorkflowRuntime]) -> None:
    runtime = runtimes["voting_mmlu_pro"]
    assert runtime.copies("vote", {}) == 4 and all(runtime.runs(k, {}) for k in range(4))
    record = Record("1", "Question: 1 + 1?\nOptions:\nA. 1\nB. 2", "B", {"options": 2})
    prompts = {runtime.prompt(k, record, {}) for k in range(4)}
    assert len(prompts) == 1, "voters share one prompt, so that its prefix is cached"
    outputs = {k: f"The answer is ({'AB'[k % 2]})" for k in range(4)}
    assert "[4]\nThe answer is (B)" in runtime.prompt(4, record, outputs)
    assert runtime.grade(record, {**outputs, 4: "The answer is (B)"}).correct
    assert not runtime.grade(record, {**outputs, 4: "The answer is (A)"}).correct


@needs_sandbox
def test_text_to_sql_from_end_to_end(tmp_path: Path, runtimes: Mapping[str, WorkflowRuntime]) -> None:
    write(tmp_path)
    runtime = runtimes["text_to_sql_bird"]
    record = runtime.records(tmp_path)[0]
    outputs = {0: "[]", 1: "{}", 2: "```sql\nSELECT COUNT(*) FROM boks\n```"}
    result = runtime.run_tool(3, record, outputs)
    assert not result.ok and "no such table: boks" in result.text
    outputs[3] = result.text
    assert runtime.prompt(4, record, outputs).rstrip().endswith("Error: no such table: boks")
    assert runtime.grade(record, {**outputs, 4: f"```sql\n{record.gold}\n```"}).correct
    assert runtime.grade(record, {**outputs, 4: "```sql\nSELECT 1\n```"}).status == "failed"


@needs_sandbox
def test_humaneval_from_end_to_end(runtimes: Mapping[str, WorkflowRuntime]) -> None:
    query = 'def one():\n    """ Return 1. """\n'
    record = Record(
        "x/0", query, "    return 1\n", {"entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"}
    )
    runtime = runtimes["self_refine_humaneval"]
    right, wrong = "```python\ndef one(): return 1\n```", "```python\ndef one(): return 2\n```"
    assert runtime.grade(record, {0: right, 1: "NO ISSUES"}).correct
    assert not runtime.grade(record, {0: wrong, 1: "NO ISSUES"}).correct
    assert runtime.grade(record, {0: wrong, 1: "It returns 2.", 2: right}).correct


def test_squad_from_end_to_end(tmp_path: Path, runtimes: Mapping[str, WorkflowRuntime]) -> None:
    file = tmp_path / "squad_v2.jsonl"
    file.write_text('{"id": "1", "context": "Rome fell in 476.", "question": "When?", "answers": {"text": ["476"]}}\n')
    runtime = runtimes["self_refine_squad"]
    [record] = runtime.records(tmp_path)
    assert runtime.prompt(0, record, {}).endswith("Passage: Rome fell in 476.\n\nQuestion: When?\n")
    assert runtime.grade(record, {0: "It fell in 476.\nAnswer: in 476", 1: "Too long.", 2: "Answer: 476"}).correct
    part = runtime.grade(record, {0: "Answer: in 476", 1: "NO ISSUES"})
    assert not part.correct and part.score == pytest.approx(2 / 3)


WORKFLOW = """\
name: mine
queries: 2
query_tokens: {median: 5}
dataset_format: LOADER
dataset_files: [questions.txt]
grader: GRADER
stages:
  - name: draft
    prompt: {template: draft.txt, template_tokens: 3, fields: "own.py:fields"}
    output: {median_by_size_b: {1: 5}, sigma: 0, max_tokens: 9}
  - name: polish
    parents: [draft]
    prompt: {template: polish.txt, template_tokens: 1}
    output: {median_by_size_b: {1: 5}, sigma: 0, max_tokens: 9}
    skip: {on: draft, probability_by_size_b: {1: 0.5}, when: "own.py:fine", instead: INSTEAD}
"""
OWN = """\
from __future__ import annotations
from dataclasses import dataclass
from aragog_env.datasets import Record
from aragog_env.grading.grade import right_or_wrong

@dataclass
class Loaded:
    pass

def load(path):
    return [Record(str(i), line, line.upper()) for i, line in enumerate(path.read_text().split())]

def fields(given, context):
    return {**given, "first": context.record.query[0], "number": str(context.copy)}

def fine(text):
    return text == "fine"

def grade(record, output):
    return right_or_wrong(output, record.gold)
"""


def own_workflow(folder: Path, **changes: str) -> WorkflowRuntime:
    text = WORKFLOW
    for key, value in {"LOADER": '"own.py:load"', "GRADER": '"own.py:grade"', "INSTEAD": "draft", **changes}.items():
        text = text.replace(key, value)
    folder.mkdir(exist_ok=True)
    (folder / "workflow.yaml").write_text(text)
    (folder / "own.py").write_text(OWN)
    (folder / "draft.txt").write_text("{first} of {query}")
    (folder / "polish.txt").write_text("{query}: {draft}")
    (folder / "questions.txt").write_text("one two three")
    return load_runtime(folder)


def test_a_workflow_of_ones_own(tmp_path: Path) -> None:
    runtime = own_workflow(tmp_path / "mine")
    records = runtime.records()
    assert len(records) == 2 and {r.query for r in records} < {"one", "two", "three"}
    assert [r.query for r in runtime.records(count=9)] == ["one", "two", "three"]
    record = runtime.records(count=9)[1]
    assert runtime.prompt(0, record, {}) == "t of two"
    assert runtime.prompt(1, record, {0: "{draft}"}) == "two: {draft}"
    assert runtime.grade(record, {0: "two", 1: "TWO"}).correct
    assert runtime.skips("polish", {0: "fine"}) and runtime.answer({0: "fine"}) == "fine"


TOOL = """\
name: tooled
queries: 1
query_tokens: {median: 5}
stages:
  - name: ask
    prompt: {template: ask.txt, template_tokens: 1}
    output: {median_by_size_b: {1: 5}, sigma: 0, max_tokens: 9}
  - name: use
    kind: tool
    parents: [ask]
    tool_s: {median_s: 1, maximum_s: 7}
"""


def test_tools_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("{query}")
    (tmp_path / "workflow.yaml").write_text(TOOL)
    record = Record("1", "2 + 2", "4")
    without = load_runtime(tmp_path)
    with pytest.raises(SpecError, match="cannot be run live: give it 'tool'"):
        without.run_tool(1, record, {0: "4"})
    with pytest.raises(SpecError, match="has no grader"):
        without.grade(record, {0: "4", 1: "4"})
    with pytest.raises(SpecError, match="names no 'dataset_format'"):
        without.records()
    with pytest.raises(ValueError, match="has no prompt"):
        without.prompt(1, record, {0: "4"})
    (tmp_path / "tools.py").write_text(
        "from aragog_env.grading.tools import ToolResult\n"
        "def echo(call): return ToolResult(f'{call.stage} {call.inputs} {call.limit_s:g}', True, 0.0)\n"
    )
    (tmp_path / "workflow.yaml").write_text(TOOL + '    tool: "tools.py:echo"\n')
    assert load_runtime(tmp_path).run_tool(1, record, {0: "4"}).text == "use {'ask': ('4',)} 7"
    (tmp_path / "workflow.yaml").write_text(TOOL.replace("max_tokens: 9}", 'max_tokens: 9}\n    tool: "tools.py:echo"'))
    with pytest.raises(SpecError, match="is an LLM stage and cannot have 'tool'"):
        load_runtime(tmp_path)


def test_files_of_two_workflows_may_have_the_same_name(tmp_path: Path) -> None:
    first = own_workflow(tmp_path / "first")
    (tmp_path / "second").mkdir()
    second = own_workflow(tmp_path / "second")
    (tmp_path / "third").mkdir()
    assert first._functions["grader"] is not second._functions["grader"]
    assert "own" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("GRADER", '"own.py:grades"', "Did you mean 'grade'"),
        ("GRADER", '"other.py:grade"', "there is no file"),
        ("GRADER", "grade", "names no function"),
        ("GRADER", "aragog_env.nothing:grade", "there is no module 'aragog_env.nothing'"),
        ("INSTEAD", "polish", "no stage before 'polish'"),
    ],
)
def test_bad_bindings_are_refused_with_file_and_line(tmp_path: Path, key: str, value: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        own_workflow(tmp_path / "mine", **{key: value})
    assert "workflow.yaml:" in str(error.value.where) and "key '" in str(error.value.where)


def test_templates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    own_workflow(tmp_path / "mine")
    (tmp_path / "mine" / "polish.txt").write_text("a\n{drat}")
    with pytest.raises(SpecError, match="Did you mean 'draft'") as error:
        load_runtime(tmp_path / "mine" / "workflow.yaml")
    assert str(error.value.where).endswith("polish.txt:2")


def test_workflows_without_live_keys_say_so() -> None:
    with pytest.raises(SpecError, match="cannot read this prompt template"):
        load_runtime("toy_single")


SHARED = ROOT.parent / "shared" / "data" / "question_sets"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public question sets are not here")
def test_lengths_of_real_prompts_are_as_the_specifications_say(runtimes: Mapping[str, WorkflowRuntime]) -> None:
    for name, form, file in (
        ("self_refine_humaneval", "humaneval", "humaneval.jsonl.gz"),
        ("text_to_sql_bird", "bird", "bird_dev.json.gz"),
    ):
        runtime = runtimes[name]
        tokens = sorted(record.tokens for record in load_dataset(form, SHARED / file))
        spec = runtime.workflow.query_tokens
        assert tokens[len(tokens) // 2] == pytest.approx(spec.median, rel=0.1)
        assert tokens[-1] <= spec.maximum and tokens[0] >= spec.minimum
