"""At which price of accuracy is the rule fastest and still right about as often as Aragog? Found on traffic of its own.

Two numbers per pair, the same at all loads: what a point of expected loss costs, and the highest loss that is considered.
The second matters where the router is often wrong about the question: of many configurations one then always seems to lose
little. They are found at the heaviest load, where time is dearest and accuracy suffers most. Accuracies are expected
ones (the mean probability that the answer is right), without the luck of grading.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Final

from aragog_env.harness.jobs import Job
from aragog_env.harness.results import Results

from .plan import PRICED, REFERENCE, Case, Ceilings, Size, at_load, cases

PRICES_S: Final = (0.02, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
MOST_LOSSES: Final = (1.5, 3.0, 6.0, 20.0)
"""What is tried, each with each."""
MOST_POINTS_LOST: Final = 0.6
"""Against Aragog: less than the point that is allowed, since the comparison is on other traffic."""
SEED: Final = 600
_TRIALS: Final = tuple(product(PRICES_S, MOST_LOSSES))


def jobs(size: Size, ceilings: Ceilings, folder: Path) -> Iterator[Job]:
    """Yield one episode of Aragog and one per trial, for every pair."""
    for case in cases(size):
        yield from _jobs(case, size, ceilings, folder)


def choose(results: Results, size: Size, ceilings: Ceilings, folder: Path) -> dict[str, tuple[float, float]]:
    """Return `point_s` and `most_loss` per pair: the fastest that lose less than `MOST_POINTS_LOST`, or lose least."""
    chosen: dict[str, tuple[float, float]] = {}
    for case in cases(size):
        found = [_found(results, job) for job in _jobs(case, size, ceilings, folder)]
        least = found[0][1] - MOST_POINTS_LOST / 100
        trials = list(zip(_TRIALS, found[1:], strict=True))
        enough = [(jct_s, trial) for trial, (jct_s, accuracy) in trials if accuracy >= least]
        best = min(enough)[1] if enough else max(trials, key=lambda trial: trial[1][1])[0]
        chosen.setdefault(case.pair, best)
    return chosen


def _jobs(case: Case, size: Size, ceilings: Ceilings, folder: Path) -> Iterator[Job]:
    scenario = at_load(case, size, max(size.loads), ceilings)
    names = [case.policy(REFERENCE, folder)]
    names += [replace(case, point_s=price, most_loss=most).policy(PRICED, folder) for price, most in _TRIALS]
    yield from (Job(name, scenario, SEED, str(folder)) for name in names)


def _found(results: Results, job: Job) -> tuple[float, float]:
    """Return mean completion time and expected accuracy."""
    run = results.get(job.key)
    assert run is not None
    return float(run.metrics["jct_mean_s"]), float(run.metrics["accuracy_expected"])
