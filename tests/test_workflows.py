"""The shipped workflows load, unroll, and have prompts that fit their specs."""

from __future__ import annotations

import math
import string
from pathlib import Path

import pytest

from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_workflow
from aragog_env.specs.workflow import StageSpec, WorkflowSpec

ROOT = Path(__file__).parents[1] / "workflows"
QUERIES = {
    "self_refine_humaneval": 164,
    "self_refine_squad": 1000,
    "text_to_sql_bird": 780,
    "voting_mmlu_pro": 1500,
    "decomposition_strategyqa": 1500,
}
SIZES = (3, 7, 8, 14, 32, 70)


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def llm_stages(workflow: WorkflowSpec) -> list[StageSpec]:
    return [stage for stage in workflow.stages if stage.kind == "llm"]


@pytest.mark.parametrize("name", QUERIES)
def test_shape_and_data_set_are_the_papers(name: str) -> None:
    workflow = load_workflow(name)
    graph = unroll(workflow)
    calls = {"self_refine_humaneval": 3, "self_refine_squad": 3, "text_to_sql_bird": 4}.get(name, 5)
    assert graph.n_llm == calls
    assert workflow.queries == QUERIES[name]
    assert sum(not node.children for node in graph.nodes) == 1


@pytest.mark.parametrize("name", QUERIES)
def test_every_number_has_a_source_and_small_models_write_more(name: str) -> None:
    workflow = load_workflow(name)
    assert workflow.source and workflow.description and workflow.dataset
    for stage in llm_stages(workflow):
        assert stage.output is not None
        medians = [stage.output.median_by_size_b[size] for size in SIZES]
        assert medians == sorted(medians, reverse=True)
        assert medians[0] * math.exp(2 * stage.output.sigma) < stage.output.max_tokens
        assert any(word in stage.output.source for word in ("assumption", "HexGen", "ChatDev", "ZeroEval"))


@pytest.mark.parametrize("name", QUERIES)
def test_larger_models_of_a_family_are_more_accurate(name: str) -> None:
    accuracy = load_workflow(name).accuracy_by_size_b
    for family in ((3.09, 7.62, 14.8, 32.8, 72.7), (3.21, 8.03, 70.6), (8.03, 14.8, 32.8)):
        ladder = [accuracy[size] for size in family]
        assert ladder == sorted(ladder)
        assert len(set(ladder)) == len(ladder)


@pytest.mark.parametrize("name", QUERIES)
def test_templates_fit_their_stages(name: str) -> None:
    workflow = load_workflow(name)
    used = set()
    for stage in llm_stages(workflow):
        assert stage.prompt is not None
        path = ROOT / name / stage.prompt.template
        used.add(path)
        text = path.read_text(encoding="utf-8")
        context = stage.parents if stage.prompt.context is None else stage.prompt.context
        known = {*context, *({"query"} if stage.prompt.query else ()), *({"copy"} if stage.fan_out else ())}
        names = placeholders(text)
        assert names >= known - {"copy"}, "a template must use everything its prompt is made of"
        assert names <= known
        bare = text.format(**dict.fromkeys(names, ""))
        assert stage.prompt.template_tokens == math.ceil(len(bare) / 4)
        order = [text.index(f"{{{n}}}") for n in ("query", *context) if n in names]
        assert order == sorted(order), "prompts are laid out template, query, context, for prefix caching"
    assert used == set((ROOT / name / "prompts").glob("*.txt"))


def test_voters_share_one_template_and_refinements_can_be_skipped() -> None:
    graph = unroll(load_workflow("voting_mmlu_pro"))
    assert [node.name for node in graph.nodes[:4]] == [f"vote[{k}]" for k in range(4)]
    assert graph.nodes[4].parents == (0, 1, 2, 3)
    for name in ("self_refine_humaneval", "self_refine_squad"):
        refine = load_workflow(name).stages[2]
        assert refine.skip is not None and refine.skip.on == "critique"


def test_sql_is_run_before_it_is_refined() -> None:
    graph = unroll(load_workflow("text_to_sql_bird"))
    kinds = {node.name: node.kind for node in graph.nodes}
    assert kinds["execute_sql"] == "tool"
    refine = graph.nodes[-1]
    assert [graph.nodes[k].name for k in refine.context] == ["generate_sql", "execute_sql"]
