from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.errors import SpecError
from aragog_env.specs.load import load_scenario
from policies.viability import OracleViableSets, ViableSets, make_viable_sets

INFO: Any = SimpleNamespace()


def test_the_oracle_knows_what_is_right_in_this_episode() -> None:
    """One number per query decides: an answer is right where its probability is above it."""
    compiled = compile_scenario(load_scenario("toy"))
    (table,) = compiled.outcomes
    draws = np.random.default_rng(0).random(table.queries)
    sets = make_viable_sets("oracle")
    assert isinstance(sets, ViableSets) and sets.name == "oracle"
    sets.receive_outcomes(compiled.outcomes, (draws,))
    sets.reset(compiled.scenario)
    sizes = set()
    for query in range(table.queries):
        right = draws[query] < table.p_correct[query]
        viable = sets.viable(compiled.info, 0, query, budget_s=0.0)
        np.testing.assert_array_equal(viable, right if right[-1] else np.ones(9, np.bool_))
        sizes.add(int(viable.sum()))
    assert len(sizes) > 1
    assert sets.routing_s(0, 0) == 0.0
    with pytest.raises(ValueError, match="read-only"):
        sets.viable(compiled.info, 0, 0)[0] = True


def test_another_episode_has_other_sets() -> None:
    tables = compile_scenario(load_scenario("toy")).outcomes
    sets = OracleViableSets()
    kept = []
    for draw in (0.1, 0.9):
        sets.receive_outcomes(tables, (np.full(tables[0].queries, draw),))
        kept.append([sets.viable(INFO, 0, q).tolist() for q in range(tables[0].queries)])
    assert kept[0] != kept[1]


@pytest.mark.parametrize("name", ["oracle", "router"])
def test_no_source_works_without_tables(name: str) -> None:
    with pytest.raises(SpecError, match="call receive_outcomes before reset"):
        make_viable_sets(name).reset(load_scenario("toy"))


def test_unknown_names_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Did you mean 'oracle'"):
        make_viable_sets("orcale")
    with pytest.raises(SpecError, match="path of a checkpoint"):
        make_viable_sets(str(tmp_path / "none.npz"))
