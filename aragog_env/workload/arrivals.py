"""When requests arrive: Poisson, Gamma, Markov-modulated, scheduled and recorded arrivals, and think times.

Random numbers are drawn in units of the mean gap and scaled afterwards: Poisson, Gamma and recorded arrivals
of the same seed at another rate are the same pattern, stretched, so that rate sweeps compare like with like.
(Markov-modulated and scheduled arrivals keep the lengths of their busy and quiet times.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from ..specs.workload import ArrivalKind, ArrivalSpec
from .traces import Trace, cached_trace

Floats = NDArray[np.float64]


def draw_arrivals(spec: ArrivalSpec, n: int, rng: np.random.Generator) -> Floats:
    """Draw the arrival times of the first `n` requests of an open workload.

    Args:
        spec: any kind but ``closed``, whose arrivals depend on completions (see `draw_think_times`).
        n: number of requests.
        rng: where all randomness comes from.

    Returns:
        Seconds from the start of the episode, (n,), ascending.

    Raises:
        SpecError: fields that the kind needs are missing or contradict each other, or the trace is unusable.
    """
    if spec.kind not in _DRAW:
        raise SpecError("a closed workload has no arrival times of its own", where=_key(spec, "kind"))
    if n == 0:
        return np.zeros(0)
    return _DRAW[spec.kind](spec, n, rng)


def draw_think_times(spec: ArrivalSpec, n_per_user: int, rng: np.random.Generator) -> Floats:
    """Draw the think times of a closed workload, (users, n_per_user) seconds.

    Entry [u, j] passes before request j of user u: after the start of the episode for j = 0, else after the
    completion of the request before. With a mean of 0 everybody is back at once.
    """
    if spec.users < 1:
        raise SpecError("a closed workload needs at least one user", where=_key(spec, "users"))
    return rng.standard_exponential((spec.users, n_per_user)) * spec.think_s


def _key(spec: ArrivalSpec, key: str) -> str:
    return f"arrivals of kind '{spec.kind}', key '{key}'"


def _rate(spec: ArrivalSpec) -> float:
    if spec.rate_rps is None or spec.rate_rps <= 0:
        raise SpecError(f"arrivals of kind '{spec.kind}' need a positive 'rate_rps'", where=_key(spec, "rate_rps"))
    return spec.rate_rps


def _poisson(spec: ArrivalSpec, n: int, rng: np.random.Generator) -> Floats:
    return np.cumsum(rng.standard_exponential(n)) / _rate(spec)


def _gamma(spec: ArrivalSpec, n: int, rng: np.random.Generator) -> Floats:
    if spec.cv <= 0:
        raise SpecError("the coefficient of variation 'cv' must be positive", where=_key(spec, "cv"))
    shape = 1 / spec.cv**2
    return np.cumsum(rng.standard_gamma(shape, n)) / (shape * _rate(spec))


def _mmpp(spec: ArrivalSpec, n: int, rng: np.random.Generator) -> Floats:
    rates, sojourns = np.array(spec.mmpp_rates), np.array(spec.mmpp_sojourn_s)
    if len(rates) < 2 or len(rates) != len(sojourns):
        raise SpecError(
            "'mmpp_rates' and 'mmpp_sojourn_s' must have one entry for each of two or more states",
            where=_key(spec, "mmpp_rates"),
        )
    if (rates < 0).any() or (sojourns <= 0).any() or not rates.any():
        raise SpecError(
            "Markov-modulated arrivals need rates that are not negative, one of them positive, and positive sojourns",
            where=_key(spec, "mmpp_rates"),
        )
    # Jumps go to each other state with equal chance, so the chain visits all states equally often and the
    # share of time in a state is proportional to its sojourn. The given rates are relative: their mean over
    # time is scaled to 1.
    share = sojourns / sojourns.sum()
    rates = rates / (share @ rates) * _rate(spec)
    unit = np.cumsum(rng.standard_exponential(n))
    rng = rng.spawn(1)[0]  # so that the states do not depend on n: a longer episode begins like a shorter one
    state = int(rng.choice(len(rates), p=share))  # stationary start; exponential sojourns have no memory
    times, mass = [np.zeros(1)], [np.zeros(1)]
    while mass[-1][-1] < unit[-1]:
        states = _jumps(state, len(rates), 256, rng)
        length = rng.standard_exponential(256) * sojourns[states]
        times.append(times[-1][-1] + np.cumsum(length))
        mass.append(mass[-1][-1] + np.cumsum(length * rates[states]))
        state = int(_jumps(int(states[-1]), len(rates), 2, rng)[1])
    return _invert(unit, np.concatenate(times), np.concatenate(mass))


def _jumps(start: int, n_states: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `n` states of a chain that always jumps to another state, each with equal chance."""
    steps = rng.integers(1, n_states, n)
    steps[0] = 0
    states: NDArray[np.int64] = (start + np.cumsum(steps)) % n_states
    return states


def _schedule(spec: ArrivalSpec, n: int, rng: np.random.Generator) -> Floats:
    start, rate = schedule_steps(spec)
    unit = np.cumsum(rng.standard_exponential(n))
    if spec.period_s is None:
        edges, rates = start, rate
    else:
        mass_of_period = float(np.diff(np.append(start, spec.period_s)) @ rate)
        periods = int(unit[-1] // mass_of_period) + 1
        edges = (np.arange(periods)[:, None] * spec.period_s + start).ravel()
        rates = np.tile(rate, periods)
    mass = np.concatenate([[0.0], np.cumsum(np.diff(edges) * rates[:-1])])
    if mass[-1] < unit[-1]:  # the last rate lasts as long as it takes
        if rates[-1] == 0:
            raise SpecError(
                f"the schedule ends with rate 0 after {mass[-1]:.0f} expected requests, but {n} are needed; "
                "set 'period_s' to repeat it, or end with a positive rate",
                where=_key(spec, "steps"),
            )
        edges = np.append(edges, edges[-1] + (unit[-1] - mass[-1]) / rates[-1] + 1.0)
        mass = np.append(mass, mass[-1] + (edges[-1] - edges[-2]) * rates[-1])
    return _invert(unit, edges, mass)


def schedule_steps(spec: ArrivalSpec) -> tuple[Floats, Floats]:
    """Return (start_s, rate_rps) of a schedule's steps, scaled to `rate_rps`, starting at 0.

    The mean that `rate_rps` sets is over one period. Without a period it is over the steps, the last of which
    counts as long as the one before it.
    """
    start = np.array([step.start_s for step in spec.steps], dtype=np.float64)
    rate = np.array([step.rate_rps for step in spec.steps], dtype=np.float64)
    if not len(start):
        raise SpecError("a schedule needs at least one step", where=_key(spec, "steps"))
    if (np.diff(start) <= 0).any() or (rate < 0).any():
        raise SpecError("steps need ascending 'start_s' and rates that are not negative", where=_key(spec, "steps"))
    if spec.period_s is not None and spec.period_s <= start[-1]:
        raise SpecError("'period_s' must be longer than the start of the last step", where=_key(spec, "period_s"))
    if start[0] > 0:  # nothing arrives before the first step
        start, rate = np.append(0.0, start), np.append(0.0, rate)
    last = (
        spec.period_s - start[-1] if spec.period_s is not None else (start[-1] - start[-2] if len(start) > 1 else 1.0)
    )
    length = np.append(np.diff(start), last)
    mean = float(length @ rate / length.sum())
    if mean == 0:
        raise SpecError("a schedule needs at least one positive rate", where=_key(spec, "steps"))
    return start, rate * (spec.rate_rps / mean if spec.rate_rps is not None else 1.0)


def _invert(unit: Floats, times: Floats, mass: Floats) -> Floats:
    """Return when the integral of a piecewise constant rate reaches `unit`: exact, no thinning."""
    keep = np.append(True, np.diff(mass) > 0)
    # A pause is a flat part; what follows it must start at its end, so the last of equal masses counts as a
    # start.
    right = np.append(np.flatnonzero(keep)[1:] - 1, len(mass) - 1)
    low, high = times[right], times[keep]
    segment = np.clip(np.searchsorted(mass[keep], unit, side="left"), 1, None)
    gone = unit - mass[keep][segment - 1]
    span = mass[keep][segment] - mass[keep][segment - 1]
    return np.asarray(low[segment - 1] + gone / span * (high[segment] - low[segment - 1]))


def _trace(spec: ArrivalSpec, n: int, rng: np.random.Generator) -> Floats:
    if spec.path is None:
        raise SpecError("arrivals of kind 'trace' need the 'path' of a trace file", where=_key(spec, "path"))
    trace = cached_trace(Path(spec.path), spec.format)
    return replay(trace, n, rng if spec.random_offset else None, rate_rps=spec.rate_rps, start_s=spec.start_s)


def replay(
    trace: Trace,
    n: int,
    rng: np.random.Generator | None,
    *,
    rate_rps: float | None = None,
    start_s: float = 0.0,
) -> Floats:
    """Return `n` arrival times from a trace that is treated as a circle.

    The circle is as long as the trace and one mean gap. With `rng`, the episode starts at a uniformly random
    moment of it; without, at the first request. When more requests are asked for than the trace has, it
    starts over. `rate_rps` stretches time such that the mean rate of the *whole* trace is `rate_rps`: a short
    episode may meet a busy or a quiet part.
    """
    times = trace.times_s[np.searchsorted(trace.times_s, start_s) :]
    if len(times) < 2 or times[-1] == times[0]:
        raise SpecError(
            f"after start_s = {start_s:g} the trace has {len(times)} requests; at least two at different "
            "times are needed",
            where=trace.source,
        )
    times = times - times[0]
    circle = times[-1] * len(times) / (len(times) - 1)
    offset = rng.uniform(0.0, circle) if rng is not None else 0.0
    first = int(np.searchsorted(times, offset))
    index = first + np.arange(n)
    result = times[index % len(times)] + index // len(times) * circle - offset
    return np.asarray(result * (len(times) / circle / rate_rps if rate_rps is not None else 1.0))


_DRAW: Final[dict[ArrivalKind, Callable[[ArrivalSpec, int, np.random.Generator], Floats]]] = {
    "poisson": _poisson,
    "gamma": _gamma,
    "mmpp": _mmpp,
    "schedule": _schedule,
    "trace": _trace,
}
