from __future__ import annotations

from dataclasses import replace

import numpy as np
from toy_outcomes import L, M, S, configuration

from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_scenario, load_workflow, scenario_workflows
from baselines.configurations import Configurations
from policies.aragog.narrowing import configuration_space


def of_toy(feasible: np.ndarray | None = None) -> Configurations:
    scenario = load_scenario("toy")
    (workflow,) = scenario_workflows(scenario)
    space = configuration_space(scenario)
    return Configurations(unroll(workflow), 3, space.feasible[0] if feasible is None else feasible, space.fallback[0])


def members(*pairs: tuple[int, int]) -> np.ndarray:
    result = np.zeros(9, bool)
    result[[configuration(*pair) for pair in pairs]] = True
    return result


def test_options_are_the_models_of_some_configuration() -> None:
    assert of_toy().options(members((S, L), (M, L), (L, L))).tolist() == [0b111, 0b100]
    assert of_toy().chosen(configuration(M, S)).tolist() == [0b010, 0b001]


def test_what_was_served_narrows_and_what_was_not_does_not() -> None:
    space = of_toy()
    assert space.consistent(np.array([-1, -1], np.int32)).all()
    left = members((S, L), (M, L), (L, L)) & space.consistent(np.array([M, -1], np.int32))
    assert np.flatnonzero(left).tolist() == [configuration(M, L)]


def test_only_feasible_configurations_are_usable_and_one_always_is() -> None:
    space = of_toy(feasible=members((S, S), (M, M)))
    space.fallback = configuration(M, M)
    assert np.flatnonzero(space.usable(members((S, S), (L, L)))).tolist() == [configuration(S, S)]
    assert np.flatnonzero(space.usable(members((L, L)))).tolist() == [configuration(M, M)]


def test_tools_have_no_model() -> None:
    graph = unroll(load_workflow("text_to_sql_bird"))
    tool = next(k for k, node in enumerate(graph.nodes) if node.kind == "tool")
    space = Configurations(graph, 3, np.ones(81, bool), 80)
    assert (space.digits[:, tool] == -1).all() and space.digits.shape == (81, 5)
    assert space.options(np.ones(81, bool))[tool] == 0 and space.chosen(80)[tool] == 0
    sent = np.full(5, -1, np.int32)
    sent[[0, tool]] = 1, -1
    assert space.consistent(sent).sum() == 27


def test_a_stage_with_candidates_uses_only_those() -> None:
    workflow = load_workflow("toy_chain")
    stages = (replace(workflow.stages[0], candidates=("toy-small",)), *workflow.stages[1:])
    graph = unroll(replace(workflow, stages=stages))
    feasible = np.isin(np.arange(9) // 3, [S])
    space = Configurations(graph, 3, feasible, configuration(S, L))
    assert space.usable(np.ones(9, bool)).sum() == 3
    assert np.flatnonzero(space.usable(members((L, L)))).tolist() == [configuration(S, L)]
