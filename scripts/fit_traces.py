"""Fit arrival processes to public traces and write them as arrival presets.

    python -m scripts.fit_traces --data ../shared/data [--to aragog_env/specs/presets/arrivals]

Reads whichever of these it finds under --data, downloads nothing, and writes one YAML file per fit: numbers
and their source, never the data.

* azure_llm_2023/AzureLLMInferenceTrace_{code,conv}.csv.gz and mooncake_fast25/conversation_trace.jsonl.gz:
  ``gamma`` (rate and coefficient of variation of the gaps) and ``mmpp`` (hidden Markov model with Poisson
  counts, by expectation maximisation). Each file says how well the fit meets the trace's dispersion over
  windows of 1 s to 5 min.
* servegen/*_client_rates.csv.gz: ``schedule``, the mean rate of each hour of the day over all days and
  clients.

No trace has workflow ids: to use these as arrivals of workflows is an assumption.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from math import lgamma
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.specs.workload import ArrivalSpec
from aragog_env.workload.arrivals import draw_arrivals
from aragog_env.workload.traces import Trace, read_trace

Floats = NDArray[np.float64]
WINDOWS_S: Final = (1, 10, 60, 300)
SERVEGEN: Final = ("m-small", "m-mid", "m-large", "deepseek-r1")


@dataclass(frozen=True)
class Source:
    """A trace and how it is fitted.

    Bins and states were chosen by comparing dispersions (`WINDOWS_S`) of bins of 1, 3, 10 and 30 s with two
    and three states: longer bins lose the bursts of seconds, shorter ones the minutes.
    """

    path: str
    title: str
    bin_s: float
    states: int
    rounded_to_s: float = 0.0
    """The trace's own resolution; gaps between rounded times say nothing, so counts are used instead."""


TRACES: Final = {
    "azure-code": Source(
        "azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz", "Azure LLM 2023, code (CC-BY-4.0)", 3.0, 3
    ),
    "azure-conv": Source(
        "azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz",
        "Azure LLM 2023, conversation (CC-BY-4.0)",
        3.0,
        3,
    ),
    "mooncake-conv": Source(
        "mooncake_fast25/conversation_trace.jsonl.gz",
        "Mooncake FAST'25, conversation (Apache-2.0)",
        12.0,
        2,
        3.0,
    ),
}


@dataclass(frozen=True)
class MarkovFit:
    """A Markov-modulated Poisson process with K states, busiest first."""

    rates_rps: Floats  # (K,)
    sojourn_s: Floats  # (K,)
    log_likelihood: float


def fit_mmpp(counts: NDArray[np.int64], bin_s: float, states: int, iterations: int = 200) -> MarkovFit:
    """Fit a hidden Markov model with Poisson counts (Baum-Welch), started at quantiles of smoothed counts.

    Args:
        counts: requests in successive bins, (T,).
        bin_s: length of a bin.
        states: number of states, K.
        iterations: at most as many steps of expectation maximisation.
    """
    smooth = np.convolve(counts, np.ones(15) / 15, mode="same")
    rates = np.quantile(smooth, (np.arange(states) + 0.5) / states) + 0.05
    move = np.full((states, states), 0.1 / max(states - 1, 1))
    np.fill_diagonal(move, 0.9)
    start = np.full(states, 1 / states)
    log_factorial = np.array([lgamma(c + 1) for c in range(int(counts.max()) + 1)])[counts]
    before = -np.inf
    for _ in range(iterations):
        log_emit = counts[:, None] * np.log(rates) - rates - log_factorial[:, None]
        peak = log_emit.max(axis=1, keepdims=True)
        forward, backward, scale = _forward_backward(np.exp(log_emit - peak), move, start)
        likelihood = float(np.log(scale).sum() + peak.sum())
        posterior = forward * backward
        posterior /= posterior.sum(axis=1, keepdims=True)
        emit = np.exp(log_emit - peak)
        pair = (forward[:-1, :, None] * move * (emit[1:] * backward[1:])[:, None, :]) / scale[1:, None, None]
        move = pair.sum(axis=0)
        move /= move.sum(axis=1, keepdims=True)
        rates = (posterior * counts[:, None]).sum(axis=0) / posterior.sum(axis=0) + 1e-6
        start = posterior[0]
        if likelihood - before < 1e-4:
            break
        before = likelihood
    order = np.argsort(-rates)
    sojourn = bin_s / np.clip(1 - np.diag(move), 1e-9, None)
    return MarkovFit(rates[order] / bin_s, sojourn[order], likelihood)


def _forward_backward(emit: Floats, move: Floats, start: Floats) -> tuple[Floats, Floats, Floats]:
    """Return scaled forward and backward probabilities and the scales, (T, K), (T, K), (T,)."""
    n = len(emit)
    forward, backward, scale = np.empty_like(emit), np.ones_like(emit), np.empty(n)
    state = start * emit[0]
    for t in range(n):
        if t:
            state = (forward[t - 1] @ move) * emit[t]
        scale[t] = state.sum()
        forward[t] = state / scale[t]
    for t in range(n - 2, -1, -1):
        backward[t] = move @ (emit[t + 1] * backward[t + 1]) / scale[t + 1]
    return forward, backward, scale


def dispersion(times_s: Floats, window_s: float) -> float:
    """Return variance over mean of the number of requests per window; 1 for a Poisson process."""
    counts = np.bincount((times_s / window_s).astype(np.int64))
    return float(counts.var() / counts.mean())


def trace_presets(name: str, trace: Trace, source: Source) -> dict[str, str]:
    """Return preset name -> YAML text for one trace."""
    times = trace.times_s
    gaps = np.diff(times)
    if source.rounded_to_s:
        window = 10 * source.rounded_to_s
        # over long windows, the dispersion of a renewal process tends to the squared variation of its gaps
        cv, how = dispersion(times, window) ** 0.5, f"dispersion over {window:g} s (times are rounded)"
    else:
        cv, how = float(gaps.std() / gaps.mean()), "moments of the gaps"
    fit = fit_mmpp(np.bincount((times / source.bin_s).astype(np.int64)), source.bin_s, source.states)
    relative = fit.rates_rps / float(fit.sojourn_s / fit.sojourn_s.sum() @ fit.rates_rps)
    gamma = ArrivalSpec(kind="gamma", rate_rps=round(trace.rate_rps, 3), cv=round(cv, 3))
    mmpp = ArrivalSpec(
        kind="mmpp",
        rate_rps=round(trace.rate_rps, 3),
        mmpp_rates=tuple(round(float(r), 3) for r in relative),
        mmpp_sojourn_s=tuple(round(float(s), 1) for s in fit.sojourn_s),
    )
    model = f"hidden Markov model with {source.states} states, Poisson counts in bins of {source.bin_s:g} s"
    return {
        f"{name}-gamma": _preset(gamma, trace, source.title, how),
        f"{name}-mmpp": _preset(mmpp, trace, source.title, model),
    }


def _preset(spec: ArrivalSpec, trace: Trace, title: str, how: str) -> str:
    made = draw_arrivals(spec, 200_000, np.random.Generator(np.random.PCG64(0)))
    windows = "/".join(str(w) for w in WINDOWS_S)
    real, fitted = (" ".join(f"{dispersion(t, w):.1f}" for w in WINDOWS_S) for t in (trace.times_s, made))
    lines = [
        f"# {title}: {len(trace.times_s):,} requests in {trace.times_s[-1]:,.0f} s.",
        f"# Variance over mean of counts in windows of {windows} s: trace {real}; this fit {fitted}.",
        f"kind: {spec.kind}",
        f"rate_rps: {spec.rate_rps}",
    ]
    if spec.kind == "gamma":
        lines.append(f"cv: {spec.cv}")
    else:
        lines.append(f"mmpp_rates: {list(spec.mmpp_rates)}")
        lines.append(f"mmpp_sojourn_s: {list(spec.mmpp_sojourn_s)}")
    return "\n".join([*lines, *_source(f"{how} of {title}; scripts/fit_traces.py")]) + "\n"


def _source(text: str) -> list[str]:
    return ["source: >-", *textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ")]


def hourly_rates(path: Path) -> tuple[Floats, int]:
    """Return the mean rate of each hour of the day, (24,) requests per second, and the number of days."""
    windows: dict[int, float] = defaultdict(float)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            windows[int(float(row["start_s"]))] += float(row["rate_rps"])
    start = np.array(sorted(windows))
    rate = np.array([windows[int(s)] for s in start])
    hour = start // 3600 % 24
    return np.array([rate[hour == h].mean() for h in range(24)]), round((start[-1] - start[0] + 600) / 86400)


def schedule_preset(model: str, path: Path) -> str:
    """Return YAML text with the daily rate curve of one ServeGen model."""
    rates, days = hourly_rates(path)
    source = f"ServeGen {model} (alibaba/ServeGen, Apache-2.0)"
    lines = [
        f"# Rate of each hour of the day: {source}, all clients, mean over {days} day{'s' * (days > 1)}.",
        f"# The service itself had {rates.mean():,.1f} requests per second; set rate_rps to suit yours.",
        "kind: schedule",
        "rate_rps: 1.0",
        "period_s: 86400",
        "steps:",
        *(f"  - {{start_s: {3600 * h}, rate_rps: {r:.3f}}}" for h, r in enumerate(rates / rates.mean())),
        *_source(f"hourly means of {source}; scripts/fit_traces.py"),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Fit what is there; return 1 when nothing is."""
    parser = argparse.ArgumentParser(description="Fit arrival presets to public traces.")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with azure_llm_2023/, mooncake_fast25/, servegen/"
    )
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "aragog_env/specs/presets/arrivals")
    arguments = parser.parse_args(argv)
    presets: dict[str, str] = {}
    for name, source in TRACES.items():
        if (path := arguments.data / source.path).is_file():
            presets |= trace_presets(name, read_trace(path), source)
    for model in SERVEGEN:
        if (path := arguments.data / f"servegen/{model}_client_rates.csv.gz").is_file():
            presets[f"servegen-{model}-day"] = schedule_preset(model, path)
    arguments.to.mkdir(parents=True, exist_ok=True)
    for name, text in presets.items():
        (arguments.to / f"{name}.yaml").write_text(text, encoding="utf-8")
        print(f"{arguments.to / name}.yaml")
    if not presets:
        print(f"found none of the traces under {arguments.data}")
    return 0 if presets else 1


if __name__ == "__main__":
    raise SystemExit(main())
