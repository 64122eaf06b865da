"""The router at run time: budgets, costs, checkpoints, caches, and the shipped routers."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from router_tables import QUICK, told_table

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable
from aragog_env.specs.load import load_scenario
from policies.aragog import store
from policies.aragog.checkpoint import Checkpoint
from policies.aragog.cost import RoutingCost
from policies.aragog.report import held_out_report
from policies.aragog.router import Router, RouterViableSets
from policies.aragog.training import labelling_run, scores_of, train_router
from policies.viability import ViableSets, make_viable_sets

ROOT = Path(__file__).resolve().parents[2]
INFO: Any = SimpleNamespace()
COST = RoutingCost(embed_s=0.010, head_s=0.001)


@pytest.fixture(scope="module")
def shipped() -> tuple[OutcomeTable, ...]:
    return compile_scenario(load_scenario("default")).outcomes


@pytest.fixture(scope="module")
def sets(shipped: tuple[OutcomeTable, ...]) -> RouterViableSets:
    made = RouterViableSets(cost=COST)
    made.receive_outcomes(shipped)
    made.reset(load_scenario("default"))
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARAGOG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "routers"


def test_costs_and_budgets() -> None:
    assert COST.seconds(0) == 0.010 and COST.seconds(7) == pytest.approx(0.017)
    assert [COST.heads(b) for b in (0.0, 0.0105, 0.011, 0.017, math.inf)] == [0, 0, 1, 7, None]
    assert RoutingCost(0.0, 0.0).heads(1.0) is None
    with pytest.raises(SpecError, match="number of seconds"):
        COST.heads(math.nan)
    with pytest.raises(SpecError, match="negative"):
        RoutingCost(-1.0)
    assert RoutingCost.of("ngrams:512") == RoutingCost.of("ngrams")


def test_a_budget_cuts_what_is_known(sets: RouterViableSets, shipped: tuple[OutcomeTable, ...]) -> None:
    assert isinstance(sets, ViableSets)
    for query in range(20):
        whole = sets.viable(INFO, 3, query)
        full_s = sets.routing_s(3, query)
        assert whole[-1] and not whole.flags.writeable
        before = np.zeros_like(whole)
        for heads in (0, 1, 2, 4, 8, 500):
            cut = sets.viable(INFO, 3, query, COST.seconds(heads))
            assert cut[-1] and not cut.flags.writeable
            assert not (before & ~cut).any() and not (cut & ~whole).any()
            assert sets.routing_s(3, query) == pytest.approx(min(COST.seconds(heads), full_s))
            before = cut
        np.testing.assert_array_equal(before, whole)
        # Without time for any head: what is certain of every question.
        np.testing.assert_array_equal(sets.viable(INFO, 3, query, 0.0), sets.viable(INFO, 3, query, COST.seconds(0)))
    assert sets.viable(INFO, 3, 0) is not None
    assert sets.viable(INFO, 3, 0).base is sets.viable(INFO, 3, 0).base  # no copy on repetition


def test_what_was_charged_is_forgotten_between_episodes(sets: RouterViableSets) -> None:
    sets.viable(INFO, 0, 0)
    full_s = sets.routing_s(0, 0)
    sets.viable(INFO, 0, 0, 0.0)
    assert sets.routing_s(0, 0) == COST.embed_s
    sets.reset(load_scenario("default"))
    assert sets.routing_s(0, 0) == full_s


def test_walking_equals_pruning_what_all_heads_say(shipped: tuple[OutcomeTable, ...]) -> None:
    table = shipped[2]
    router = Router(store.find_or_train(table))
    vectors = router.embedder.embed(table.query_set)
    pruned = router.route_table(vectors)
    for k, fold in enumerate(router.checkpoint.folds):
        rows = router.checkpoint.fold_of == k
        walked = router.predict_vectors(vectors[rows], fold=fold)
        # Rounding differs between the two; a score within it of zero may turn over.
        assert (walked.viable != pruned.sets()[rows]).mean() < 1e-3
    few = router.predict(table.query_set, range(5))
    assert few.viable.shape == (5, 81) and few.viable[:, -1].all()
    np.testing.assert_allclose(few.seconds, [router.cost.seconds(int(n)) for n in few.heads])
    none = router.predict(table.query_set, range(5), budget_s=0.0)
    assert (none.heads == 0).all() and (none.viable == none.viable[0]).all()
    assert none.viable[:, -1].all() and not (none.viable & ~few.viable).any()


def test_shipped_routers_hold_what_is_promised(shipped: tuple[OutcomeTable, ...]) -> None:
    """On questions that no fold's model has seen: better than a blind prior, a third of the heads, 1% changed."""
    router_kept, blind_kept, asked, every = [], [], [], []
    for table in shipped:
        checkpoint = store.shipped_checkpoint(table)
        assert checkpoint is not None, f"python -m scripts.train_routers: none fits {table.workflow}"
        router = Router(checkpoint)
        vectors = router.embedder.embed(table.query_set)
        pruned = router.route_table(vectors)
        logits = np.empty((table.queries, table.configurations), np.float32)
        for k, fold in enumerate(checkpoint.folds):
            rows = checkpoint.fold_of == k
            logits[rows] = fold.heads.logits(vectors[rows])
        labels = labelling_run(table, checkpoint.manifest["settings"]["seed"])
        scores = scores_of(checkpoint.folds, checkpoint.fold_of, logits)
        report = held_out_report(table, labels, scores, pruned, checkpoint.fold_of)
        asked.append(report.heads_asked)
        every.append(report.heads_every)
        assert report.changed <= 0.01
        assert report.loss < 0.025
        router_kept.append(report.viable_kept)
        blind_kept.append(report.blind)
    assert np.mean(router_kept) > np.mean(blind_kept)
    assert sum(asked) <= sum(every) / 3


def test_the_default_scenario_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from aragog_env.compiled_scenario import compile_scenario\n"
        "from aragog_env.specs.load import load_scenario\n"
        "from policies.viability import make_viable_sets\n"
        "for name in ('default', 'toy'):\n"
        "    compiled = compile_scenario(load_scenario(name))\n"
        "    sets = make_viable_sets('router')\n"
        "    sets.receive_outcomes(compiled.outcomes)\n"
        "    sets.reset(compiled.scenario)\n"
        "    print(sum(int(sets.viable(compiled.info, 0, q).sum()) for q in range(16)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training" not in done.stderr


def test_shipped_checkpoints_are_small() -> None:
    assert sum(path.stat().st_size for path in store.SHIPPED.glob("*.npz")) < 6 * 2**20


def test_a_new_table_is_trained_once_and_kept(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    table = told_table(60)
    first = store.find_or_train(table, QUICK)
    said = capsys.readouterr().err
    assert said.startswith("training a router for 'told'") and said.count("\n") == 1
    second = store.find_or_train(told_table(60), QUICK)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(first.fold_of, second.fold_of)
    store.find_or_train(told_table(60, seed=5), QUICK)  # other content, other file
    assert len(list(cache.glob("*.npz"))) == 2


def test_a_damaged_cache_is_made_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    table = told_table(60)
    store.find_or_train(table, QUICK)
    (path,) = cache.glob("*.npz")
    path.write_bytes(path.read_bytes()[:500])
    store.find_or_train(table, QUICK)
    assert Checkpoint.load(path).manifest["workflow"] == "told"
    assert capsys.readouterr().err.count("training") == 2


def test_two_at_once_train_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    trained: list[str] = []

    def counted(table: OutcomeTable, settings: Any) -> Checkpoint:
        trained.append(table.workflow)
        return train_router(table, settings)

    monkeypatch.setattr(store, "train_router", counted)
    table = told_table(60)
    threads = [threading.Thread(target=store.find_or_train, args=(table, QUICK)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trained == ["told"]


def test_without_torch_the_message_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SpecError, match="viable=oracle"):
        store.find_or_train(told_table(60), QUICK)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARAGOG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / "aragog" / "routers"
    monkeypatch.setenv("ARAGOG_CACHE", str(tmp_path / "own"))
    assert store.cache_folder() == tmp_path / "own" / "routers"


def test_sets_from_a_folder_and_from_a_file(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    table = told_table(60)
    train_router(table, QUICK).save(tmp_path / store.file_name(table))
    for place in (tmp_path, tmp_path / store.file_name(table)):
        made = make_viable_sets(str(place))
        made.receive_outcomes((table,))
        assert made.viable(INFO, 0, 3)[-1]
        with pytest.raises(SpecError, match="trained on another outcome table"):
            make_viable_sets(str(place)).receive_outcomes((told_table(60, seed=9),))
        with pytest.raises(SpecError, match="no router of 'told' for the models"):
            make_viable_sets(str(place)).receive_outcomes((told_table(60, models=3),))
