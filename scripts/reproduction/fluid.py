"""What no scheduler can exceed: the fluid limit of a cluster under given knowledge, from linear programming duality.

A request that runs configuration c takes so many engine-seconds of each model. In the long run no engine serves more than one
second per second, so the highest rate is 1 / min over mixes of configurations of the busiest engine's seconds per request.
Any prices w of the engines (summing to 1) bound it: a request costs at least its cheapest configuration under w. The same
with a price on accuracy bounds the rate at a given loss. Every bound here is valid; the best of some dozens is reported.

Engine-seconds come from the offline profile alone (throughput at saturation, split into reading and writing tokens), so the
limit ignores queues, latency and the batch sizes that engines really reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import CompiledScenario, compile_scenario
from aragog_env.harness.profile import closed_loop_rps, draw_calls, profile_scenario
from aragog_env.outcomes import OutcomeTable, configuration_digits
from aragog_env.specs.scenario import Scenario

COARSE: Final = 6
"""Prices are first tried in multiples of 1 / COARSE."""
FINE: Final = 0.01
HALVINGS: Final = 18
_CALLS: Final = 4000


def engine_seconds(scenario: Scenario) -> tuple[OutcomeTable, NDArray[np.float64]]:
    """Return the outcome table of a scenario with one workflow, and the engine-seconds of each query under each configuration.

    Returns:
        The table, and (Q, C, M): seconds of model m's engines (all replicas together count as one), at saturation.
    """
    compiled = compile_scenario(scenario)
    (table,) = compiled.outcomes
    wt, llm = compiled.workflow, list(table.llm_nodes)
    rows = wt.first_row[0] + np.arange(table.queries)
    digits = configuration_digits(len(table.models), len(llm))  # (C, n_llm)
    per_token = _token_seconds(compiled, table)
    written = wt.output[rows].astype(np.float64)  # (Q, N, M)
    seconds = np.zeros((table.queries, len(digits), len(table.models)))
    for slot, node in enumerate(llm):
        read = np.repeat(wt.own_prompt[rows, node].astype(np.float64)[:, None], len(digits), axis=1)
        for earlier in range(node):
            if wt.context[0, node] >> earlier & 1:
                column = digits[:, llm.index(earlier)] if earlier in llm else np.zeros(len(digits), np.int64)
                read += written[:, earlier, :][:, column]
        for model in range(len(table.models)):
            runs = (digits[:, slot] == model) & ((wt.skipped[rows, node][:, None] >> model & 1) == 0)
            prompt_s, output_s = per_token[model]
            seconds[:, :, model] += runs * (prompt_s * read + output_s * written[:, node, model][:, None])
    return table, seconds


def _token_seconds(compiled: CompiledScenario, table: OutcomeTable) -> NDArray[np.float64]:
    """Return seconds per prompt token and per output token of each model's engines at saturation, (M, 2).

    From two closed loops, one with the workflow's calls and one with half their output.
    """
    rate_rps, single = np.zeros(len(table.models)), np.zeros((len(table.models), 2))
    for entry in profile_scenario(compiled.scenario).replicas:
        model = table.models.index(entry.model)
        route = [r.name for r in compiled.replicas].index(entry.names[0])
        calls = draw_calls(compiled, route, _CALLS)
        half = replace(calls, output=np.maximum(1, calls.output // 2))
        load = entry.saturation()
        whole_s, half_s = (1 / closed_loop_rps(compiled, route, sample, load) for sample in (calls, half))
        saved = float(calls.output.mean() - half.output.mean())
        output_s = max(0.0, whole_s - half_s) / saved
        prompt_s = max(0.0, whole_s - output_s * float(calls.output.mean())) / float(calls.prompt.mean())
        # The profile's curve ends at the engine's own limit, a little above its saturation point.
        scale = 1 / (whole_s * entry.curve_rps()[-1])
        single[model] = np.array([prompt_s, output_s]) * scale
        rate_rps[model] += len(entry.names)
    return single / rate_rps[:, None]


def fixed_rps(seconds: NDArray[np.float64], choice: NDArray[np.int64]) -> float:
    """Return the highest rate when query q always runs configuration choice[q]."""
    return float(1 / seconds[np.arange(len(seconds)), choice].mean(axis=0).max())


def limit_rps(seconds: NDArray[np.float64], allowed: NDArray[np.bool_]) -> float:
    """Return an upper bound on the rate when query q runs any configuration of `allowed` (Q, C)."""
    barred = np.where(allowed, 0.0, np.inf)
    return _tightest(lambda prices: float((seconds @ prices + barred).min(axis=1).mean()), seconds.shape[2])


def limit_within_rps(seconds: NDArray[np.float64], gap: NDArray[np.float64], most: float) -> float:
    """Return an upper bound on the rate at a mean accuracy loss of at most `most`, when losses `gap` (Q, C) are known.

    A single mean query instead of all of them means that nothing is known of a query.
    """
    return _tightest(lambda prices: _cost_within(seconds @ prices, gap, most), seconds.shape[2])


def _tightest(bound: Callable[[NDArray[np.float64]], float], models: int) -> float:
    """Return 1 / the maximum of a concave function of prices: a coarse grid, then moves between pairs of prices."""
    best, prices = max(
        ((bound(start), tuple(start)) for start in _grid(models)), key=lambda found: (round(found[0], 12), found[1])
    )
    current, step = np.array(prices), 1 / (2 * COARSE)
    while step > FINE:
        moved = False
        for taken in range(models):
            for given in range(models):
                trial = current.copy()
                trial[taken], trial[given] = trial[taken] - step, trial[given] + step
                if taken != given and trial[taken] >= 0 and (value := bound(trial)) > best:
                    best, current, moved = value, trial, True
        step = step if moved else step / 2
    return 1 / best


def _grid(models: int) -> list[NDArray[np.float64]]:
    """Return the prices that are multiples of 1 / COARSE."""
    counts = [c for c in np.ndindex(*([COARSE + 1] * models)) if sum(c) == COARSE]
    return [np.array(c, np.float64) / COARSE for c in counts]


def _cost_within(cost: NDArray[np.float64], gap: NDArray[np.float64], most: float) -> float:
    """Return the least mean cost at a loss of at most `most`, from below: the best price of accuracy, by bisection."""
    rows, low, high = np.arange(len(cost)), 0.0, 1e3 * float(cost.mean())
    best = float(cost.min(axis=1).mean())
    for _ in range(HALVINGS):
        price = (low + high) / 2
        total = cost + price * gap
        chosen = total.argmin(axis=1)
        best = max(best, float(total[rows, chosen].mean()) - price * most)
        if gap[rows, chosen].mean() > most:
            low = price
        else:
            high = price
    return best
