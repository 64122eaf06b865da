"""Throughput-load profiles: against a closed form, against a closed loop of clients, and as files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aragog_env.cli import main
from aragog_env.compiled_scenario import CompiledScenario, compile_scenario
from aragog_env.engine.config import EngineRequest
from aragog_env.engine.open_loop import run_compiled
from aragog_env.errors import SpecError
from aragog_env.harness import profile as profiles
from aragog_env.harness.profile import (
    Profile,
    ReplicaProfile,
    _non_increasing,
    closed_loop_rps,
    draw_calls,
    profile_scenario,
)
from aragog_env.specs.cluster import ClusterSpec, ReplicaSpec
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from policies.aragog.curves import curves_for


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep profiles in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profiles._remembered.cache_clear()
    return tmp_path / "aragog-gym" / "profiles"


def small(**changes: Any) -> Scenario:
    """Return the default mix on two engines with few sequences; two of the three replicas are of one kind."""
    replica = ReplicaSpec("a", "qwen2.5-7b", "h100_sxm", max_num_seqs=24, **changes)
    other = replace(replica, name="b", count=2, max_num_seqs=8)
    return Scenario("small", ClusterSpec("small", (replica, other)), load_scenario("default").workload)


def curve(loads: list[int], rates: list[float]) -> ReplicaProfile:
    return ReplicaProfile(("x",), "m", "g", 1, loads[-1], tuple(loads), tuple(rates), 100.0, 10.0)


def test_toy_engines_have_straight_curves() -> None:
    """An iteration takes 1, 2 and 4 ms whatever the batch, a call 10 of them: b calls give b x 100, 50 and 25 per second."""
    profile = profile_scenario(load_scenario("toy"))
    for entry, alone_rps in zip(profile.replicas, (100.0, 50.0, 25.0), strict=True):
        assert entry.loads == (1, 2, 4, 8)
        assert entry.throughput_rps == pytest.approx([b * alone_rps for b in entry.loads])
        assert entry.curve_rps() == pytest.approx([b * alone_rps for b in range(9)])
        # 95% of the maximum is 7.6 calls' worth: the eighth slot is needed; 70% is reached by six.
        assert (entry.saturation(), entry.saturation(0.7)) == (8, 6)
        assert (entry.prompt_tokens, entry.output_tokens) == (200.0, 10.0)  # 100 + 100; 90 + 100 + the draft


def test_saturation_is_where_the_smoothed_curve_reaches_its_share() -> None:
    entry = curve([1, 2, 4, 8, 16], [10.0, 18.0, 30.0, 38.0, 37.0])
    # Slopes 10 8 6 2 -1/8: the last is cut to nothing. 95% of 38 is 36.1, which 4 + 6.1 / 2 calls give.
    assert entry.curve_rps()[[0, 1, 2, 4, 8, 16]].tolist() == [0.0, 10.0, 18.0, 30.0, 38.0, 38.0]
    assert entry.saturation() == 8 and entry.saturation(0.9) == 7 and entry.saturation(0.1) == 1
    # A bump is levelled: slopes 4 and 6 of equal width become 5 and 5.
    assert curve([1, 2, 3], [5.0, 9.0, 15.0]).curve_rps().tolist() == [0.0, 5.0, 10.0, 15.0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 9)), min_size=1, max_size=12), st.integers(0, 2**31))
def test_smoothing_gives_the_nearest_non_increasing_sequence(pairs: list[tuple[float, float]], seed: int) -> None:
    values, weights = (np.array(x) for x in zip(*pairs, strict=True))
    fitted = _non_increasing(values, weights)
    assert len(fitted) == len(values) and (np.diff(fitted) <= 1e-12).all()

    def distance(candidate: np.ndarray) -> float:
        return float((weights * (candidate - values) ** 2).sum())

    rng = np.random.default_rng(seed)
    for _ in range(20):
        other = -np.sort(-(fitted + rng.normal(0, 0.5, len(values))))
        assert distance(fitted) <= distance(other) + 1e-9


def test_equal_replicas_are_measured_once_and_every_curve_rises() -> None:
    profile = profile_scenario(small())
    assert [p.names for p in profile.replicas] == [("a",), ("b-0", "b-1")]
    wide, narrow = profile.replicas
    assert (wide.loads[-1], narrow.loads[-1]) == (24, 8)
    assert np.diff([0, *wide.throughput_rps]).min() > 0
    assert wide.throughput_rps[:4] == pytest.approx(narrow.throughput_rps[:4])
    assert 100 < wide.output_tokens < 400 and 300 < wide.prompt_tokens < 900


@pytest.mark.parametrize("load", [1, 8, 24])
def test_a_backlog_behaves_like_clients_who_send_one_call_after_another(load: int) -> None:
    """The same calls from `load` clients, each sending its next call when the last is done, serve as many per second."""
    compiled = compile_scenario(small(enable_prefix_caching=False))
    calls = draw_calls(compiled, 0, 600)
    n = 600
    requests = [
        EngineRequest(
            i,
            0,
            ((2 * i, int(calls.prompt[i])),),
            int(calls.output[i]),
            2 * i + 1,
            after=i - load if i >= load else None,
        )
        for i in range(n)
    ]
    config = compiled.engines[0]
    latency = compiled.latencies[0].compile(config.max_num_seqs, config.max_num_batched_tokens)
    finish_s = np.sort([call.finish_ps for call in run_compiled(config, latency, requests).calls]) / 1e12
    # Until the first client has no calls left; then fewer than `load` are served.
    first, last = load, n - 12 * load
    rate = (last - first) / (finish_s[last] - finish_s[first])
    assert closed_loop_rps(compiled, 0, calls, load) == pytest.approx(rate, rel=0.06)


def test_calls_are_those_of_the_workflows() -> None:
    """Voting: four votes and one aggregate per request; the aggregate's prompt holds the votes' outputs."""
    compiled: CompiledScenario = compile_scenario(override(load_scenario("default"), workflow="voting_mmlu_pro"))
    calls = draw_calls(compiled, 1, 5000)
    votes, aggregates = (calls.template == t for t in np.unique(calls.template))
    assert votes.mean() == pytest.approx(0.8, abs=0.02) and aggregates.mean() == pytest.approx(0.2, abs=0.02)
    table = compiled.outcomes[0]
    assert calls.output[votes].mean() == pytest.approx(table.output_tokens[:, 0, 1].mean(), rel=0.05)
    written = table.output_tokens[:, :4, 1].sum(axis=1)
    expected = (table.own_prompt_tokens[:, 4] + written).mean()
    assert calls.prompt[aggregates].mean() == pytest.approx(expected, rel=0.05)
    again = draw_calls(compiled, 1, 5000)
    assert again.prompt.tobytes() == calls.prompt.tobytes()


def test_a_profile_is_kept_and_does_not_depend_on_the_arrivals(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = load_scenario("toy")
    first = profile_scenario(toy)
    assert len(list(cache.glob("*.json"))) == 1
    profiles._remembered.cache_clear()
    monkeypatch.setattr(profiles, "_measure", None)  # measuring again would fail
    assert profile_scenario(override(toy, rate_rps=77.0, requests=9)) == first
    with pytest.raises(TypeError):
        profile_scenario(override(toy, workflow="toy_single"))


def test_files_keep_everything(tmp_path: Path) -> None:
    profile = profile_scenario(load_scenario("toy"))
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is no JSON file"),
        ("[]", "no profile of schema 1"),
        ('{"schema": 1, "scenario": "x", "source": "y"}', "lacks or misstates a field"),
        ('{"schema": 1, "scenario": "x", "source": "y", "replicas": [{"names": ["a"]}]}', "lacks or misstates a field"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        Profile.load(path)
    assert str(path) in str(caught.value)


def test_what_is_no_curve_is_refused(tmp_path: Path) -> None:
    for loads, rates in ([1, 1], [1.0, 2.0]), ([1, 2], [1.0, -2.0]), ([1, 2], [1.0]), ([], []), ([1], [float("nan")]):
        with pytest.raises(SpecError, match="ascending whole numbers"):
            ReplicaProfile(("x",), "m", "g", 1, 8, tuple(loads), tuple(rates), 1.0, 1.0)


def test_slots_and_gains_are_read_off_the_curves() -> None:
    profile = Profile("s", "by hand", (curve([1, 2, 4], [10.0, 18.0, 24.0]), replace(curve([1], [7.0]), names=("y",))))
    curves = curves_for(profile, ["x", "y", "x"], [256, 256, 2], 1.0)
    assert curves.slots.tolist() == [4, 1, 2]
    assert curves.gain_rps.tolist() == [[10.0, 8.0, 3.0, 3.0], [7.0, 0.0, 0.0, 0.0], [10.0, 8.0, 0.0, 0.0]]
    with pytest.raises(SpecError, match="no replica 'z' \\(it has x, y\\)"):
        curves_for(profile, ["z"], [1], 1.0)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.json"
    assert main(["profile", "toy", "--out", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "toy-s" in shown and "8 of 8" in shown and str(path) in shown
    assert Profile.load(path) == profile_scenario(load_scenario("toy"))
    assert main(["profile", "toy", "--json", "--fresh"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["saturation"] == {"toy-s": 8, "toy-m": 8, "toy-l": 8}
    assert main(["profile", "tyo"]) == 2
