"""The tape of an episode: deterministic, and one stream does not move another."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from aragog_env.outcomes import OutcomeTable, synthetic_table
from aragog_env.specs.catalogue import model
from aragog_env.specs.cluster import ClusterSpec
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_workflow
from aragog_env.specs.scenario import HorizonSpec, Scenario
from aragog_env.specs.workload import ArrivalSpec, MixEntry, WorkloadSpec
from aragog_env.workload.tape import Tape, draw_queries, draw_tape

MIX = (MixEntry("toy_single", 3.0), MixEntry("toy_chain", 1.0))
POISSON = ArrivalSpec(rate_rps=1.0)


def scenario(arrivals: ArrivalSpec = POISSON, mix: tuple[MixEntry, ...] = MIX, requests: int = 400) -> Scenario:
    workload = WorkloadSpec(arrivals, mix)
    return Scenario("test", ClusterSpec("none", ()), workload, HorizonSpec(requests=requests))


@pytest.fixture(scope="module")
def tables() -> list[OutcomeTable]:
    models = [model("toy-small"), model("toy-large")]
    specs = [load_workflow(entry.workflow) for entry in MIX]
    return [synthetic_table(spec, unroll(spec), models) for spec in specs]


def same(a: Tape, b: Tape, *names: str) -> bool:
    pairs: list[tuple[Any, Any]] = [(getattr(a, name), getattr(b, name)) for name in names]
    return all(np.concatenate(x, axis=None).tobytes() == np.concatenate(y, axis=None).tobytes() for x, y in pairs)


def test_equal_seeds_give_equal_bytes(tables: list[OutcomeTable]) -> None:
    names = [f.name for f in dataclasses.fields(Tape) if f.name != "think_s"]
    a, b, c = (draw_tape(scenario(), tables, seed) for seed in (3, 3, 4))
    assert same(a, b, *names)
    assert not any(same(a, c, name) for name in names)
    assert a.think_s is None


def test_streams_are_independent(tables: list[OutcomeTable]) -> None:
    base = draw_tape(scenario(), tables, 0)
    bursty = draw_tape(scenario(ArrivalSpec(kind="gamma", rate_rps=1.0, cv=4.0)), tables, 0)
    assert same(base, bursty, "workflow", "query", "uniform")
    even = draw_tape(scenario(mix=(MIX[0], dataclasses.replace(MIX[1], weight=3.0))), tables, 0)
    assert same(base, even, "arrival_s")
    assert not same(base, even, "workflow")
    first = [t.query[t.workflow == 0] for t in (base, even)]
    shared = min(map(len, first))
    assert (first[0][:shared] == first[1][:shared]).all(), "the queries of a workflow do not depend on the mix"
    longer = draw_tape(scenario(requests=500), tables, 0)
    assert all(
        (getattr(longer, name)[:400] == getattr(base, name)).all()
        for name in ("arrival_s", "workflow", "query", "uniform")
    )


def test_mix_follows_the_weights(tables: list[OutcomeTable]) -> None:
    tape = draw_tape(scenario(requests=20_000), tables, 0)
    assert (tape.workflow == 1).mean() == pytest.approx(0.25, abs=0.01)
    assert tape.workflow.dtype == tape.query.dtype == np.int32


def test_queries_are_used_up_before_they_repeat(tables: list[OutcomeTable]) -> None:
    tape = draw_tape(scenario(), tables, 0)
    for w in range(2):
        mine = tape.query[tape.workflow == w]
        rounds = [mine[k : k + 16] for k in range(0, len(mine) - 15, 16)]
        assert all(sorted(r) == list(range(16)) for r in rounds)
        assert len({tuple(r) for r in rounds}) == len(rounds), "each round is shuffled anew"


def test_the_same_query_has_the_same_luck(tables: list[OutcomeTable]) -> None:
    tape = draw_tape(scenario(), tables, 0)
    for w in range(2):
        mine = tape.workflow == w
        luck = set(zip(tape.query[mine].tolist(), tape.uniform[mine].tolist(), strict=True))
        assert len(luck) == 16
    assert 0 <= tape.uniform.min() and tape.uniform.max() < 1


def test_luck_is_uniform_over_seeds(tables: list[OutcomeTable]) -> None:
    values = np.concatenate([draw_tape(scenario(requests=16), tables, seed).uniform for seed in range(200)])
    assert np.quantile(values, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


def test_closed_loop_has_think_times_instead_of_arrivals(tables: list[OutcomeTable]) -> None:
    closed = scenario(ArrivalSpec(kind="closed", users=7, think_s=2.0))
    tape = draw_tape(closed, tables, 0)
    assert tape.think_s is not None and tape.think_s.shape == (7, 58)  # 58 x 7 >= 400
    assert np.isinf(tape.arrival_s).all()
    assert same(tape, draw_tape(scenario(), tables, 0), "workflow", "query", "uniform")


def test_draw_queries_of_nothing() -> None:
    assert draw_queries(5, 0, np.random.default_rng(0)).shape == (0,)
