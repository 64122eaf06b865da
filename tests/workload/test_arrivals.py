"""Arrival processes: rates and burstiness by fixed seeds, exactness of schedules, replay of traces."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.specs.load import list_presets, load_arrivals
from aragog_env.specs.workload import ArrivalSpec, RateStep
from aragog_env.workload.arrivals import draw_arrivals, draw_think_times, replay, schedule_steps
from aragog_env.workload.traces import Trace

N = 200_000
OPEN = {
    "poisson": ArrivalSpec(rate_rps=2.0),
    "smooth": ArrivalSpec(kind="gamma", rate_rps=2.0, cv=0.2),
    "bursty": ArrivalSpec(kind="gamma", rate_rps=2.0, cv=3.0),
    "mmpp": ArrivalSpec(kind="mmpp", rate_rps=2.0, mmpp_rates=(4.0, 1.0, 0.0), mmpp_sojourn_s=(2, 8, 5)),
    "schedule": ArrivalSpec(
        kind="schedule", rate_rps=2.0, steps=(RateStep(0, 1), RateStep(10, 0), RateStep(20, 5)), period_s=40
    ),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def variation(times: NDArray[np.float64]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("name", OPEN)
def test_arrivals_ascend_at_the_mean_rate_and_repeat_under_a_seed(name: str) -> None:
    times = draw_arrivals(OPEN[name], N, rng())
    assert times.shape == (N,) and times.dtype == np.float64
    assert times[0] >= 0 and (np.diff(times) >= 0).all()
    assert N / times[-1] == pytest.approx(2.0, rel=0.02)
    assert times.tobytes() == draw_arrivals(OPEN[name], N, rng()).tobytes()
    assert times.tobytes() != draw_arrivals(OPEN[name], N, rng(1)).tobytes()
    assert draw_arrivals(OPEN[name], 0, rng()).shape == (0,)


@pytest.mark.parametrize("name", OPEN)
def test_a_longer_episode_begins_like_a_shorter_one(name: str) -> None:
    assert draw_arrivals(OPEN[name], 300, rng())[:100] == pytest.approx(draw_arrivals(OPEN[name], 100, rng()))


@pytest.mark.parametrize(("name", "cv"), [("poisson", 1.0), ("smooth", 0.2), ("bursty", 3.0)])
def test_coefficient_of_variation(name: str, cv: float) -> None:
    assert variation(draw_arrivals(OPEN[name], N, rng())) == pytest.approx(cv, rel=0.02)


def test_gamma_with_variation_one_is_poisson() -> None:
    gaps = np.diff(draw_arrivals(ArrivalSpec(kind="gamma", rate_rps=1.0, cv=1.0), N, rng()))
    assert np.quantile(gaps, [0.1, 0.5, 0.9]) == pytest.approx([0.105, 0.693, 2.303], rel=0.02)


def test_another_rate_stretches_the_same_pattern() -> None:
    for kind in ("poisson", "gamma"):
        slow = draw_arrivals(ArrivalSpec(kind=kind, rate_rps=1.0, cv=2.0), 50, rng())
        fast = draw_arrivals(ArrivalSpec(kind=kind, rate_rps=4.0, cv=2.0), 50, rng())
        assert fast * 4 == pytest.approx(slow)


def test_mmpp_has_the_dispersion_of_its_states() -> None:
    # Two states, rates 0 and 2 (mean 1), sojourns T each: index of dispersion of counts over a long time is 1
    # + T.
    spec = ArrivalSpec(kind="mmpp", rate_rps=1.0, mmpp_rates=(0.0, 1.0), mmpp_sojourn_s=(20.0, 20.0))
    counts = np.bincount((draw_arrivals(spec, N, rng()) / 1000).astype(np.int64))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1 + 20, rel=0.25)


def test_mmpp_rates_are_relative() -> None:
    times = [
        draw_arrivals(ArrivalSpec(kind="mmpp", rate_rps=3.0, mmpp_rates=(a, 4 * a), mmpp_sojourn_s=(5, 5)), 100, rng())
        for a in (1.0, 7.0)
    ]
    assert times[0] == pytest.approx(times[1])


def test_schedule_counts_follow_the_steps() -> None:
    times = draw_arrivals(OPEN["schedule"], N, rng())
    inside = np.histogram(times % 40, bins=[0, 10, 20, 40])[0] / (times[-1] / 40)
    # weights 1 x 10, 0 x 10, 5 x 20, scaled to 2 x 40 requests per period
    assert inside == pytest.approx([80 * 10 / 110, 0, 80 * 100 / 110], rel=0.02)


def test_schedule_without_period_ends_with_its_last_rate() -> None:
    spec = ArrivalSpec(kind="schedule", steps=(RateStep(0, 10), RateStep(100, 2)))
    times = draw_arrivals(spec, 5000, rng())
    assert (times < 100).sum() == pytest.approx(1000, rel=0.1)
    late = times[times > 100]
    assert (len(late) - 1) / (late[-1] - late[0]) == pytest.approx(2.0, rel=0.05)


def test_schedule_mean_without_period_counts_the_last_step_like_the_one_before() -> None:
    spec = ArrivalSpec(kind="schedule", rate_rps=6.0, steps=(RateStep(0, 1), RateStep(50, 3)))
    start, rate = schedule_steps(spec)
    assert start.tolist() == [0, 50] and rate == pytest.approx([3, 9])


def test_schedule_that_dries_up_says_so() -> None:
    spec = ArrivalSpec(kind="schedule", steps=(RateStep(0, 1), RateStep(10, 0)))
    with pytest.raises(SpecError, match="ends with rate 0"):
        draw_arrivals(spec, 100, rng())


def trace(times: list[float]) -> Trace:
    count = np.ones(len(times), dtype=np.int64)
    return Trace(np.array(times), count, count, "test.csv", "azure2023")


def test_replay_starts_over_after_one_mean_gap() -> None:
    # Four requests in 6 s: the mean gap is 2 s, so the circle is 8 s long.
    times = replay(trace([0, 1, 5, 6]), 9, None)
    assert times.tolist() == [0, 1, 5, 6, 8, 9, 13, 14, 16]


def test_replay_scales_to_the_target_rate() -> None:
    times = replay(trace([0, 1, 5, 6]), 9, None, rate_rps=1.0)  # 4 requests per 8 s, twice as fast
    assert times.tolist() == [0, 0.5, 2.5, 3, 4, 4.5, 6.5, 7, 8]


def test_replay_skips_the_beginning() -> None:
    assert replay(trace([0, 1, 5, 6, 9]), 3, None, start_s=2.0).tolist() == [0, 1, 4]


def test_replay_from_a_random_moment_keeps_the_gaps() -> None:
    gaps = {1.0, 2.0, 4.0}
    firsts = set()
    for seed in range(20):
        times = replay(trace([0, 1, 5, 6]), 30, rng(seed))
        assert times[0] >= 0
        assert set(np.round(np.diff(times), 9)) == gaps
        firsts.add(round(float(times[0]), 6))
    assert len(firsts) == 20


def test_replay_refuses_what_has_no_rate() -> None:
    for times, start in (([0.0], 0.0), ([0.0, 0.0], 0.0), ([0.0, 5.0], 3.0)):
        with pytest.raises(SpecError, match="at least two at different times"):
            replay(trace(times), 3, None, start_s=start)


def test_trace_arrivals_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,1,1\n2023-11-16 18:00:04,1,1\n")
    spec = ArrivalSpec(kind="trace", path=str(path), random_offset=False)
    assert draw_arrivals(spec, 3, rng()).tolist() == [0, 4, 8]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,1,1\n2023-11-16 18:00:05.5,1,1\n")
    assert draw_arrivals(spec, 3, rng()).tolist() == [0, 5.5, 11], "a changed file is read again"
    path.unlink()
    with pytest.raises(SpecError, match="cannot read the trace"):
        draw_arrivals(spec, 3, rng())


def test_think_times() -> None:
    spec = ArrivalSpec(kind="closed", users=50, think_s=3.0)
    think = draw_think_times(spec, 400, rng())
    assert think.shape == (50, 400)
    assert think.mean() == pytest.approx(3.0, rel=0.03)
    assert think.std() == pytest.approx(3.0, rel=0.03)
    assert (draw_think_times(ArrivalSpec(kind="closed", users=2), 3, rng()) == 0).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ArrivalSpec(), "need a positive 'rate_rps'"),
        (ArrivalSpec(rate_rps=-1.0), "need a positive 'rate_rps'"),
        (ArrivalSpec(kind="gamma", rate_rps=1.0, cv=0.0), "must be positive"),
        (
            ArrivalSpec(kind="mmpp", rate_rps=1.0, mmpp_rates=(1.0,), mmpp_sojourn_s=(1.0,)),
            "two or more states",
        ),
        (
            ArrivalSpec(kind="mmpp", rate_rps=1.0, mmpp_rates=(0.0, 0.0), mmpp_sojourn_s=(1.0, 1.0)),
            "one of them positive",
        ),
        (ArrivalSpec(kind="schedule"), "at least one step"),
        (ArrivalSpec(kind="schedule", steps=(RateStep(5, 1), RateStep(5, 2))), "ascending"),
        (ArrivalSpec(kind="schedule", steps=(RateStep(0, 1), RateStep(9, 2)), period_s=9), "longer than"),
        (ArrivalSpec(kind="schedule", steps=(RateStep(0, 0),)), "positive rate"),
        (ArrivalSpec(kind="trace"), "need the 'path'"),
        (ArrivalSpec(kind="closed", users=3), "no arrival times of its own"),
    ],
)
def test_contradictions_are_refused(spec: ArrivalSpec, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        draw_arrivals(spec, 10, rng())


@pytest.mark.parametrize("name", list_presets("arrivals"))
def test_every_preset_can_be_drawn_and_names_its_source(name: str) -> None:
    spec = load_arrivals(name)
    assert spec.source
    if spec.kind == "closed":
        assert draw_think_times(spec, 5, rng()).shape == (spec.users, 5)
    else:
        assert (np.diff(draw_arrivals(spec, 1000, rng())) >= 0).all()
