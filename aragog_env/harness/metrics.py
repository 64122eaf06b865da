"""Figures of merit of one episode (DESIGN.md, section 6), computed from its log alone.

Warm-up requests count for nothing. Requests that are unfinished when the horizon cuts the episode are
censored: they miss their SLO, they count in `unfinished`, and Req95/Req99 treat them as infinitely late; JCT
percentiles are over the completed ones. Requests that failed on real servers miss their SLO too, and their answer is wrong.
A figure that has no data is nan, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..episode import EpisodeLog

Better = Literal["higher", "lower", "neither"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown: label, unit, decimals, and which direction is better."""

    label: str
    unit: str
    decimals: int
    better: Better
    meaning: str


_PERCENTILES: Final = (50, 95, 99)

METRICS: Final[dict[str, MetricInfo]] = {
    "requests": MetricInfo("Requests", "", 0, "neither", "counted requests (after warm-up)"),
    "completed": MetricInfo("Completed", "", 0, "neither", "counted requests that finished"),
    "unfinished": MetricInfo("Unfinished", "", 0, "lower", "requests in flight when the horizon cut the episode"),
    "failed": MetricInfo("Failed", "", 0, "lower", "requests that real servers could not serve; none in simulation"),
    "throughput_rps": MetricInfo("Throughput", "req/s", 3, "higher", "completed / (last completion - first arrival)"),
    "bulk_throughput_rps": MetricInfo(
        "Bulk throughput", "req/s", 3, "higher", "the same until 95% of the requests are done: no drain tail"
    ),
    "goodput_rps": MetricInfo("Goodput", "req/s", 3, "higher", "the same, counting only requests that met their SLO"),
    "slo_attainment": MetricInfo("SLO met", "%", 1, "higher", "share of requests that met their SLO"),
    "req95": MetricInfo("Req95", "x", 2, "lower", "smallest SLO scale (latency / standalone latency) that 95% meet"),
    "req99": MetricInfo("Req99", "x", 2, "lower", "smallest SLO scale that 99% of the requests meet"),
    "backlog_growth": MetricInfo(
        "Backlog growth", "", 3, "lower", "requests in flight gained per arrival, second half of the arrivals"
    ),
    "latency_trend": MetricInfo(
        "Latency trend",
        "",
        3,
        "lower",
        "share of arrivals that are not served in time, from the growth of JCT",
    ),
    "jct_mean_s": MetricInfo("JCT mean", "s", 2, "lower", "workflow completion time"),
    "jct_p25_s": MetricInfo("JCT P25", "s", 2, "lower", "workflow completion time, 25th percentile"),
    "jct_p50_s": MetricInfo("JCT P50", "s", 2, "lower", "workflow completion time, median"),
    "jct_p95_s": MetricInfo("JCT P95", "s", 2, "lower", "workflow completion time, 95th percentile"),
    "jct_p99_s": MetricInfo("JCT P99", "s", 2, "lower", "workflow completion time, 99th percentile"),
    "ttft_mean_s": MetricInfo("TTFT mean", "s", 3, "lower", "per call, ready to first token"),
    "ttft_p50_s": MetricInfo("TTFT P50", "s", 3, "lower", "per call, ready to first token, median"),
    "ttft_p95_s": MetricInfo("TTFT P95", "s", 3, "lower", "per call, ready to first token, 95th percentile"),
    "ttft_p99_s": MetricInfo("TTFT P99", "s", 3, "lower", "per call, ready to first token, 99th percentile"),
    "tpot_mean_s": MetricInfo("TPOT mean", "s", 4, "lower", "per call, seconds per output token after the first"),
    "tpot_p50_s": MetricInfo("TPOT P50", "s", 4, "lower", "per call, seconds per output token, median"),
    "tpot_p95_s": MetricInfo("TPOT P95", "s", 4, "lower", "per call, seconds per output token, 95th percentile"),
    "tpot_p99_s": MetricInfo("TPOT P99", "s", 4, "lower", "per call, seconds per output token, 99th percentile"),
    "hold_mean_s": MetricInfo("Held", "s", 3, "lower", "per call, ready to dispatched: the policy held it"),
    "queue_mean_s": MetricInfo("Queued", "s", 3, "lower", "per call, dispatched to first scheduled by the server"),
    "prefill_mean_s": MetricInfo("Prefill", "s", 3, "lower", "per call, first scheduled to first token"),
    "decode_mean_s": MetricInfo("Decode", "s", 3, "lower", "per call, first to last token"),
    "accuracy": MetricInfo(
        "Accuracy", "%", 1, "higher", "share of correct answers among completed requests; a failed one counts as wrong"
    ),
    "accuracy_expected": MetricInfo("Exp. accuracy", "%", 1, "higher", "mean success probability of what was served"),
    "accuracy_relative": MetricInfo(
        "Rel. accuracy",
        "%",
        1,
        "higher",
        "expected accuracy / that of the largest configuration, same requests",
    ),
    "gpu_seconds_per_request": MetricInfo("GPU-s/req", "s", 2, "lower", "busy GPU-seconds per completed request"),
    "usd_per_request": MetricInfo("Cost/req", "USD", 5, "lower", "price of the busy GPU time per completed request"),
    "usd_rental_per_request": MetricInfo(
        "Rent/req", "USD", 5, "lower", "price of the whole cluster's time per request"
    ),
    "utilisation": MetricInfo("Utilisation", "%", 1, "neither", "busy share of GPU time, over all replicas"),
    "batch_mean": MetricInfo("Batch", "calls", 1, "neither", "calls running on a replica while it is busy, mean"),
    "llm_calls": MetricInfo("LLM calls", "", 0, "neither", "finished calls of counted requests"),
    "prompt_tokens_per_request": MetricInfo("Prompt tok/req", "", 0, "neither", "prompt tokens per completed request"),
    "output_tokens_per_request": MetricInfo("Output tok/req", "", 0, "neither", "output tokens per completed request"),
    "preemptions": MetricInfo("Preemptions", "", 1, "lower", "recomputations for lack of KV blocks, all calls"),
    "prefix_hit_rate": MetricInfo("Prefix hits", "%", 1, "higher", "share of prompt tokens found in the prefix cache"),
    "decisions": MetricInfo("Decisions", "", 0, "neither", "times the policy was asked"),
    "decision_p50_ms": MetricInfo("Decision P50", "ms", 4, "lower", "wall time of `act`, median"),
    "decision_p99_ms": MetricInfo("Decision P99", "ms", 4, "lower", "wall time of `act`, 99th percentile"),
    "overflow": MetricInfo(
        "Overflow", "", 0, "lower", "decisions with more ready calls than the observation has slots"
    ),
    "duration_s": MetricInfo("Duration", "s", 1, "neither", "length of the episode"),
}
WALL_CLOCK_METRICS: Final = frozenset({"decision_p50_ms", "decision_p99_ms"})
"""Metrics that no re-run reproduces exactly."""

UTILISATION_PREFIX: Final = "utilisation/"
REPLAY_PREFIX: Final = "replay/"
"""Shares of a replay's calls that no recording had, or only after other models."""


def slo_limits_s(log: EpisodeLog) -> Floats:
    """Return (n,) the latency limit of each request of `log`."""
    if log.slo_s is not None:
        return np.full(len(log.requests), log.slo_s)
    return np.asarray(log.slo_scale * log.requests["standalone_s"], dtype=np.float64)


def smallest_scale(scale: Floats, share: float) -> float:
    """Return the smallest SLO scale that `share` of the requests meet (nan when too many never finished)."""
    if not len(scale):
        return float("nan")
    # 1e-9: 0.95 * 20 is 19.000000000000004 in binary, which is still the 19th smallest.
    rank = max(1, int(np.ceil(share * len(scale) - 1e-9)))
    value = float(np.sort(scale)[rank - 1])
    return value if np.isfinite(value) else float("nan")


def counted(log: EpisodeLog) -> NDArray[np.void]:
    """Return the requests of `log` after the warm-up."""
    return log.requests[log.warmup_requests :]


def episode_metrics(log: EpisodeLog) -> dict[str, float]:
    """Compute every metric of `METRICS`, and `utilisation/<replica>` for each replica."""
    requests = counted(log)
    done = np.isfinite(requests["finish_s"])
    jct_s = (requests["finish_s"] - requests["arrival_s"])[done]
    failed = float(_failed(log))
    result: dict[str, float] = {
        "requests": float(len(requests)),
        "completed": float(done.sum()),
        "unfinished": float(len(requests) - done.sum()) - failed,
        "failed": failed,
        "duration_s": float(log.duration_s),
        **_rates(log, requests, done),
        **_load(requests, done),
        **_spread("jct", jct_s, (25, *_PERCENTILES)),
        **_accuracy(requests[done], failed),
        **_calls(log, int(done.sum())),
        **_costs(log),
        **_decisions(log),
        **_replay(log),
    }
    return {key: result[key] for key in [*METRICS, *(k for k in result if k not in METRICS)]}


def _rates(log: EpisodeLog, requests: NDArray[np.void], done: NDArray[np.bool_]) -> dict[str, float]:
    latency_s = np.where(done, requests["finish_s"] - requests["arrival_s"], np.inf)
    met = latency_s <= slo_limits_s(log)[log.warmup_requests :]
    # A truncated episode ends at the cut, not at the last completion: nothing completing is information too.
    end_s = log.duration_s if log.truncated or not done.any() else float(requests["finish_s"][done].max())
    window_s = end_s - float(requests["arrival_s"][0]) if len(requests) else 0.0
    standalone_s = requests["standalone_s"].astype(np.float64)
    known = np.isfinite(standalone_s) & (standalone_s > 0)
    scale = latency_s[known] / standalone_s[known]
    return {
        "throughput_rps": _ratio(float(done.sum()), window_s),
        "goodput_rps": _ratio(float(met.sum()), window_s),
        "slo_attainment": _ratio(float(met.sum()), float(len(requests))),
        "req95": smallest_scale(scale, 0.95),
        "req99": smallest_scale(scale, 0.99),
    }


def _load(requests: NDArray[np.void], done: NDArray[np.bool_]) -> dict[str, float]:
    arrivals_s, finishes_s = np.sort(requests["arrival_s"]), np.sort(requests["finish_s"][done])
    bulk = int(0.95 * len(requests))
    bulk_s = float(finishes_s[bulk - 1] - arrivals_s[0]) if 0 < bulk <= len(finishes_s) else float("nan")
    return {
        "bulk_throughput_rps": bulk / bulk_s if bulk_s > 0 else float("nan"),
        "backlog_growth": _backlog_growth(arrivals_s, finishes_s),
        "latency_trend": _latency_trend(requests[done]),
    }


def _backlog_growth(arrivals_s: Floats, finishes_s: Floats) -> float:
    """Compare mean requests in flight in two windows of the arrival period: its last and its third sixth.

    By a third of the period a stable system has filled up; one offered more than it can serve gains a share
    1 - capacity / rate of all arrivals, whatever its size.
    """
    if len(arrivals_s) < 6 or arrivals_s[-1] <= arrivals_s[0]:
        return float("nan")
    begin, length = arrivals_s[0], arrivals_s[-1] - arrivals_s[0]
    means = []
    for window in ((1 / 3, 1 / 2), (5 / 6, 1.0)):
        t = begin + length * np.linspace(*window, 64)
        means.append(float((np.searchsorted(arrivals_s, t) - np.searchsorted(finishes_s, t)).mean()))
    return (means[1] - means[0]) / (len(arrivals_s) / 2)


def _latency_trend(done: NDArray[np.void]) -> float:
    """Return slope / (1 + slope) of the least-squares line of JCT over arrival time, but for the first third.

    In an overloaded queue JCT grows by rate / capacity - 1 seconds per second, so that this estimates the
    same share as `_backlog_growth`, with far less noise near capacity; far beyond it, where arrivals are over
    before anything is served, it means nothing.
    """
    arrival_s = np.asarray(done["arrival_s"], dtype=np.float64)
    late = done[arrival_s >= np.quantile(arrival_s, 1 / 3)] if len(done) >= 12 else done[:0]
    if len(late) < 8 or np.ptp(late["arrival_s"]) <= 0:
        return float("nan")
    x = late["arrival_s"] - late["arrival_s"].mean()
    slope = float(x @ (late["finish_s"] - late["arrival_s"])) / float(x @ x)
    return slope / (1 + slope) if slope > -0.5 else -1.0


def _failed(log: EpisodeLog) -> int:
    """Return how many counted requests were given up (`backends.live`)."""
    ranks = log.notes.get("failed_requests") or {}
    assert isinstance(ranks, dict)
    return sum(int(rank) >= log.warmup_requests for rank in ranks)


def _accuracy(done: NDArray[np.void], failed: float) -> dict[str, float]:
    graded = done["correct"][done["correct"] >= 0]
    known = np.isfinite(done["p_correct"]) & np.isfinite(done["p_largest"])
    served, largest = done["p_correct"][known].astype(np.float64), done["p_largest"][known].astype(np.float64)
    return {
        "accuracy": _ratio(float(graded.sum()), len(graded) + failed),
        "accuracy_expected": _mean(done["p_correct"][np.isfinite(done["p_correct"])].astype(np.float64)),
        "accuracy_relative": _ratio(float(served.sum()), float(largest.sum())),
    }


def _calls(log: EpisodeLog, completed: int) -> dict[str, float]:
    calls = log.calls[(log.calls["request"] >= log.warmup_requests) & np.isfinite(log.calls["finish_s"])]
    first_s, output = calls["first_token_s"], calls["output_tokens"]
    several = output > 1
    tpot_s = ((calls["finish_s"] - first_s) / np.maximum(output - 1, 1))[several]
    of_done = calls[np.isfinite(log.requests["finish_s"][calls["request"]])]
    return {
        **_spread("ttft", first_s - calls["ready_s"], _PERCENTILES),
        **_spread("tpot", tpot_s, _PERCENTILES),
        "hold_mean_s": _mean(calls["dispatch_s"] - calls["ready_s"]),
        "queue_mean_s": _mean(calls["start_s"] - calls["dispatch_s"]),
        "prefill_mean_s": _mean(first_s - calls["start_s"]),
        "decode_mean_s": _mean(calls["finish_s"] - first_s),
        "llm_calls": float(len(calls)),
        "prompt_tokens_per_request": _ratio(float(of_done["prompt_tokens"].sum()), completed),
        "output_tokens_per_request": _ratio(float(of_done["output_tokens"].sum()), completed),
        "preemptions": float(log.calls["preemptions"].sum()),
        "prefix_hit_rate": _ratio(float(calls["cached_tokens"].sum()), float(calls["prompt_tokens"].sum())),
    }


def _costs(log: EpisodeLog) -> dict[str, float]:
    """Costs are of the whole episode, warm-up included: busy time cannot be told apart by request."""
    gpus = np.asarray(log.replica_gpus, dtype=np.float64)
    usd_per_s = np.asarray(log.replica_usd_per_hour, dtype=np.float64) / 3600.0
    busy_s = np.asarray(log.busy_s, dtype=np.float64)
    completed = float(np.isfinite(log.requests["finish_s"]).sum())
    result = {
        "gpu_seconds_per_request": _ratio(float(busy_s @ gpus), completed),
        "usd_per_request": _ratio(float(busy_s @ usd_per_s), completed),
        "usd_rental_per_request": _ratio(log.duration_s * float(usd_per_s.sum()), completed),
        "batch_mean": _ratio(_running_s(log), float(busy_s.sum())),
        "utilisation": _ratio(float(busy_s @ gpus), log.duration_s * float(gpus.sum())),
    }
    for name, busy in zip(log.replicas, busy_s, strict=True):
        result[UTILISATION_PREFIX + name] = _ratio(float(busy), log.duration_s)
    return result


def _running_s(log: EpisodeLog) -> float:
    """Return the call-seconds between first scheduling and end, calls that were cut included."""
    started = log.calls[np.isfinite(log.calls["start_s"])]
    ends_s = np.where(np.isfinite(started["finish_s"]), started["finish_s"], log.duration_s)
    return float((ends_s - started["start_s"]).sum())


def _decisions(log: EpisodeLog) -> dict[str, float]:
    overflow = log.notes.get("overflow", 0)
    return {
        "decisions": float(len(log.decision_s)),
        "decision_p50_ms": _percentile(log.decision_s, 50) * 1e3,
        "decision_p99_ms": _percentile(log.decision_s, 99) * 1e3,
        "overflow": float(overflow) if isinstance(overflow, int | float) else float("nan"),
    }


def _replay(log: EpisodeLog) -> dict[str, float]:
    """Return how much of a replay was not recorded (`backends.replay`); nothing for other logs."""
    counts = log.notes.get("replay")
    if not isinstance(counts, dict) or not counts["calls"]:
        return {}
    return {f"{REPLAY_PREFIX}{name}": counts[name] / counts["calls"] for name in ("never_recorded", "other_context")}


def _spread(name: str, values_s: Floats, percentiles: tuple[int, ...]) -> dict[str, float]:
    result = {f"{name}_mean_s": _mean(values_s)}
    result.update({f"{name}_p{p}_s": _percentile(values_s, p) for p in percentiles})
    return result


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _percentile(values: Floats, p: float) -> float:
    return float(np.percentile(values, p)) if len(values) else float("nan")


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
