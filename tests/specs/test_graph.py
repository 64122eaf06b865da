"""Unrolling: order, masks, depths, and every way to write a workflow that is none."""

from __future__ import annotations

import pytest

from aragog_env.errors import SpecError
from aragog_env.specs.graph import WorkflowGraph, unroll
from aragog_env.specs.load import load_workflow
from aragog_env.specs.strict import loads
from aragog_env.specs.workflow import WorkflowSpec

HEAD = "name: w\nqueries: 4\nquery_tokens: {median: 10}\nstages:\n"
LLM = "prompt: {template: t, template_tokens: 5}, output: {median_by_size_b: {1: 10}, sigma: 0, max_tokens: 20}"


def llm(name: str, *parents: str, extra: str = "", body: str = LLM) -> str:
    return f"  - {{name: {name}, parents: [{', '.join(parents)}], {body}{extra}}}\n"


def tool(name: str, *parents: str, extra: str = ", tool_s: {median_s: 1}") -> str:
    return f"  - {{name: {name}, kind: tool, parents: [{', '.join(parents)}]{extra}}}\n"


def read(*stages: str) -> WorkflowSpec:
    return loads(WorkflowSpec, HEAD + "".join(stages), "w.yaml")


def graph(*stages: str) -> WorkflowGraph:
    return unroll(read(*stages))


def test_fan_out_expands_to_copies_that_all_parents_and_children_see() -> None:
    g = graph(
        llm("split"),
        llm("solve", "split", extra=", fan_out: {probabilities: [0.2, 0.3, 0.5]}"),
        tool("check", "solve"),
        llm("join", "check"),
    )
    assert [node.name for node in g.nodes] == ["split", "solve[0]", "solve[1]", "solve[2]", "check", "join"]
    assert g.parents.tolist() == [0, 1, 1, 1, 0b1110, 0b10000]
    assert g.children.tolist() == [0b1110, 0b10000, 0b10000, 0b10000, 0b100000, 0]
    assert g.depth.tolist() == [4, 3, 3, 3, 2, 1]
    assert g.llm_slot.tolist() == [0, 1, 2, 3, -1, 4]
    assert g.stage.tolist() == [0, 1, 1, 1, 2, 3]
    assert g.copy.tolist() == [0, 0, 1, 2, 0, 0]
    assert g.n_llm == 5
    assert [stage.name for stage in g.stage_of] == ["split", "solve", "solve", "solve", "check", "join"]


def test_depth_is_the_longest_path() -> None:
    g = graph(llm("a"), llm("b", "a"), llm("c", "a", "b"), llm("d", "a"))
    assert g.depth.tolist() == [3, 2, 1, 1]


def test_stages_may_be_listed_in_any_order() -> None:
    g = graph(llm("last", "mid"), llm("mid", "first"), llm("first"), llm("other"))
    assert [node.name for node in g.nodes] == ["first", "mid", "last", "other"]
    assert all(mask < 1 << k for k, mask in enumerate(g.parents.tolist()))


def test_context_is_the_parents_unless_said_otherwise() -> None:
    body = LLM.replace("template_tokens: 5", "template_tokens: 5, context: [b, a]")
    g = graph(llm("a"), llm("b", "a"), llm("c", "b"), llm("d", "c", body=body))
    assert g.nodes[2].context == (1,)
    assert g.nodes[3].context == (0, 1)
    none = LLM.replace("template_tokens: 5", "template_tokens: 5, context: []")
    assert graph(llm("a"), llm("b", "a", body=none)).nodes[1].context == ()


def test_skip_condition_points_at_its_node() -> None:
    skip = ", skip: {on: b, probability_by_size_b: {1: 0.5}}"
    g = graph(llm("a"), llm("b", "a"), llm("c", "b"), llm("d", "c", extra=skip))
    assert [node.skip_on for node in g.nodes] == [-1, -1, -1, 1]


def test_the_papers_text_to_sql_runs_its_stages_in_a_row() -> None:
    g = unroll(load_workflow("text_to_sql_bird"))
    assert g.n_llm == 4
    assert g.depth.tolist() == list(range(len(g.nodes), 0, -1))


def test_voting_has_four_voters_and_an_aggregator() -> None:
    g = unroll(load_workflow("voting_mmlu_pro"))
    assert g.n_llm == 5
    assert g.parents.tolist() == [0, 0, 0, 0, 0b1111]


def skipped(on: str) -> str:
    return f", skip: {{on: {on}, probability_by_size_b: {{1: 0.5}}}}"


COPIES = ", fan_out: {probabilities: [0.5, 0.5]}"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [llm("a", "c"), llm("b", "a"), llm("c", "b"), llm("d")],
            "w.yaml:5, key 'stages[0].parents': the stages form a cycle: a -> b -> c -> a (each waits",
        ),
        (
            [llm("x"), llm("y", "x", "z"), llm("z", "y")],
            "w.yaml:6, key 'stages[1].parents': the stages form a cycle: y -> z -> y (",
        ),
        ([llm("a", "a")], "w.yaml:5, key 'stages[0].parents': the stages form a cycle: a -> a ("),
        (
            [llm("generate"), llm("b", "generat")],
            "w.yaml:6, key 'stages[1].parents[0]': unknown stage 'generat'. Did you mean 'generate'?",
        ),
        (
            [llm("a"), llm("b", "a", body=LLM.replace("tokens: 5", "tokens: 5, context: [aa]"))],
            "w.yaml:6, key 'stages[1].prompt.context[0]': unknown stage 'aa'. Did you mean 'a'?",
        ),
        (
            [llm("a"), llm("b", "a", extra=skipped("cc"))],
            "w.yaml:6, key 'stages[1].skip.on': unknown stage 'cc'. Known: a, b.",
        ),
        ([llm("a"), llm("a")], "w.yaml:6, key 'stages[1].name': two stages are called 'a'"),
        ([llm("a"), llm("b", "a", "a")], "w.yaml:6, key 'stages[1].parents': stage 'a' is listed twice"),
        (["  []\n"], "w.yaml:5, key 'stages': a workflow needs at least one stage"),
        ([tool("a")], "w.yaml:5, key 'stages': a workflow needs at least one LLM stage"),
        (
            [llm("a", extra=", fan_out: {probabilities: [" + "0, " * 31 + "1]}"), llm("b", "a")],
            "w.yaml:5, key 'stages': the workflow unrolls to 33 nodes (copies count); at most 32",
        ),
        (
            [llm("a"), llm("b", "a"), llm("c", "a", extra=skipped("b"))],
            "w.yaml:7, key 'stages[2].skip.on': stage 'c' is skipped on 'b', which is no ancestor of it",
        ),
        (
            [tool("a"), llm("b", "a", extra=skipped("a"))],
            "w.yaml:6, key 'stages[1].skip.on': stage 'b' is skipped on 'a', which must be one LLM call",
        ),
        (
            [llm("a", extra=COPIES), llm("b", "a", extra=skipped("a"))],
            "w.yaml:6, key 'stages[1].skip.on': stage 'b' is skipped on 'a', which must be one LLM call",
        ),
        (
            [llm("a"), llm("b", "a", extra=", skip: {on: a, probability_by_size_b: {}}")],
            "w.yaml:6, key 'stages[1].skip.probability_by_size_b': stage 'b' needs at least one probability",
        ),
        (
            [llm("a"), llm("b", body=LLM.replace("tokens: 5", "tokens: 5, context: [a]"))],
            "w.yaml:6, key 'stages[1].prompt.context': stage 'b' reads the output of 'a', which need not",
        ),
        (
            ["  - {name: a, output: {median_by_size_b: {1: 1}, sigma: 0, max_tokens: 1}}\n"],
            "w.yaml:5, key 'stages[0]': stage 'a' is an LLM stage and needs 'prompt'",
        ),
        (
            ["  - {name: a, prompt: {template: t, template_tokens: 1}}\n"],
            "w.yaml:5, key 'stages[0]': stage 'a' is an LLM stage and needs 'output'",
        ),
        (
            [llm("a", extra=", tool_s: {median_s: 1}")],
            "w.yaml:5, key 'stages[0].tool_s': stage 'a' is an LLM stage and cannot have 'tool_s'",
        ),
        (
            [llm("a"), tool("b", "a", extra="")],
            "w.yaml:6, key 'stages[1]': stage 'b' is a tool and needs 'tool_s'",
        ),
        (
            [llm("a"), tool("b", "a", extra=", tool_s: {median_s: 1}, candidates: [x]")],
            "w.yaml:6, key 'stages[1].candidates': stage 'b' is a tool and cannot have 'candidates'",
        ),
        (
            [llm("a", extra=", candidates: []")],
            "w.yaml:5, key 'stages[0].candidates': stage 'a' has an empty list of candidates",
        ),
        (
            [llm("a", body=LLM.replace("{1: 10}", "{}"))],
            "w.yaml:5, key 'stages[0].output.median_by_size_b': stage 'a' needs at least one median",
        ),
        (
            [llm("a", body=LLM.replace("tokens: 5", "tokens: 0, query: false"))],
            "w.yaml:5, key 'stages[0].prompt': stage 'a' has an empty prompt",
        ),
        (
            [llm("a", extra=", fan_out: {probabilities: [0.5, 0.4]}")],
            "w.yaml:5, key 'stages[0].fan_out.probabilities': stage 'a' has fan-out probabilities that sum",
        ),
    ],
)
def test_refuses_what_is_no_workflow(stages: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        graph(*stages)
    assert str(caught.value).startswith(message)
