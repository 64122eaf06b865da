from __future__ import annotations

import numpy as np
import pytest
from toy_outcomes import L, M, S, backend, configuration

from aragog_env.backends.sim import SimBackend
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_scenario, scenario_workflows
from baselines.costs import expected_prompt_tokens, static_cost


def test_prompts_and_costs_by_hand() -> None:
    """Draft reads template 100 + query 100; revise template 90 + query 100 + the draft's 10. Both write 10 tokens."""
    sim = backend(1)
    info = sim.compiled.info
    (workflow,) = scenario_workflows(sim.scenario)
    prompts = expected_prompt_tokens(info, 0, unroll(workflow))
    assert prompts.tolist() == [200.0, 200.0]
    cost = static_cost(info, 0, prompts)
    size = info.model_sizes_b
    assert cost.shape == (9,)
    assert cost[configuration(S, L)] == pytest.approx(210 * (size[S] + size[L]))
    assert cost[configuration(M, M)] == pytest.approx(210 * 2 * size[M])
    assert static_cost(info, 0)[configuration(S, S)] == pytest.approx(2 * (100 + 10) * size[S])


def test_a_larger_model_at_any_stage_costs_more() -> None:
    sim = SimBackend(load_scenario("aragog-text_to_sql_bird-qwen"))
    (workflow,) = scenario_workflows(sim.scenario)
    graph, info = unroll(workflow), sim.compiled.info
    prompts = expected_prompt_tokens(info, 0, graph)
    assert prompts[[n.kind == "tool" for n in graph.nodes]].tolist() == [0.0]
    assert prompts[-1] > prompts[0] > 0  # the last stage also reads the query's result
    cost = static_cost(info, 0, prompts).reshape(3, 3, 3, 3)
    for axis in range(4):
        assert (np.diff(cost, axis=axis) > 0).all()
