"""Masks narrowed to viable sets: those of Aragog's scheduler, in the vector environment and for a view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toys import together

from aragog_env.backends.sim import SimBackend
from aragog_env.compiled_scenario import compile_scenario
from aragog_env.errors import SpecError
from aragog_env.observation import PairFeature
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from aragog_env.vector_env import StageDispatchVectorEnv
from baselines.features import Choices, PairExtra, Rules, SlotSets, idle_call_s
from baselines.learned import SlotEncoder
from baselines.training_env import TrainingEnv, random_actions
from policies.aragog.policy import AragogPolicy

OPEN, KEPT, WORK, LOAD, PRICE, BEST, CAPTIVE = (len(PairFeature) + extra for extra in PairExtra)

FREE, VIABLE = Rules("none", hold=0.0, wait=True), Rules("oracle", hold=0.0, wait=True)


def mixed(requests: int = 60) -> Scenario:
    """Five workflows of 3 to 5 calls with tools, fan-out and skipped stages, three models, some queueing."""
    return override(load_scenario("default"), requests=requests, warmup_requests=0, rate_rps=20.0, ready_slots=6)


def aragog_mask(policy: AragogPolicy, view: Any, slots: int) -> np.ndarray:
    """Return where Aragog's scheduler may send the first calls, (slots, R)."""
    policy.queue.admit(view, policy._route)
    kinds = policy.queue.kinds(view)
    remaining = policy.queue.remaining(view, kinds)
    result = np.zeros((slots, len(view.routes)), bool)
    for i in range(min(slots, len(view.calls))):
        for r, model in enumerate(view.routes["model"]):
            result[i, r] = view.allowed[i, r] and (remaining[i] & policy.space.masks[kinds[i], model]).any()
    return result


@pytest.mark.parametrize("seed", [3, 4])
def test_masks_are_those_of_aragog_on_whole_episodes(seed: int) -> None:
    """One environment, one backend and one Aragog go through the same episode by random viable actions."""
    scenario = mixed()
    env = TrainingEnv(1, scenario, VIABLE)
    env.reset(seed=seed)
    backend, policy = SimBackend(scenario), AragogPolicy("oracle")
    backend.reset(seed)
    policy.receive_outcomes(backend.outcomes, backend.draws)
    policy.reset(scenario, seed)
    encoder = SlotEncoder(scenario, VIABLE, scenario.observation.ready_slots)
    encoder.receive_outcomes(backend.outcomes, backend.draws)
    rng, decisions, narrowed = np.random.default_rng(seed), 0, 0
    while not backend.done:
        view = backend.view()
        _, routes, pairs, _, mask, *_ = env.arrays
        slots = pairs.shape[1]
        expected = aragog_mask(policy, view, slots)
        assert (mask[0, :-1].reshape(slots, -1) == expected).all()
        assert (pairs[0, :, :, OPEN] == expected).all()
        seen = encoder.encode(view)
        assert seen.pairs.tobytes() == pairs[0].tobytes()
        assert (seen.mask[:-1] == mask[0, :-1]).all()
        assert (seen.routes == routes[0]).all()
        narrowed += int((view.allowed[:slots] & ~expected[: len(view.calls)]).sum())
        action = random_actions(mask, rng)
        backend.step(seen.action(int(action[0])))
        env.step(action)
        decisions += 1
    assert decisions > 200 and narrowed >= 10


def test_an_episode_stays_within_its_viable_sets() -> None:
    """So every answer is as right as the largest configuration's would have been."""
    scenario = mixed(15)
    env = TrainingEnv(3, scenario, VIABLE)
    env.reset(seed=11)
    rng, finished = np.random.default_rng(0), np.zeros(3, bool)
    while not finished.all():
        _, _, terminated, _, _ = env.step(random_actions(env.arrays[4], rng))
        for e in np.flatnonzero(terminated & ~finished):
            tape, requests = env.simulation.tapes[e], env.simulation.progress.request[e]
            assert tape is not None
            for request, workflow, query in zip(requests, tape.workflow, tape.query, strict=True):
                viable = env.compiled.outcomes[workflow].match_largest(tape.draws[workflow])[query]
                assert viable[request["configuration"]]
        finished |= terminated


def test_without_viable_sets_all_candidates_are_open() -> None:
    env, plain = TrainingEnv(2, mixed(10), FREE), StageDispatchVectorEnv(2, mixed(10))
    env.reset(seed=1)
    plain.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = random_actions(env.arrays[4], rng)
        env.step(actions)
        observation = plain.step(actions)[0]
        assert (env.arrays[4] == observation["action_mask"]).all()
        assert (
            env.arrays[2][..., : len(PairFeature)].reshape(observation["pairs"].shape) == observation["pairs"]
        ).all()


def test_share_and_work_by_hand() -> None:
    """Two calls in a row, of 11, 22 or 44 ms by prediction; small/medium, medium/small and large/large are viable."""
    backend = SimBackend(override(load_scenario("toy"), requests=1, warmup_requests=0))
    compiled = backend.compiled
    assert idle_call_s(compiled)[0] == pytest.approx(np.array([[0.011, 0.022, 0.044]] * 2))
    sets = SlotSets(compiled, FREE)
    encoder = SlotEncoder(backend.scenario, FREE, 4)
    viable = np.zeros(9, bool)
    viable[[1, 3, 8]] = True  # 3 * first + second
    order = sets._order[0]
    words = np.packbits(viable[order], bitorder="little")
    choices = Choices(np.array([[int(words[0]) + 256 * int(words[1])]], np.uint64), np.zeros((1, 0), np.float32))
    encoder._choices = {(0, q): choices for q in range(16)}
    backend.reset(0)
    pairs = encoder.encode(backend.view()).pairs
    assert pairs[0, :, OPEN].tolist() == [1, 1, 1] and (pairs[1:] == 0).all()
    assert pairs[0, :, KEPT] == pytest.approx([1 / 3] * 3)
    seconds = pairs[0, :, WORK] * 10 / (1 - pairs[0, :, WORK])
    assert seconds == pytest.approx([0.033, 0.033, 0.088], rel=1e-4)
    backend.step(encoder.encode(backend.view()).action(0))  # the first call to small: medium must follow
    pairs = encoder.encode(backend.view()).pairs
    assert pairs[0, :, OPEN].tolist() == [0, 1, 0] and pairs[0, :, KEPT].tolist() == [0, 1, 0]
    assert pairs[0, 1, WORK] * 10 / (1 - pairs[0, 1, WORK]) == pytest.approx(0.022, rel=1e-4)


def test_a_request_that_left_its_set_may_use_any_candidate() -> None:
    backend = SimBackend(override(load_scenario("toy"), requests=1, warmup_requests=0))
    encoder = SlotEncoder(backend.scenario, FREE, 4)
    encoder._choices = {(0, q): encoder.sets.no_choices(1) for q in range(16)}
    backend.reset(0)
    seen = encoder.encode(backend.view())
    assert seen.mask[:3].tolist() == [1, 1, 1] and seen.pairs[0, :, KEPT].tolist() == [0, 0, 0]


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(SpecError, match=r"viable sets must be .* Did you mean 'oracle'"):
        SlotSets(compile_scenario(load_scenario("toy")), Rules("orcale"))


def test_servers_at_their_saturation_point_get_no_more() -> None:
    """The toy servers run 8 calls at once in the same time as one: they saturate at 8, at half of it with hold=0.5."""
    compiled = compile_scenario(load_scenario("toy"))
    assert SlotSets(compiled, Rules()).tables.most.tolist() == [8, 8, 8]
    assert SlotSets(compiled, Rules(hold=0.5)).tables.most.tolist() == [4, 4, 4]
    backend = SimBackend(together(30))
    backend.reset(0)
    encoder = SlotEncoder(backend.scenario, Rules(hold=0.5), 4)
    for sent in range(12):
        seen = encoder.encode(backend.view())
        full = sent // 4
        assert seen.pairs[0, :, OPEN].tolist() == [float(r >= full) for r in range(3)]
        assert seen.pairs[0, full, LOAD] == pytest.approx((sent % 4) / (sent % 4 + 8))
        assert seen.mask[-1] == 0  # something can be sent
        backend.step(seen.action(full))
    seen = encoder.encode(backend.view())
    assert not seen.mask[:-1].any() and seen.mask[-1] == 1


def test_waiting_is_open_only_where_the_rules_say_so() -> None:
    masks = []
    for wait in (False, True):
        env = TrainingEnv(4, mixed(30), Rules(wait=wait))
        env.reset(seed=2)
        rng, seen = np.random.default_rng(0), []
        for _ in range(120):
            mask = env.arrays[4].copy()
            assert (env.choices == (mask.sum(axis=1) > 1)).all()
            seen.append(mask)
            env.step(random_actions(mask, rng))
        masks.append(np.array(seen))
    assert (masks[0][..., :-1] == masks[1][..., :-1]).all()  # a random dispatch is made wherever there is one
    can_send = masks[0][..., :-1].any(axis=-1)
    assert (masks[0][..., -1] == ~can_send).all() and masks[1][..., -1][can_send].mean() > 0.5


@pytest.mark.parametrize("hold", [-0.1, 1.1])
def test_shares_are_between_none_and_all(hold: float) -> None:
    with pytest.raises(SpecError, match="hold must lie between 0 and 1"):
        Rules(hold=hold)
