from __future__ import annotations

from collections import Counter

import pytest
from toy_outcomes import L, M, S, backend, ready, served, table_with

from aragog_env.registry import make_policy


def test_the_shortest_queue_among_viable_models() -> None:
    """Large is never viable but as fallback; the first three requests alternate between small and medium."""
    viable = {q: [(S, S), (M, S), (S, M), (M, M)] for q in range(16)}
    models, _ = served("viable_shortest_queue:oracle", viable, [0.0] * 4)
    assert [m[0] for m in models] == [S, M, L, S]  # (L, L) always is viable, and its queue is empty
    assert models[2] == (L, L)  # and it leaves nothing but large for the second stage


def test_a_first_choice_narrows_the_second() -> None:
    models, _ = served("viable_shortest_queue:oracle", {q: [(S, M)] for q in range(16)}, [0.0, 100.0, 200.0])
    assert models == [(S, M)] * 3


@pytest.mark.parametrize("name", ["viable_random", "viable_power_of_two"])
def test_random_rules_stay_viable_and_use_everything_that_is(name: str) -> None:
    viable = {q: [(S, M), (M, S)] for q in range(16)}
    models, _ = served(f"{name}:oracle", viable, [50.0 * k for k in range(200)])
    counts = Counter(models)
    assert set(counts) == {(S, M), (M, S), (L, L)}
    assert min(counts.values()) > 30


def test_the_better_of_two_is_taken() -> None:
    sim = backend(1)
    viable = {q: [(S, S), (M, M)] for q in range(16)}
    policy = ready("viable_power_of_two:oracle", sim, table_with(sim, viable), [0.0])
    view = sim.view()
    view.routes["running"] = [5, 1, 7]
    routes = Counter(policy.act(view).route for _ in range(300))  # type: ignore[union-attr]
    # Pairs {S, M}, {S, L}, {M, L}: medium wins two of three, small one, large none.
    assert routes[L] == 0 and routes[M] == pytest.approx(200, abs=35)


@pytest.mark.parametrize("name", ["per_input", "per_input_plus", "viable_random"])
def test_unknown_sources_are_refused(name: str) -> None:
    with pytest.raises(Exception, match="viable sets must be"):
        make_policy(f"{name}:unknown-source")
