"""The search of a round: the paper's examples by hand; compiled, plain and exhaustive search against each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds_by_hand import enumerate_best, make_round

from aragog_env.errors import SpecError
from policies.aragog.beam import beam_search
from policies.aragog.exact import exact_search
from policies.aragog.plain import plain_search
from policies.aragog.round import Assignment, Round, Settings
from scripts.benchmark_beam import beam_round_ms, random_round, roomy_round

Search = Callable[[Round, Settings], Assignment]
SMALL, MEDIUM, LARGE = {(0,)}, {(1,)}, {(2,)}
BOTH = pytest.mark.parametrize("search", [plain_search, beam_search])


@BOTH
@pytest.mark.parametrize(("gain_32b", "expected"), [(32.0, [0, 0, 2]), (22.0, [0, 0, 0])])
def test_figure_9_of_the_paper(search: Search, gain_32b: float, expected: list[int]) -> None:
    """B = 2; R1 {7B}, R2 {7B, 14B}, R3 any; 7B 0 of 16 used, 14B 8 of 8, 32B 0 of 4. R2 cannot go to the full 14B.

    The last two candidates have 90 and 85; which of them sends R3 to 32B cannot be read in the figure: the larger gain wins.
    """
    calls = [(1, 0, SMALL), (2, 0, SMALL | MEDIUM), (3, 0, SMALL | MEDIUM | LARGE)]
    gains = [[30.0, 28.0, 27.0, *[5.0] * 13], [9.0] * 8, [gain_32b, *[3.0] * 3]]
    round_ = make_round(calls, gains, free=[16, 0, 4], occupancy=[0, 8, 0])
    found = search(round_, Settings(2))
    assert found.route.tolist() == expected
    assert found.gain_rps == (90.0 if gain_32b == 32.0 else 85.0)
    # R1 keeps its one configuration, R2 one of two, R3 one of three.
    assert found.flexibility == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


@BOTH
def test_a_joint_choice_leaves_the_only_small_slot_to_the_request_that_needs_it(search: Search) -> None:
    """Challenge C2: R1 {7B, 14B}, R2 {7B, 32B}, one 7B slot: greedy pushes R2 to 32B, a joint choice sends R1 to 14B."""
    round_ = make_round(
        [(1, 0, SMALL | MEDIUM), (2, 0, SMALL | LARGE)], [[10.0], [9.0, 8.0], [3.0, 2.0]], free=[1, 2, 2]
    )
    greedy, joint = search(round_, Settings(1)), search(round_, Settings(2))
    assert (greedy.route.tolist(), greedy.gain_rps) == ([0, 2], 13.0)
    assert (joint.route.tolist(), joint.gain_rps) == ([1, 0], 19.0)
    assert exact_search(round_).route.tolist() == [1, 0]


@BOTH
def test_look_ahead_skips_a_blocked_call_and_without_it_the_round_ends(search: Search) -> None:
    calls = [(1, 0, SMALL), (2, 0, MEDIUM), (3, 0, SMALL)]
    round_ = make_round(calls, [[5.0, 4.0], [3.0]], free=[2, 0])
    assert search(round_, Settings()).route.tolist() == [0, -1, 0]
    assert search(round_, Settings(look_ahead=False)).route.tolist() == [0, -1, -1]


@BOTH
def test_flexibility_decides_ties_and_only_ties(search: Search) -> None:
    """A request of two stages: model 0 keeps one configuration of four, model 1 keeps three."""
    remaining = {(0, 0), (1, 0), (1, 1), (1, 2)}
    tied = make_round([(1, 0, remaining)], [[7.0], [7.0], [1.0]], free=[1, 1, 1], stages=2)
    assert search(tied, Settings()).route.tolist() == [1]
    assert search(tied, Settings(tie_break=False)).route.tolist() == [0]
    assert search(tied, Settings()).flexibility == 3 / 4
    near = tied._replace(gain_rps=np.array([[7.0], [6.95], [1.0]]))
    assert search(near, Settings(tie=0.01)).route.tolist() == [1]
    assert search(near, Settings(tie=0.005)).route.tolist() == [0]


@BOTH
def test_parallel_stages_of_a_request_narrow_each_other(search: Search) -> None:
    """After stage 0 went to model 0 only (0, 2) is left, so stage 1 must go to model 2, although model 1 gains more."""
    remaining = {(0, 2), (1, 1)}
    round_ = make_round([(4, 0, remaining), (4, 1, remaining)], [[9.0], [5.0, 5.0], [1.0]], [1, 2, 1], stages=2)
    greedy = search(round_, Settings(1))
    assert (greedy.route.tolist(), greedy.gain_rps, greedy.flexibility) == ([0, 2], 10.0, 0.5)
    # The same calls as two requests do not.
    apart = round_._replace(request=np.array([4, 5], np.int32))
    assert search(apart, Settings(1)).route.tolist() == [0, 1]
    # Without a slot on model 2 the second stage waits for a later round rather than break the set.
    assert search(round_._replace(free=np.array([1, 2, 0], np.int32)), Settings(1)).route.tolist() == [0, -1]
    assert exact_search(round_._replace(free=np.array([1, 2, 0], np.int32))).route.tolist() == [1, 1]


@BOTH
def test_a_model_with_several_replicas_fills_the_one_that_gains_most(search: Search) -> None:
    round_ = make_round(
        [(i, 0, SMALL) for i in range(4)],
        [[6.0, 5.0, 4.0], [6.0, 2.0, 1.0], [9.0]],
        free=[2, 3, 1],
        models=2,
        route_model=[0, 0, 1],
    )
    # Equal gains: route 1 has more free slots. Then 6 on route 0, 5 on route 0, which is full, 2 on route 1.
    found = search(round_, Settings())
    assert found.route.tolist() == [1, 0, 0, 1]
    assert found.gain_rps == 6 + 6 + 5 + 2
    down = round_._replace(allowed=np.tile([True, False, True], (4, 1)))
    assert search(down, Settings()).route.tolist() == [0, 0, -1, -1]


@BOTH
def test_earlier_calls_get_the_slots(search: Search) -> None:
    """What each call gets does not depend on gains when all want the same slot: the queue's order decides."""
    round_ = make_round([(1, 0, SMALL), (2, 0, SMALL), (3, 0, SMALL)], [[1.0]], free=[1])
    assert search(round_, Settings()).route.tolist() == [0, -1, -1]


@BOTH
def test_nothing_to_do_is_answered_with_nothing(search: Search) -> None:
    full = make_round([(1, 0, SMALL)], [[1.0]], free=[0])
    assert search(full, Settings()).route.tolist() == [-1]
    overfull = full._replace(free=np.array([-3], np.int32))
    assert search(overfull, Settings()).route.tolist() == [-1] and search(overfull, Settings()).gain_rps == 0.0
    none = random_round(np.random.default_rng(0), 0)
    assert search(none, Settings()).route.shape == (0,) and exact_search(none).route.shape == (0,)


def rounds(most_calls: int, most_free: int) -> st.SearchStrategy[Round]:
    """Return random rounds; every fourth has several replicas of some model."""
    return st.builds(
        lambda seed, calls, stages, extra: random_round(
            np.random.default_rng(seed), calls, stages=stages, replicas=3 + extra, most_free=most_free
        ),
        st.integers(0, 2**32),
        st.integers(0, most_calls),
        st.integers(1, 4),
        st.sampled_from([0, 0, 0, 2]),
    )


SETTINGS = st.builds(Settings, st.integers(1, 7), st.sampled_from([0.0, 0.01, 0.3]), st.booleans(), st.booleans())


@settings(max_examples=300, deadline=None)
@given(rounds(most_calls=24, most_free=8), SETTINGS)
def test_the_compiled_search_agrees_with_the_plain_one(round_: Round, chosen: Settings) -> None:
    plain, compiled = plain_search(round_, chosen), beam_search(round_, chosen)
    assert compiled.route.tolist() == plain.route.tolist()
    assert (compiled.gain_rps, compiled.flexibility) == (plain.gain_rps, plain.flexibility)


@settings(max_examples=60, deadline=None)
@given(rounds(most_calls=5, most_free=3))
def test_the_exhaustive_search_finds_what_enumeration_finds(round_: Round) -> None:
    found = exact_search(round_)
    assert found.gain_rps == pytest.approx(enumerate_best(round_), abs=1e-12)
    check(round_, found.route, found.gain_rps)


@settings(max_examples=100, deadline=None)
@given(rounds(most_calls=16, most_free=6))
def test_no_beam_gains_more_than_the_optimum_and_every_assignment_is_possible(round_: Round) -> None:
    best = exact_search(round_).gain_rps
    for width in (1, 4):
        found = beam_search(round_, Settings(width))
        assert found.gain_rps <= best * (1 + 1e-12)
        check(round_, found.route, found.gain_rps)


def check(round_: Round, route: np.ndarray, gain: float) -> None:
    """Assert that an assignment keeps to slots and viable sets, and that its gain is the sum of the steps."""
    placed = np.flatnonzero(route >= 0)
    used = np.bincount(route[placed], minlength=len(round_.free))
    assert (used <= np.maximum(round_.free, 0)).all()
    steps = [round_.gain_rps[r, b : b + used[r]].sum() for r, b in enumerate(round_.occupancy)]
    assert gain == pytest.approx(sum(steps), abs=1e-12)
    left: dict[int, np.ndarray] = {}
    for i in placed:
        request = int(round_.request[i])
        before = left.get(request, round_.remaining[i])
        left[request] = before & round_.masks[round_.kind[i], round_.route_model[route[i]]]
        assert left[request].any() and round_.allowed[i, route[i]]


def test_the_beam_is_deterministic_and_places_all_it_can() -> None:
    round_ = roomy_round(3)
    first, second = beam_search(round_), beam_search(round_)
    assert first.route.tolist() == second.route.tolist() and first[1:] == second[1:]
    # Slots for all: only parallel stages can block each other, and those of a request have one common configuration.
    assert (first.route >= 0).all()


def test_rounds_too_large_to_enumerate_are_refused() -> None:
    round_ = roomy_round(0, calls=400)
    with pytest.raises(SpecError, match="too large for an exhaustive search"):
        exact_search(round_)


def test_the_benchmark_times_something() -> None:
    assert 0 < beam_round_ms(repeats=5) < 1000
