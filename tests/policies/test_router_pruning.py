"""Pruning on small lattices, by hand. With 2 models and 2 stages the configurations are 0 ss, 1 sl, 2 ls, 3 ll."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.outcomes import configuration_digits
from policies.aragog.pruning import NO, YES, ScorePrior, cover_pairs, lattice_order, prune

HALF = ScorePrior.independent(np.full(4, 0.5))


def test_the_order_of_the_lattice_is_stage_wise() -> None:
    digits = configuration_digits(3, 2)
    order = lattice_order(3, 2)
    for a, b in itertools.product(range(9), repeat=2):
        assert order[a, b] == bool((digits[a] <= digits[b]).all())


def test_cover_pairs_differ_by_one_step_of_one_stage() -> None:
    smaller, larger = cover_pairs(3, 3)
    digits = configuration_digits(3, 3)
    step = digits[larger] - digits[smaller]
    assert len(smaller) == 3 * 2 * 9  # stages x steps x the others
    assert (step.sum(axis=1) == 1).all() and (step >= 0).all()


@pytest.mark.parametrize(
    ("scores", "verdict", "step"),
    [
        # Expected decisions at first: ss (3 above + 1 below) / 2 = 2; sl and ls (1 + 2) / 2 = 1.5. So ss is asked first.
        ([1.0, 9, 9, 9], [YES, YES, YES, YES], [1, 1, 1, 0]),  # a clear yes decides everything above it
        ([-1.0, 1, -1, 9], [NO, YES, NO, YES], [1, 2, 3, 0]),  # a clear no of the smallest decides nothing else
        ([0.2, 1, -1, 9], [YES, YES, NO, YES], [1, 2, 3, 0]),  # inside the band: decides itself alone
        ([-0.2, -0.2, 0.2, 9], [NO, NO, YES, YES], [1, 2, 3, 0]),
    ],
)
def test_two_by_two_by_hand(scores: list[float], verdict: list[int], step: list[int]) -> None:
    pruned = prune(lattice_order(2, 2), HALF, np.array([scores], np.float32), 0.5)
    assert pruned.verdict[0].tolist() == verdict
    assert pruned.step[0].tolist() == step
    assert pruned.asked[0] == max(step)


def test_an_expected_no_is_asked_from_above() -> None:
    # Prior of a yes 0.1: ss 0.1 * 3 + 0.9 * 1 = 1.2; sl 0.1 * 1 + 0.9 * 2 = 1.9. A no of sl takes ss with it.
    prior = ScorePrior.independent(np.full(4, 0.1))
    pruned = prune(lattice_order(2, 2), prior, np.array([[9, -1, -1, 9]], np.float32), 0.5)
    assert pruned.verdict[0].tolist() == [NO, NO, NO, YES]
    assert pruned.step[0].tolist() == [1, 1, 2, 0]


def test_three_models_in_two_stages_by_hand() -> None:
    # 0 first (8 above, 1 below: 4.5). After its no: 1 = (s, m) with 5 above and 1 below gives 3, the first of several.
    # Its clear yes takes 2, 4, 5 and 7. Left: 3 = (m, s) and 6 = (l, s), 1.5 each; 3 is inside the band, so 6 is asked too.
    scores = np.full((1, 9), 7.0, np.float32)
    scores[0, [0, 1, 3, 6]] = [-1.0, 1.0, -0.2, 0.1]
    prior = ScorePrior.independent(np.full(9, 0.5))
    pruned = prune(lattice_order(3, 2), prior, scores, 0.5)
    assert pruned.step[0].tolist() == [1, 2, 2, 3, 2, 2, 4, 2, 0]
    assert np.flatnonzero(pruned.verdict[0] == YES).tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert pruned.asked[0] == 4
    # A budget cuts the same order; undecided is not viable, and the largest always stays.
    kept = [np.flatnonzero(pruned.sets(heads)[0]).tolist() for heads in range(5)]
    assert kept == [[8], [8], [1, 2, 4, 5, 7, 8], [1, 2, 4, 5, 7, 8], [1, 2, 4, 5, 6, 7, 8]]


@pytest.mark.parametrize(("models", "stages"), [(2, 3), (3, 3), (4, 2)])
def test_monotone_answers_are_found_without_an_error(models: int, stages: int) -> None:
    rng = np.random.default_rng(0)
    order, digits = lattice_order(models, stages), configuration_digits(models, stages)
    weight = rng.uniform(0.2, 1, (200, stages))
    scores = (weight @ digits.T - rng.uniform(-1, stages * models, (200, 1))).astype(np.float32)
    prior = ScorePrior.of(scores)
    pruned = prune(order, prior, scores, 0.0)
    truth = scores >= 0
    truth[:, -1] = True
    np.testing.assert_array_equal(pruned.sets(), truth)
    assert pruned.asked.mean() < 0.6 * (models**stages - 1)


def test_answers_of_others_save_heads() -> None:
    rng = np.random.default_rng(1)
    order, digits = lattice_order(3, 4), configuration_digits(3, 4)
    scores = (digits.sum(axis=1) - rng.uniform(0, 8, (400, 1))).astype(np.float32)  # one factor: how easy the query is
    fitted, fixed = ScorePrior.of(scores), ScorePrior.independent((scores >= 0).mean(axis=0))
    assert prune(order, fitted, scores, 0.0).asked.mean() < 0.8 * prune(order, fixed, scores, 0.0).asked.mean()


def test_a_wide_band_asks_every_head() -> None:
    scores = np.random.default_rng(2).standard_normal((50, 27)).astype(np.float32)
    pruned = prune(lattice_order(3, 3), ScorePrior.of(scores), scores, 100.0)
    assert (pruned.asked == 26).all()
    np.testing.assert_array_equal(pruned.sets()[:, :-1], scores[:, :-1] >= 0)


def test_thousands_of_configurations() -> None:
    digits = configuration_digits(4, 6)
    rng = np.random.default_rng(3)
    scores = (digits.sum(axis=1) - rng.uniform(0, 18, (4, 1))).astype(np.float32)
    pruned = prune(lattice_order(4, 6), ScorePrior.of(scores), scores, 0.0)
    truth = scores >= 0
    truth[:, -1] = True
    np.testing.assert_array_equal(pruned.sets(), truth)


def test_a_lattice_beyond_memory_is_refused() -> None:
    with pytest.raises(SpecError, match="at most 8,192"):
        lattice_order(3, 10)


def test_the_prior_explains_the_scores_it_was_fitted_to() -> None:
    rng = np.random.default_rng(4)
    scores = (rng.standard_normal((500, 2)) @ rng.standard_normal((2, 9)) + 3).astype(np.float32)
    prior = ScorePrior.of(scores)
    np.testing.assert_allclose(prior.mean, scores.mean(axis=0), atol=1e-5)
    covariance = np.cov(scores.T, bias=True)
    np.testing.assert_allclose(prior.factors @ prior.factors.T, covariance, atol=1e-3)
    np.testing.assert_allclose(prior.shifted(2.0).mean, prior.mean - 2)
