"""Training on tables that a router can learn, on some that it cannot, and what a checkpoint keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from router_tables import QUICK, told_table

from aragog_env.errors import SpecError
from policies.aragog.calibration import Calibration
from policies.aragog.checkpoint import Checkpoint
from policies.aragog.embedders import make_embedder
from policies.aragog.report import RouterReport, markdown
from policies.aragog.router import Router
from policies.aragog.selection import NEVER, SetLoss, blind_sets, choose_threshold, relative_cost, with_largest
from policies.aragog.training import TrainSettings, train_router

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def learned() -> Checkpoint:
    return train_router(told_table(), TrainSettings(folds=3))


def report_of(checkpoint: Checkpoint) -> RouterReport:
    return RouterReport(**checkpoint.manifest["report"])


def test_a_router_learns_what_the_embedding_tells(learned: Checkpoint) -> None:
    report = report_of(learned)
    assert report.precision > 0.9 and report.recall > 0.6
    assert report.loss < 0.03
    assert report.viable_kept > 1.1 * report.blind
    assert report.viable_kept <= report.viable
    assert report.heads_asked < report.heads_every
    assert report.changed < 0.01


def test_a_router_with_nothing_to_go_by_stays_close_to_the_prior() -> None:
    table = told_table()
    blind = dataclasses.replace(table, query_features=np.zeros_like(table.query_features))
    report = report_of(train_router(blind, TrainSettings(folds=3)))
    # Lengths are noise: whatever is kept is no better than what the marginals allow.
    assert report.recall < 0.3
    assert report.loss < 0.05


def test_texts_do_as_well_as_features() -> None:
    report = report_of(train_router(told_table(texts=True), TrainSettings(folds=3)))
    assert report.precision > 0.85 and report.recall > 0.3


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    table = told_table(60)
    for name in ("a", "b"):
        train_router(table, QUICK).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    train_router(table, dataclasses.replace(QUICK, seed=1)).save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_no_question_is_answered_by_a_model_that_has_seen_it() -> None:
    """Turning the labels of one fold round must not move that fold's own model, and must move the others'."""
    table = told_table(60)
    before = train_router(table, QUICK)
    mine = before.fold_of == 0
    changed = table.p_correct.copy()
    changed[mine, :-1] = 1 - changed[mine, :-1]
    after = train_router(dataclasses.replace(table, p_correct=changed), QUICK)
    np.testing.assert_array_equal(before.fold_of, after.fold_of)
    for same, k in ((True, 0), (False, 1)):
        a, b = before.folds[k].heads.weights[0], after.folds[k].heads.weights[0]
        assert np.array_equal(a, b) == same


def test_a_checkpoint_comes_back_as_it_was(learned: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "router.npz"
    learned.save(path)
    again = Checkpoint.load(path)
    vectors = make_embedder("features").embed(told_table().query_set)
    one, two = Router(learned), Router(again)
    np.testing.assert_array_equal(one.route_table(vectors).step, two.route_table(vectors).step)
    assert again.manifest == json.loads(json.dumps(learned.manifest))
    assert not list(path.parent.glob(".*"))


def test_a_checkpoint_knows_its_table(learned: Checkpoint) -> None:
    table = told_table()
    vectors = make_embedder("features").embed(table.query_set)
    assert learned.matches(table, vectors)
    rounded = dataclasses.replace(table, p_correct=np.clip(table.p_correct + np.float32(1e-6), 0, 1))
    assert learned.matches(rounded, vectors)  # the last digit may differ between processors
    other = told_table(seed=1)
    assert not learned.matches(other, make_embedder("features").embed(other.query_set))
    assert not learned.matches(dataclasses.replace(table, models=("small", "large")), vectors)
    assert not learned.matches(told_table(299), vectors[:299])


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_damaged_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(SpecError, match="not a complete checkpoint"):
        Checkpoint.load(tmp_path / "x.npz")
    with pytest.raises(SpecError, match="no such checkpoint"):
        Checkpoint.load(tmp_path / "y.npz")


def test_another_npz_is_no_checkpoint(tmp_path: Path) -> None:
    told_table(20).save(tmp_path / "table.npz")
    with pytest.raises(SpecError, match="not a complete checkpoint"):
        Checkpoint.load(tmp_path / "table.npz")


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(SpecError, match="8 questions or more"):
        train_router(told_table(4), QUICK)
    with pytest.raises(SpecError, match="at least 2 folds"):
        train_router(told_table(20), TrainSettings(folds=1))


def loss_by_hand() -> SetLoss:
    # Two queries, three configurations; the largest is the last.
    return SetLoss(np.array([[0.4, 0.1, 0.0], [0.0, 0.2, 0.0]]), np.array([1.0, 2.0, 4.0]), models=3)


def test_losses_by_hand() -> None:
    loss = loss_by_hand()
    sets = np.array([[True, True, True], [False, True, True]])
    assert loss.any_member(sets) == pytest.approx(((0.4 + 0.1 + 0) / 3 + (0.2 + 0) / 2) / 2)
    assert loss.cheapest(sets) == pytest.approx((0.4 + 0.2) / 2)
    assert loss.late_binding(sets) == pytest.approx([0.5 / 3, 0.2 / 2])  # with one stage
    assert loss.smallest_first(sets) == pytest.approx([0.4, 0.2])
    assert loss(sets) == pytest.approx(0.3)  # the worse of both ways
    assert loss.upper(sets) == pytest.approx(0.3 + 0.1 / np.sqrt(2))  # 0.4 and 0.2: standard deviation 0.1
    assert loss(with_largest(np.zeros((2, 3), np.bool_))) == 0.0


def test_late_binding_by_hand() -> None:
    """Two stages of two models: the first choice falls between models, not between members of the set."""
    gap = np.array([[0.6, 0.3, 0.2, 0.0]])
    loss = SetLoss(gap, np.arange(4.0), models=2)
    # Small first: 0.6 or 0.3; large first: only large again.
    sets = np.array([[True, True, False, True]])
    assert loss.late_binding(sets) == pytest.approx([((0.6 + 0.3) / 2 + 0.0) / 2])
    assert loss.smallest_first(sets) == pytest.approx([0.6])
    assert loss.smallest_first(np.array([[False, False, True, True]])) == pytest.approx([0.2])
    assert loss.any_member(sets) == pytest.approx(0.9 / 3)


def test_the_threshold_stops_at_the_first_excess() -> None:
    scores = np.array([[0.0, 2.0, 9.0], [3.0, 1.0, 9.0]], np.float32)
    loss = loss_by_hand()

    def upper(sets: list[list[bool]]) -> float:
        return loss.upper(np.array(sets))

    # 3.0 keeps (1, 0), which loses nothing; 2.0 adds (0, 1); 1.0 adds (1, 1), which costs no more; 0.0 adds (0, 0).
    steps = [
        upper([[False, False, True], [True, False, True]]),
        upper([[False, True, True], [True, False, True]]),
        upper([[False, True, True], [True, True, True]]),
        upper([[True, True, True], [True, True, True]]),
    ]
    assert steps == sorted(steps)
    for most, lowest in ((0.01, 3.0), (steps[2], 1.0), (1.0, 0.0)):
        assert choose_threshold(scores, loss, most + 1e-9, steps=4) == pytest.approx(lowest)
    assert choose_threshold(scores, loss, -1.0) == NEVER


def test_the_blind_prior_takes_the_largest_sets_allowed() -> None:
    # Two folds that are alike: configurations lose 0.2, 0.15 and 0 on average, in either.
    gap = np.array([[0.4, 0.1, 0.0], [0.0, 0.2, 0.0]] * 2)
    loss, fold_of = SetLoss(gap, np.arange(3.0), models=3), np.array([0, 0, 1, 1], np.int16)
    kept = [blind_sets(gap, fold_of, loss, most) for most in (0.0, 0.16, 0.21)]
    assert all((sets == sets[0]).all() for sets in kept)
    # Smallest first, {1, 2} loses (0.1 + 0.2) / 2 = 0.15; {0, 1, 2} (0.4 + 0.0) / 2 = 0.2.
    rows: list[Any] = [sets[0].tolist() for sets in kept]
    assert rows == [[False, False, True], [False, True, True], [True, True, True]]


def test_calibration_maps_log_odds_to_expected_loss() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(2.0, 1.0, (5000, 3)).astype(np.float32)
    noise = 0.1 * rng.standard_normal((5000, 3))
    # The first head tells the loss, the second nothing, the third points the wrong way.
    gap = np.array([0.1, 0.2, 0.3]) + np.array([-0.02, 0.0, 0.02]) * (logits - 2.0) + noise
    calibration = Calibration.fit(logits, gap)
    assert calibration.slope == pytest.approx([2.0, 0.0, 0.0], abs=0.2)
    assert calibration.of(np.full((1, 3), 2.0, np.float32))[0] == pytest.approx([-10, -20, -30], abs=0.5)


def test_calibrated_heads_say_the_score(learned: Checkpoint) -> None:
    heads = learned.folds[0].heads
    vectors = np.random.default_rng(0).standard_normal((5, len(heads.mean))).astype(np.float32)
    count = heads.count
    line = Calibration(np.linspace(-3, 3, count, dtype=np.float32), np.linspace(0, 2, count, dtype=np.float32))
    np.testing.assert_allclose(line.into(heads).logits(vectors), line.of(heads.logits(vectors)), atol=1e-4)


def test_the_cost_grows_with_every_stage() -> None:
    cost = relative_cost(told_table(10, models=3, stages=2))
    assert cost.tolist() == [20, 30, 50, 30, 40, 60, 50, 60, 80]


def test_the_markdown_has_a_line_per_router(learned: Checkpoint) -> None:
    lines = markdown([report_of(learned)]).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| told | 300 |")
    assert len({line.count("|") for line in lines}) == 1
