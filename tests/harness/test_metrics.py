"""Every metric on a log small enough to compute by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from aragog_env.episode import CALL_DTYPE, REQUEST_DTYPE, EpisodeLog
from aragog_env.harness.metrics import METRICS, episode_metrics, slo_limits_s, smallest_scale


@pytest.fixture
def tiny() -> EpisodeLog:
    """A warm-up request, two that finish after 4 and 10 s, and one that never does."""
    requests = np.zeros(4, REQUEST_DTYPE)
    requests["arrival_s"] = [0, 10, 11, 12]
    requests["finish_s"] = [100, 14, 21, np.nan]
    requests["correct"] = [0, 1, 0, -1]
    requests["p_correct"] = [0, 0.9, 0.3, np.nan]
    requests["p_largest"] = [1, 1.0, 0.5, 0.5]
    requests["standalone_s"] = 2
    calls = np.zeros(5, CALL_DTYPE)
    calls["request"] = [0, 1, 1, 2, 3]
    calls["route"] = [0, 0, 0, 1, 1]
    calls["prompt_tokens"] = [1000, 100, 100, 200, 100]
    calls["cached_tokens"] = [1000, 0, 50, 50, 0]
    calls["output_tokens"] = [1, 11, 1, 101, 5]
    calls["preemptions"] = [0, 0, 0, 2, 1]
    calls["ready_s"] = [0, 10, 12.5, 11, 12]
    calls["dispatch_s"] = [0, 10.5, 12.5, 11, 12]
    calls["start_s"] = [0, 11, 13, 12, 13]
    calls["first_token_s"] = [1, 11.5, 14, 13, np.nan]
    calls["finish_s"] = [1, 12.5, 14, 21, np.nan]
    return EpisodeLog(
        scenario="tiny",
        policy="hand",
        seed=0,
        workflows=("w",),
        models=("a", "b"),
        replicas=("r0", "r1"),
        replica_models=(0, 1),
        replica_gpus=(1, 4),
        replica_usd_per_hour=(3.6, 36.0),
        node_names=(("x", "y"),),
        requests=requests,
        calls=calls,
        decision_s=np.array([0.001, 0.003]),
        busy_s=np.array([3.0, 9.0]),
        iterations=np.array([5, 7]),
        duration_s=30.0,
        warmup_requests=1,
        truncated=True,
        slo_s=None,
        slo_scale=2.5,
        notes={"overflow": 3},
    )


def test_every_metric_by_hand(tiny: EpisodeLog) -> None:
    m = episode_metrics(tiny)
    expected = {
        "requests": 3,
        "completed": 2,
        "unfinished": 1,
        "throughput_rps": 2 / (30 - 10),  # cut: the window ends with the episode
        "goodput_rps": 1 / 20,
        "slo_attainment": 1 / 3,  # 4 s <= 5 s; 10 s; never
        "jct_mean_s": 7,
        "jct_p50_s": 7,
        "jct_p25_s": 5.5,
        "ttft_mean_s": (1.5 + 1.5 + 2) / 3,
        "tpot_mean_s": (0.1 + 0.08) / 2,  # the call with one token has none
        "hold_mean_s": 0.5 / 3,
        "queue_mean_s": (0.5 + 0.5 + 1) / 3,
        "prefill_mean_s": (0.5 + 1 + 1) / 3,
        "decode_mean_s": (1 + 0 + 8) / 3,
        "accuracy": 0.5,
        "accuracy_expected": 0.6,
        "accuracy_relative": 1.2 / 1.5,
        "gpu_seconds_per_request": (3 + 36) / 3,  # the warm-up request used GPUs too
        "usd_per_request": (3 * 3.6 + 9 * 36) / 3600 / 3,
        "usd_rental_per_request": 30 * 39.6 / 3600 / 3,
        "utilisation": (3 + 36) / (30 * 5),
        "utilisation/r0": 0.1,
        "utilisation/r1": 0.3,
        "batch_mean": (1 + 1.5 + 1 + 9 + 17) / 12,
        "llm_calls": 3,
        "prompt_tokens_per_request": 200,
        "output_tokens_per_request": 113 / 2,
        "preemptions": 3,
        "prefix_hit_rate": 100 / 400,
        "decisions": 2,
        "decision_p50_ms": 2,
        "overflow": 3,
        "duration_s": 30,
    }
    for name, value in expected.items():
        assert m[name] == pytest.approx(value, rel=1e-6), name
    assert math.isnan(m["req95"])  # a third of the requests never finished
    assert set(m) == {*METRICS, "utilisation/r0", "utilisation/r1"}


def test_absolute_slo_wins_over_the_scale(tiny: EpisodeLog) -> None:
    assert slo_limits_s(tiny).tolist() == [5, 5, 5, 5]
    assert episode_metrics(replace(tiny, slo_s=10.0))["slo_attainment"] == pytest.approx(2 / 3)


def test_a_drained_episode_is_measured_to_its_last_completion(tiny: EpisodeLog) -> None:
    tiny.requests["finish_s"][3] = 20.0
    assert episode_metrics(replace(tiny, truncated=False))["throughput_rps"] == pytest.approx(3 / (21 - 10))


def test_unknown_outcomes_are_nan_not_zero(tiny: EpisodeLog) -> None:
    tiny.requests["correct"] = -1
    tiny.requests["p_correct"] = np.nan
    m = episode_metrics(tiny)
    assert all(math.isnan(m[name]) for name in ("accuracy", "accuracy_expected", "accuracy_relative"))


def test_an_episode_without_requests_has_no_figures_but_does_not_fail(tiny: EpisodeLog) -> None:
    m = episode_metrics(replace(tiny, requests=tiny.requests[:0], calls=tiny.calls[:0], decision_s=np.zeros(0)))
    assert m["requests"] == 0 and math.isnan(m["jct_mean_s"]) and math.isnan(m["throughput_rps"])


def test_req95_is_the_smallest_scale_that_95_per_cent_meet() -> None:
    scale = np.arange(1.0, 21.0)
    assert smallest_scale(scale, 0.95) == 19
    assert smallest_scale(scale, 0.99) == 20
    scale[-1] = np.inf
    assert smallest_scale(scale, 0.95) == 19
    assert math.isnan(smallest_scale(scale, 0.99))


@pytest.mark.parametrize(("service_rps", "growth"), [(4.0, 0.0), (1.0, 0.5)])
def test_backlog_growth_is_the_share_of_arrivals_that_cannot_be_served(
    tiny: EpisodeLog, service_rps: float, growth: float
) -> None:
    n = 1000
    requests = np.zeros(n, REQUEST_DTYPE)
    requests["arrival_s"] = np.arange(n) / 2.0  # 2 requests/s
    requests["finish_s"] = np.maximum(requests["arrival_s"] + 0.25, np.arange(1, n + 1) / service_rps)
    requests["standalone_s"] = 0.25
    log = replace(tiny, requests=requests, calls=tiny.calls[:0], warmup_requests=0, truncated=False)
    m = episode_metrics(log)
    assert m["backlog_growth"] == pytest.approx(growth, abs=0.01)
    assert m["latency_trend"] == pytest.approx(growth, abs=0.01)
    assert m["bulk_throughput_rps"] == pytest.approx(min(2.0, service_rps), rel=0.01)
