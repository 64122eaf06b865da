"""Viable sets as bit sets, and what is left of them after each choice, by hand-computed numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aragog_env.errors import SpecError
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from policies.aragog.narrowing import configuration_space, narrow, pack, unpack


def chain() -> Scenario:
    """Two LLM stages, three models: configuration 3 a + b has model a at the first and b at the second."""
    return load_scenario("toy")


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(0, 2))
def test_packing_loses_nothing(members: list[bool], spare: int) -> None:
    flags = np.array(members)
    words = -(-len(members) // 64) + spare
    packed = pack(flags, words)
    assert packed.shape == (words,) and packed.dtype == np.uint64
    assert unpack(packed, len(members)).tolist() == members
    assert sum(int(word).bit_count() for word in packed) == sum(members)


def test_bit_c_of_the_words_is_configuration_c() -> None:
    flags = np.zeros(130, np.bool_)
    flags[[0, 5, 64, 129]] = True
    assert pack(flags, 3).tolist() == [0b100001, 1, 2]


def test_masks_hold_the_configurations_with_a_model_at_a_stage() -> None:
    space = configuration_space(chain())
    assert space.masks.shape == (2, 3, 1) and space.nodes == 2
    # Stage 0: configurations 0-2, 3-5, 6-8. Stage 1: 0 3 6, 1 4 7, 2 5 8.
    assert space.masks[0, :, 0].tolist() == [0b000000111, 0b000111000, 0b111000000]
    assert space.masks[1, :, 0].tolist() == [0b001001001, 0b010010010, 0b100100100]
    assert space.feasible[0].all() and space.fallback == (8,)


def left(viable: list[int], served: list[int], node: int) -> tuple[set[int], int]:
    """Return what is left of a set of the chain's configurations, and the index of the first empty call."""
    space = configuration_space(chain())
    flags = np.zeros(9, np.bool_)
    flags[viable] = True
    remaining = np.zeros((1, 1), np.uint64)
    kind = np.array([node], np.int32)
    empty = narrow(space.bits(0, flags)[None], np.array([served], np.int32), kind, space.masks, remaining)
    return set(np.flatnonzero(unpack(remaining, 9)[0]).tolist()), empty


def test_choosing_a_model_deletes_all_configurations_with_another_one() -> None:
    viable = [1, 2, 5, 8]  # (0,1) (0,2) (1,2) (2,2)
    assert left(viable, [-1, -1], 0) == ({1, 2, 5, 8}, -1)
    assert left(viable, [0, -1], 1) == ({1, 2}, -1)
    assert left(viable, [1, -1], 1) == ({5}, -1)
    assert left(viable, [2, -1], 1) == ({8}, -1)
    assert left(viable, [0, 2], 1) == ({2}, -1)


def test_a_dispatch_outside_the_set_is_noticed() -> None:
    assert left([8], [0, -1], 1) == (set(), 0)


def test_every_workflow_of_a_mix_has_its_own_rows() -> None:
    """Five workflows of 3 to 5 LLM stages: each node's masks partition its workflow's configurations, tools have none."""
    scenario = load_scenario("default")
    space = configuration_space(scenario)
    assert space.words == 4  # 243 configurations
    tools = 0
    for w, feasible in enumerate(space.feasible):
        for node in range(space.nodes):
            row = unpack(space.masks[w * space.nodes + node], 256)
            if not row.any():
                tools += 1
                continue
            assert (row.sum(axis=0) == (np.arange(256) < len(feasible))).all()
            assert (row.sum(axis=1) == len(feasible) // 3).all()
    # Nodes: self-refine 3 (twice), text-to-SQL 5 of which one is a tool, voting 5, decomposition 5.
    assert tools == 2 + 2 + 1


def test_stages_can_be_made_to_agree() -> None:
    scenario = override(load_scenario("default"), workflow="voting_mmlu_pro")
    free, bound = configuration_space(scenario), configuration_space(scenario, "vote")
    assert free.feasible[0].sum() == 3**5
    assert bound.feasible[0].sum() == 3**2  # one model for the voters, one for the aggregator
    assert configuration_space(scenario, "vote+aggregate").feasible[0].sum() == 3
    with pytest.raises(SpecError, match=r"no workflow of the scenario has an LLM stage 'votes'\. Did you mean 'vote'"):
        configuration_space(scenario, "votes")


def test_what_no_candidate_can_serve_is_not_feasible(monkeypatch: pytest.MonkeyPatch) -> None:
    """With small and medium as the candidates of the draft, all-large cannot be the fallback: medium/large is."""
    from aragog_env.specs import load

    workflow = load.load_workflow("toy_chain")
    draft = replace(workflow.stages[0], candidates=("toy-small", "toy-medium"))
    changed = replace(workflow, stages=(draft, *workflow.stages[1:]))
    monkeypatch.setattr("policies.aragog.narrowing.scenario_workflows", lambda scenario: (changed,))
    space = configuration_space(chain())
    assert np.flatnonzero(space.feasible[0]).tolist() == [0, 1, 2, 3, 4, 5] and space.fallback == (5,)
    only_largest = np.arange(9) == 8
    assert unpack(space.bits(0, only_largest), 9).tolist() == (np.arange(9) == 5).tolist()
    assert only_largest.sum() == 1  # the router's answer is left alone
