"""What figures are drawn from."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from aragog_env.episode import EpisodeLog
from aragog_env.harness.results import Results
from aragog_env.harness.series import cdf, collect, gantt_window, in_flight, lanes, occupancy


def test_cdf_ends_at_the_share_that_finished() -> None:
    x, y = cdf(np.array([1.0, 2.0, 3.0, np.inf]))
    assert x.tolist() == [1, 2, 3] and y.tolist() == [0.25, 0.5, 0.75]
    thinned = cdf(np.arange(10_000.0), points=50)
    assert len(thinned[0]) == 50 and thinned[1][-1] == 1.0


def test_lanes_never_overlap_and_are_as_few_as_possible() -> None:
    rng = np.random.default_rng(0)
    begin = np.sort(rng.uniform(0, 100, 300))
    end = begin + rng.uniform(0.1, 10, 300)
    lane = lanes(begin, end)
    for k in range(lane.max() + 1):
        mine = lane == k
        assert (begin[mine][1:] >= end[mine][:-1]).all()
    overlap = max(int(((begin <= t) & (end > t)).sum()) for t in begin)
    assert lane.max() + 1 == overlap


def test_loads_count_what_is_there(log: EpisodeLog) -> None:
    t = np.linspace(0, log.duration_s, 50)
    arrivals, finishes = log.requests["arrival_s"], log.requests["finish_s"]
    expected = [int(((arrivals <= x) & (finishes > x)).sum()) for x in t]
    assert in_flight(log, t).tolist() == expected
    running, waiting = occupancy(log, 2, t)
    calls = log.calls[log.calls["route"] == 2]
    assert running.tolist() == [int(((calls["start_s"] <= x) & (calls["finish_s"] > x)).sum()) for x in t]
    assert waiting.tolist() == [int(((calls["dispatch_s"] <= x) & (calls["start_s"] > x)).sum()) for x in t]


def test_calls_of_a_live_run_are_shown_from_when_they_were_sent(log: EpisodeLog) -> None:
    live = copy.deepcopy(log)
    live.calls["start_s"] = np.nan
    t = np.linspace(0, live.duration_s, 50)
    running, waiting = occupancy(live, 2, t)
    calls = live.calls[live.calls["route"] == 2]
    assert running.tolist() == [int(((calls["dispatch_s"] <= x) & (calls["finish_s"] > x)).sum()) for x in t]
    assert running.max() > 0 and not waiting.any()
    assert gantt_window(live, calls=50)[0] >= 0


def test_collected_series_hold_all_seeds(results: Results) -> None:
    (series,) = collect(results)
    assert [p.policy for p in series.policies] == ["small", "spread", "large"]
    small, spread, large = series.policies
    assert len(spread.jct_s) == 4 * 55 and (np.diff(spread.jct_s) >= 0).all()
    assert small.model_share.tolist() == [1, 0, 0] and large.model_share.tolist() == [0, 0, 1]
    assert sum(spread.model_share) == pytest.approx(1)
    assert set(spread.stage_models) == {(w, s) for w in ("alpha", "beta") for s in ("generate", "critique", "refine")}
    assert large.tokens["calls"][2] == 4 * 55 * 3


def test_the_gantt_window_holds_a_readable_number_of_calls(log: EpisodeLog) -> None:
    assert gantt_window(log, calls=10_000) == (0.0, log.duration_s)
    begin, end = gantt_window(log, calls=50)
    assert 50 <= ((log.calls["start_s"] >= begin) & (log.calls["start_s"] <= end)).sum() <= 52
