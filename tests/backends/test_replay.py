"""Replays: recorded decisions give the recorded run, other policies meet the recorded traffic, and bad input is refused."""

from __future__ import annotations

import math
import random
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from aragog_env import make_policy
from aragog_env.backends.replay import ReplayBackend, replay_scenario
from aragog_env.backends.replay_policy import RecordedPolicy
from aragog_env.backends.replay_turns import Facts, Known
from aragog_env.backends.shared_host import SharedHostBackend
from aragog_env.backends.sim import SimBackend
from aragog_env.episode import EpisodeLog
from aragog_env.errors import PolicyError, SpecError
from aragog_env.harness.episodes import differences
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import Dispatch, Wait
from aragog_env.recording import Recording
from aragog_env.specs.cluster import SharingSpec
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView
from tests.recording.simulated import record

from .scenarios import LARGE, SMALL, llm, random_scenarios, replica, scenario, tool, workflow
from .test_parity import CHOOSERS, anywhere
from .test_shared_host import surrounded

Choose = Callable[[DispatchView, random.Random], Dispatch | Wait]


class Chooser:
    """A policy that chooses at random; where waiting would never end, it dispatches."""

    def __init__(self, choose: Choose, backend: SharedHostBackend) -> None:
        self._choose, self._backend = choose, backend

    def reset(self, scenario: Scenario, seed: int) -> None:
        self._rng = random.Random(seed)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        action = self._choose(view, self._rng)
        backend = self._backend
        idle = not backend._events and not any(server.has_work for server in backend._servers)
        if isinstance(action, Wait) and action.until_s == math.inf and idle:
            return anywhere(view, self._rng)
        return action


def recorded(made: Scenario, choose: Choose, seed: int, path: Path) -> EpisodeLog:
    """Record a run of a random policy and return its log."""
    backend = SharedHostBackend(made)
    record(backend, Chooser(choose, backend), "random", seed, path, ending=None)
    connection = sqlite3.connect(path, isolation_level=None)
    ending = "horizon" if backend.truncated else "drained"
    connection.execute("UPDATE sessions SET ended_s = ?, ending = ?", (backend.now_s, ending))
    connection.close()
    return backend.log()


def again(made: Scenario, path: Path, seed: int) -> EpisodeLog:
    """Replay the recorded decisions."""
    return run_episode(RecordedPolicy(), "", ReplayBackend(made, [path]), seed)


def assert_equal(log: EpisodeLog, replayed: EpisodeLog) -> None:
    """Assert that nothing differs but what is known of answers, and notes."""
    found = [d for d in differences(log, replayed) if d.split(":")[0] not in ("seed", "notes")]
    assert [d for d in found if not d.startswith(("requests.p_", "policy"))] == []


@settings(
    max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck)
)
@given(
    random_scenarios(),
    st.sampled_from(sorted(CHOOSERS)),
    st.integers(0, 99),
    st.sampled_from((0.0, 0.7)),
    st.sampled_from(((0.0, 0.0), (0.3, 0.0), (1.1, 0.2))),
    st.sampled_from((None, SharingSpec((1.0, 1.3, 1.9)))),
)
def test_recorded_decisions_give_the_recorded_run(
    made: Scenario,
    chooser: str,
    seed: int,
    decision_ms: float,
    overheads: tuple[float, float],
    sharing: SharingSpec | None,
) -> None:
    made = surrounded(made, submit_ms=overheads[0], close_ms=overheads[1], decision_ms=decision_ms, sharing=sharing)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.db"
        log = recorded(made, CHOOSERS[chooser], seed, path)  # type: ignore[arg-type]
        assume(np.isfinite(log.calls["finish_s"]).any())
        replayed = again(made, path, seed)
    assert_equal(log, replayed)
    notes = replayed.notes["replay"]
    assert isinstance(notes, dict)
    if not log.truncated:
        assert notes["calls"] == notes["recorded"] == len(log.calls)


WORK = workflow(
    llm("plan", tokens=12),
    llm("solve", "plan", tokens=20),
    tool("look", "solve"),
    llm("check", "look", tokens=8, context=("plan", "look")),
    queries=20,
)


def world(**changes: object) -> Scenario:
    """Two models, one of them twice; easily told apart by what they write."""
    made = scenario(WORK, [replica("s", SMALL), replica("l", LARGE, count=2)], requests=15)
    return override(made, rate_rps=8.0, **changes)  # type: ignore[arg-type]


def write(made: Scenario, policy: str, path: Path, seed: int = 0) -> Path:
    record(SharedHostBackend(made), make_policy(policy), policy, seed, path)
    return path


def test_another_policy_meets_the_recorded_traffic(tmp_path: Path) -> None:
    made = world()
    path = write(made, "fixed:smallest", tmp_path / "small.db")
    backend = ReplayBackend(replay_scenario([path]), [path])
    truth = run_episode(make_policy("fixed:largest"), "", SimBackend(made), 0)
    log = run_episode(make_policy("fixed:largest"), "", backend, 0)
    for name in ("arrival_s", "query", "workflow"):
        assert (log.requests[name] == truth.requests[name]).all()
    # Nothing of the large model was recorded: the table, which is where the recording came from, says the same.
    assert_equal(truth, log)
    assert log.notes["replay"]["calls"] == log.notes["replay"]["never_recorded"] == 45  # type: ignore[index]


def test_recordings_know_together_what_each_does_not(tmp_path: Path) -> None:
    made = world()
    paths = [write(made, f"fixed:{size}", tmp_path / f"{size}.db") for size in ("smallest", "largest")]

    def counts(paths: list[Path], policy: str) -> dict[str, int]:
        log = run_episode(make_policy(policy), "", ReplayBackend(replay_scenario(paths), paths), 0)
        notes = log.notes["replay"]
        assert isinstance(notes, dict)
        return notes

    assert counts(paths, "fixed:largest")["recorded"] == counts(paths, "fixed:smallest")["recorded"] == 45
    mixed = "fixed:made_up=toy-small/toy-large/toy-small"
    found = counts(paths, mixed)
    # The plan is as recorded; what comes after it was recorded after another model.
    assert (found["recorded"], found["other_context"], found["never_recorded"]) == (15, 30, 0)
    found = counts(paths[:1], mixed)
    assert (found["recorded"], found["other_context"], found["never_recorded"]) == (15, 15, 15)


def test_facts_beat_the_table(tmp_path: Path) -> None:
    """A recording that says otherwise than the table is believed: lengths, prompts, tools, answers."""
    made = world()
    path = write(made, "fixed:largest", tmp_path / "r.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE calls SET output_tokens = 7, prompt_tokens = 5 WHERE node = 3")
    connection.execute("UPDATE tools SET finish_s = start_s + 0.5")
    connection.execute("UPDATE requests SET correct = request % 2")
    connection.close()
    log = again(made, path, 0)
    last = log.calls[log.calls["node"] == 3]
    assert (last["output_tokens"] == 7).all() and (last["prompt_tokens"] == 5).all()
    solved = log.calls[log.calls["node"] == 1]
    waited = {int(r): t for r, t in zip(last["request"], last["ready_s"], strict=True)}
    assert all(waited[int(c["request"])] - c["finish_s"] == pytest.approx(0.5) for c in solved)
    assert log.requests["correct"].tolist() == log.requests["p_correct"].tolist() == [i % 2 for i in range(15)]


def test_prompts_grow_with_what_other_models_write(tmp_path: Path) -> None:
    made = world()
    path = write(made, "fixed:smallest", tmp_path / "r.db")
    truth = run_episode(make_policy("fixed:largest"), "", SimBackend(made), 0)
    log = run_episode(make_policy("fixed:largest"), "", ReplayBackend(made, [path]), 0)
    assert log.calls["prompt_tokens"].tolist() == truth.calls["prompt_tokens"].tolist()
    # A stage whose prompt is shorter than what it is said to read takes only parts of it: it stays as it was.
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE calls SET prompt_tokens = 3 WHERE node = 1")
    connection.close()
    log = run_episode(make_policy("fixed:largest"), "", ReplayBackend(made, [path]), 0)
    assert set(log.calls["prompt_tokens"][log.calls["node"] == 1].tolist()) == {3}


def test_another_cluster(tmp_path: Path) -> None:
    """What if there were one large server less, or servers were slower?"""
    made = world()
    path = write(made, "least_loaded", tmp_path / "r.db")
    cluster = made.cluster
    smaller = replace(cluster, replicas=(cluster.replicas[0], replace(cluster.replicas[1], count=1)))
    log = run_episode(make_policy("least_loaded"), "", ReplayBackend(replay_scenario([path], smaller), [path]), 0)
    assert set(log.calls["route"].tolist()) == {0, 1} and np.isfinite(log.requests["finish_s"]).all()
    with pytest.raises(PolicyError, match="cannot be carried out on this cluster"):
        again(replay_scenario([path], smaller), path, 0)


def test_recorded_decisions_hold_on_a_slower_cluster(tmp_path: Path) -> None:
    """Times differ, so the order of events does: every call still goes where it went, and nothing is lost."""
    made = world()
    path = tmp_path / "r.db"
    log = recorded(made, CHOOSERS["hesitant"], 1, path)  # type: ignore[arg-type]
    slow = replace(made.cluster, replicas=tuple(replace(r, latency_scale=1.7) for r in made.cluster.replicas))
    replayed = again(replay_scenario([path], slow), path, 1)

    def routes(log: EpisodeLog) -> dict[tuple[int, int], int]:
        return {(int(c["request"]), int(c["node"])): int(c["route"]) for c in log.calls}

    assert routes(log) == routes(replayed) and np.isfinite(replayed.requests["finish_s"]).all()
    assert replayed.duration_s > log.duration_s


def test_determinism(tmp_path: Path) -> None:
    path = write(surrounded(world(), decision_ms=0.5, sharing=SharingSpec((1.0, 1.4))), "random", tmp_path / "r.db")
    logs = [run_episode(make_policy("random"), "", ReplayBackend(replay_scenario([path]), [path]), 0) for _ in "ab"]
    assert differences(*logs) == []


def test_the_outcome_table_may_have_changed_since(tmp_path: Path) -> None:
    """A measured table has come, with other questions in another order: they are known by their names."""
    made = world()
    path = write(made, "fixed:smallest", tmp_path / "r.db")
    table = SimBackend(made).outcomes[0]
    order = np.arange(table.queries)[::-1]
    arrays = ("p_correct", "output_tokens", "own_prompt_tokens", "skipped", "tool_s", "query_tokens", "query_features")
    turned = replace(
        table, kind="measured", query_ids=tuple(f"q{i}" for i in order), query_texts=tuple(f"text {i}" for i in order),
        **{name: getattr(table, name)[order] for name in arrays},
    )  # fmt: skip
    turned.save(tmp_path / "measured.npz")
    later = override(made, outcomes=[tmp_path / "measured.npz"])
    before = again(made, path, 0)
    backend = ReplayBackend(later, [path])
    log = run_episode(RecordedPolicy(), "", backend, 0)
    assert (log.calls == before.calls).all()
    with Recording(path) as recording:
        asked = [row["query_id"] for row in recording.rows("requests")]
    assert [turned.query_ids[q] for q in log.requests["query"]] == asked
    backend.reset(0)
    view = backend.view()
    assert view.info.queries[0].texts[view.calls["query"][0]] == asked[view.calls["request"][0]].replace("q", "text ")
    # With fewer questions only the recorded decisions can be replayed.
    few = replace(
        turned, query_ids=turned.query_ids[:2], query_texts=turned.query_texts[:2],
        **{name: getattr(turned, name)[:2] for name in arrays},
    )  # fmt: skip
    few.save(tmp_path / "few.npz")
    fewer = override(made, outcomes=[tmp_path / "few.npz"])
    assert (again(fewer, path, 0).calls == log.calls).all()
    with pytest.raises(PolicyError, match="was recorded, but is not among those of 'made_up' any more"):
        run_episode(make_policy("earliest_finish"), "", ReplayBackend(fewer, [path]), 0)


def test_recorded_decisions_need_a_replay() -> None:
    with pytest.raises(PolicyError, match="only with --backend replay"):
        run_episode(RecordedPolicy(), "recorded", SimBackend(load_scenario("toy")), 0)


def test_bad_input(tmp_path: Path) -> None:
    made = world()
    path = write(made, "least_loaded", tmp_path / "r.db")
    with pytest.raises(SpecError, match="at least one recording"):
        replay_scenario([])
    (tmp_path / "text.db").write_text("no recording" * 1000)
    with pytest.raises(SpecError, match="not a recording"):
        replay_scenario([tmp_path / "text.db"])
    other = write(override(made, rate_rps=9.0), "least_loaded", tmp_path / "other.db")
    with pytest.raises(SpecError, match="of another scenario"):
        replay_scenario([path, other])
    with pytest.raises(SpecError, match="of another scenario than"):
        ReplayBackend(made, [other])
    backend = ReplayBackend(made, [path])
    assert backend.seeds == (0,)
    with pytest.raises(SpecError, match="no recording is of seed 5; there are recordings of 0"):
        backend.reset(5)
    shifted = write(made, "least_loaded", tmp_path / "shifted.db")
    connection = sqlite3.connect(shifted, isolation_level=None)
    connection.execute("UPDATE requests SET arrival_s = arrival_s + 1")
    connection.close()
    with pytest.raises(SpecError, match=r"same seed \(0\) but other traffic"):
        ReplayBackend(made, [path, shifted])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE sessions SET ending = NULL", "not finished .its process was killed"),
        ("UPDATE sessions SET ending = 'interrupted'", "not finished .it ended with 'interrupted'.; resume it"),
        ("UPDATE sessions SET ending = 'profile'", "of a profile"),
        ("DELETE FROM sessions", "is empty: no run was begun"),
        ("DELETE FROM calls", "is empty: no call was finished"),
        ("""UPDATE run SET nodes = '[["a"]]'""", "had other stages when this was recorded"),
        ("""UPDATE run SET workflows = '["else"]'""", "it records the workflow 'else'"),
    ],
)
def test_recordings_that_cannot_be_replayed(tmp_path: Path, change: str, message: str) -> None:
    path = write(world(), "fixed:smallest", tmp_path / "r.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(change)
    connection.close()
    with pytest.raises(SpecError, match=message):
        ReplayBackend(replay_scenario([path]), [path])


def test_the_nearest_context_answers() -> None:
    facts: Facts[str] = Facts()
    facts.add("q", ("a", "a", "b"), "first")
    facts.add("q", ("a", "b", "b"), "second")
    facts.add("q", ("a", "b", "b"), "too late")
    assert facts.get(["mine", "q"], ("a", "b", "b")) == ("second", Known.RECORDED)
    assert facts.get(["mine", "q"], ("c", "b", "b")) == ("second", Known.OTHER_CONTEXT)
    assert facts.get(["q"], ("c", "c", "b")) == ("first", Known.OTHER_CONTEXT)
    assert facts.get(["mine"], ("a", "b", "b")) == (None, Known.NEVER)
    facts.add("mine", ("a", "b", "b"), "own")
    assert facts.get(["mine", "q"], ("a", "b", "b")) == ("own", Known.RECORDED)
