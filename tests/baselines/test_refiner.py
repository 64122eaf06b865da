"""Which calls are shown, and what a price is: by hand, by brute force, and the same in the environment and for a view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toys import together

from aragog_env.backends.sim import SimBackend
from aragog_env.errors import SpecError
from aragog_env.observation import PairFeature
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView
from baselines.features import Choices, PairExtra, Rules, SlotSets
from baselines.learned import SlotEncoder
from baselines.training_env import TrainingEnv, random_actions

OPEN, KEPT, WORK, LOAD, PRICE, BEST, CAPTIVE = (len(PairFeature) + extra for extra in PairExtra)
BY_WORK = Rules("oracle", hold=0.05, window=32, order="work")
PRICED = Rules("oracle", hold=0.05, window=32, order="work", point_s=0.03, most_loss=200.0)
PRICED_ORDER = replace(PRICED, order="price")


def busy() -> Scenario:
    return override(load_scenario("default"), requests=50, warmup_requests=0, rate_rps=200.0, ready_slots=4)


@pytest.mark.parametrize("rules", [BY_WORK, PRICED, PRICED_ORDER], ids=["sets", "priced", "in order of price"])
def test_the_environment_and_a_view_show_the_same_on_a_whole_episode(rules: Rules) -> None:
    scenario, seed = busy(), 3
    env, backend = TrainingEnv(1, scenario, rules), SimBackend(scenario)
    env.reset(seed=seed)
    backend.reset(seed)
    encoder = SlotEncoder(scenario, rules, 4)
    encoder.receive_outcomes(backend.outcomes, backend.draws)
    rng, elsewhere = np.random.default_rng(seed), 0
    while not backend.done:
        view = backend.view()
        calls, routes, pairs, amounts, mask, *_ = env.arrays
        seen = encoder.encode(view)
        for ours, theirs in ((seen.calls, calls), (seen.routes, routes), (seen.pairs, pairs), (seen.globals, amounts)):
            assert ours.tobytes() == theirs[0].tobytes()
        assert (seen.mask[:-1] == mask[0, :-1]).all()
        assert seen.chosen.tolist() == env.shown.which[0][: len(seen.chosen)].tolist()
        elsewhere += seen.chosen.tolist() != list(range(len(seen.chosen)))
        action = random_actions(mask, rng)
        assert seen.number(seen.action(int(action[0]))) == action[0]
        backend.step(seen.action(int(action[0])))
        env.step(action)
    assert elsewhere > 50


def plain_prices(encoder: SlotEncoder, view: DispatchView, call: int) -> tuple[list[float], list[float]]:
    """Return the least price over a request's configurations with each model at the call's node, inf where there is none.

    And the seconds on idle servers that the rest of the request takes in the configuration of that price.
    """
    tables, entry, served = encoder.sets.tables, view.calls[call], view.served_by[call]
    workflow, node, width = int(entry["workflow"]), int(entry["node"]), len(served)
    load = view.routes["running"] + view.routes["waiting"]
    choices = encoder._choices[workflow, int(entry["query"])]
    bits, loss_s = choices.bits[0], choices.loss_s[0]
    best, work_s = [np.inf] * tables.masks.shape[1], [0.0] * tables.masks.shape[1]
    for c, digits in enumerate(tables.digits[workflow].tolist()):
        member = int(bits[c // 64]) >> (c % 64) & 1
        if not member or any(served[k] >= 0 and digits[k] != served[k] for k in range(width)):
            continue
        price, left_s = float(loss_s[c]) if len(loss_s) else 0.0, 0.0
        for k, m in enumerate(digits):
            if m >= 0 and served[k] < 0:
                left_s += tables.node_s[workflow * width + k, m]
                here = view.routes["model"] == m
                kind, on = workflow * width + k, int(tables.skip_on[workflow * width + k])
                decides = (int(served[on]) if served[on] >= 0 else digits[on]) if on >= 0 else 0
                share = 1.0 if k == node else tables.runs[kind, decides]
                price += share * tables.node_s[kind, m] * ((1 + tables.slowing * load)[here] ** 2).min()
        if price < best[digits[node]]:
            best[digits[node]], work_s[digits[node]] = price, left_s
    return best, work_s


@pytest.mark.parametrize("cluster", [None, "qwen-16xh100-replicated"])
@pytest.mark.parametrize("rules", [BY_WORK, PRICED, PRICED_ORDER], ids=["sets", "priced", "in order of price"])
def test_prices_are_those_of_all_configurations(rules: Rules, cluster: str | None) -> None:
    """And of several servers of a model the busier one is dearer."""
    scenario = override(busy(), cluster=cluster)
    backend, encoder = SimBackend(scenario), SlotEncoder(scenario, rules, 4)
    backend.reset(1)
    encoder.receive_outcomes(backend.outcomes, backend.draws)
    assert (encoder.sets.tables.slowing > 0).all() and encoder.sets.tables.runs.min() < 0.7
    rng, compared, unequal = np.random.default_rng(0), 0, 0
    while not backend.done:
        view = backend.view()
        seen = encoder.encode(view)
        for slot, call in enumerate(seen.chosen.tolist() if rng.random() < 0.1 else []):
            tables, model = encoder.sets.tables, view.routes["model"]
            expected, work_s = (np.array(by_model)[model] for by_model in plain_prices(encoder, view, call))
            slower = (1 + tables.slowing * (view.routes["running"] + view.routes["waiting"])) ** 2
            least = np.array([slower[model == m].min() for m in model])
            kind = int(view.calls["workflow"][call]) * view.served_by.shape[1] + int(view.calls["node"][call])
            expected = expected + tables.node_s[kind, model] * (slower - least)
            unequal += bool((slower > least).any())
            viable = seen.pairs[slot, :, KEPT] > 0
            assert (np.isfinite(expected) == viable).all()
            price = seen.pairs[slot, viable, PRICE]
            assert 30 * price / (1 - price) == pytest.approx(expected[viable], rel=1e-4)
            assert seen.pairs[slot, viable, BEST] == pytest.approx(expected.min() / expected[viable], rel=1e-4)
            if rules.point_s:
                work = seen.pairs[slot, viable, WORK]
                assert 10 * work / (1 - work) == pytest.approx(work_s[viable], rel=1e-3, abs=1e-4)
            compared += 1
        backend.step(seen.action(int(random_actions(seen.mask[None], rng)[0])))
    assert compared > 20 and (unequal > 10) == (cluster is not None)


def test_a_dear_point_gives_the_sets_of_the_oracle_and_a_free_one_everything() -> None:
    """With an oracle's losses of 0 or 100 points, whose price decides as hard sets do, or not at all."""
    scenario = busy()
    backend = SimBackend(scenario)
    hard, dear, free = (
        SlotSets(backend.compiled, replace(BY_WORK, point_s=price, most_loss=most))
        for price, most in ((0.0, 20.0), (1.0, 20.0), (1e-9, 200.0))
    )
    backend.reset(5)
    for sets in (hard, dear, free):
        sets.receive_outcomes(backend.outcomes, backend.draws)
    queries = np.arange(30)
    assert hard.choices(0, queries).loss_s.shape == (30, 0)
    np.testing.assert_array_equal(dear.choices(0, queries).bits, hard.choices(0, queries).bits)
    everything = free.choices(0, queries)
    assert (everything.bits == everything.bits[0]).all() and not (
        everything.bits == hard.choices(0, queries).bits
    ).all()
    assert np.unique(everything.loss_s) == pytest.approx([0.0, 1e-7])


def test_what_can_be_sent_comes_first_then_what_needs_least() -> None:
    """Eight calls fill the small server; requests that only it may serve wait, and are counted as captive."""
    backend = SimBackend(together(12))
    encoder = SlotEncoder(backend.scenario, Rules("none", window=12, order="work"), 3)
    backend.reset(0)
    for _ in range(8):
        view = backend.view()
        everywhere = encoder.encode(view)
        assert everywhere.chosen.tolist() == [0, 1, 2]  # all need the same: the oldest first
        backend.step(everywhere.action(0))
    small_only, any_model = np.zeros(9, bool), np.ones(9, bool)
    small_only[[0, 1, 2]] = True  # 3 * first + second
    order = encoder.sets._order[0]

    def words(members: np.ndarray) -> Choices:
        packed = np.packbits(members[order], bitorder="little")
        return Choices(np.array([[int(packed[0]) + 256 * int(packed[1])]], np.uint64), np.zeros((1, 0), np.float32))

    view = backend.view()
    queries = view.calls["query"].tolist()
    encoder._choices = {(0, q): words(small_only) for q in range(16)}
    last = queries[-1]
    encoder._choices[0, last] = words(any_model)
    seen = encoder.encode(view)
    assert seen.chosen[0] == queries.index(last)
    captive = sum(q != last for q in queries)
    assert seen.pairs[0, :, CAPTIVE] == pytest.approx([captive / (captive + 8), 0, 0])
    assert seen.pairs[0, :, OPEN].tolist() == [0, 1, 1] and (seen.pairs[1:, :, OPEN] == 0).all()


def test_a_nearly_finished_request_is_shown_before_a_new_one() -> None:
    backend = SimBackend(override(load_scenario("toy"), requests=3, warmup_requests=0, rate_rps=1000.0))
    encoder = SlotEncoder(backend.scenario, Rules("none", wait=True, window=8, order="work"), 4)
    backend.reset(0)
    sent, mixed = 0, 0
    while not backend.done:
        view = backend.view()
        seen = encoder.encode(view)
        done = view.calls["nodes_done"][seen.chosen]
        assert (np.diff(done) <= 0).all()
        mixed += len(np.unique(done)) > 1
        # Keep the youngest request waiting until the oldest has come back for its second call.
        hold = sent > 0 and done.max(initial=0) == 0
        backend.step(seen.action(len(seen.mask) - 1 if hold and seen.mask[-1] else 0))
        sent += 1
    assert mixed > 0


@pytest.mark.parametrize(
    "given", [{"order": "wrok"}, {"order": "work"}, {"window": -1}, {"point_s": 1.0}, {"point_s": -1.0}]
)
def test_impossible_orders_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(
        SpecError,
        match=r"Did you mean 'work'|must not be negative|viable must be router|must be 0 or more",
    ):
        Rules(**given)
