"""Profiles of servers: fake ones whose throughput is known, their file, and the recording to calibrate on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aragog_env.calibration import calibrate
from aragog_env.calibration.observations import observe
from aragog_env.errors import AragogError, SpecError
from aragog_env.harness.profile import Profile
from aragog_env.harness.profile_live import LiveProfiler, _tokens_within
from aragog_env.recording import Recording
from aragog_env.recording.run import check_ended
from aragog_env.servers.client import Completion
from aragog_env.specs.scenario import Scenario
from tests.live.fake_server import FakeServer
from tests.live.world import endpoints_of, make_scenario

pytest.importorskip("httpx")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Scenario, list[FakeServer]]]:
    """Two servers that write a token every 40 and 80 ms and take eight calls at once."""
    scenario = make_scenario(tmp_path)
    with ExitStack() as stack:
        made = [
            stack.enter_context(FakeServer(lambda prompt: " ".join("x" * 40), model=replica.model, token_s=token_s))
            for replica, token_s in zip(scenario.cluster.expand(), (0.04, 0.08), strict=True)
        ]
        yield scenario, made


def test_throughput_grows_with_the_load(servers: tuple[Scenario, list[FakeServer]], tmp_path: Path) -> None:
    scenario, fakes = servers
    told: list[str] = []
    profile = LiveProfiler(scenario, endpoints_of(scenario, fakes), seconds=6.0, progress=told.append).run()
    small, large = profile.replicas
    assert small.names == ("toy-s",) and small.loads == large.loads == (1, 2, 4, 8) and small.max_num_seqs == 8
    # Every call writes five tokens of 40 (80) ms, whatever the load.
    assert small.output_tokens == large.output_tokens == 5.0 and small.prompt_tokens > 10
    for entry, alone_rps in ((small, 5.0), (large, 2.5)):
        for load, rate in zip(entry.loads, entry.throughput_rps, strict=True):
            # A busy machine is slower than that, but never faster.
            assert 0.2 * load * alone_rps < rate < 1.1 * load * alone_rps
    assert told[0] == "toy-s: 1 calls at once, 2 s" and len(told) == 8
    assert all(body["ignore_eos"] and body["max_tokens"] == 5 for fake in fakes for body in fake.seen[1:])
    prompts = [body["messages"][0]["content"] for body in fakes[0].seen[1:]]
    assert len(set(prompts)) > 20, "prompts begin in different places, as far as the few questions here have some"
    assert profile.source.startswith("live, ") and "6 s per server" in profile.source
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


def test_the_recording_can_be_calibrated_on(servers: tuple[Scenario, list[FakeServer]], tmp_path: Path) -> None:
    scenario, fakes = servers
    path, told = tmp_path / "profile.db", []
    LiveProfiler(scenario, endpoints_of(scenario, fakes), seconds=6.0, recording=path, progress=told.append).run()
    assert told[-1].startswith("together: toy-s, toy-l, 2 calls at once each")
    with Recording(path) as recording:
        assert recording.run["policy"] == "profile" and recording.run["scenario"] == "errands"
        calls = list(recording.rows("calls"))
        assert {row["status"] for row in calls} == {"ok"} and len({row["request"] for row in calls}) == len(calls)
        # All but the first call to each server, which only counted characters.
        assert len(calls) == sum(len(fake.seen) - 1 for fake in fakes)
        observed = observe(recording)
        assert observed.servers["toy-s"].whole.busy[:, 1].max() > 0.9 > observed.servers["toy-s"].whole.busy[:, 1].min()
        machine = json.loads(next(recording.rows("sessions"))["machine"])
        assert len(machine["load"]) == 3
        with pytest.raises(SpecError, match="is of a profile"):
            check_ended(recording)
    found = calibrate([path])
    iteration_ms = [sum(fit.terms[:3]) for fit in found.servers]
    assert 32 < iteration_ms[0] < 70 and 64 < iteration_ms[1] < 130


def test_a_server_that_fails(servers: tuple[Scenario, list[FakeServer]], tmp_path: Path) -> None:
    scenario, fakes = servers
    fakes[1].fault = "500"
    profiler = LiveProfiler(scenario, endpoints_of(scenario, fakes), seconds=1.0, recording=tmp_path / "r.db")
    with pytest.raises(AragogError, match=r"'toy-l' at http.* fails a call: the server answered 500"):
        profiler.run()
    with Recording(tmp_path / "r.db") as recording:
        assert next(recording.rows("sessions"))["ending"] == "failed"


def test_bad_input(servers: tuple[Scenario, list[FakeServer]], tmp_path: Path) -> None:
    scenario, fakes = servers
    endpoints = endpoints_of(scenario, fakes)
    with pytest.raises(SpecError, match="needs some seconds"):
        LiveProfiler(scenario, endpoints, seconds=0.0)
    with pytest.raises(SpecError, match="no server answers for replica 'toy-l'"):
        LiveProfiler(scenario, endpoints[:1])


def test_tokens_in_a_window() -> None:
    answer = Completion("", "stop", 1, 6, 0, 0.0, 1.0, 3.5, (1.0, 2.0, 3.0), (1, 4, 6), True)
    assert [_tokens_within(answer, *window) for window in ((0, 9), (1.5, 9), (1.5, 2.5), (0, 1), (3.5, 9))] == [
        6,
        5,
        3,
        0,
        0,
    ]
