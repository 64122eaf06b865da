"""At which price of accuracy is the rule right as often as Aragog? Found by trying, on traffic that no comparison uses.

The price is one number per pair, the same at all loads. It is found at the heaviest one, where time is dearest and accuracy
suffers most. Accuracies are expected ones (the mean probability that the answer is right), without the luck of grading.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from aragog_env.harness.jobs import Job
from aragog_env.harness.results import Results

from .plan import PRICED, REFERENCE, Case, Ceilings, Size, at_load, cases

PRICES_S: Final = (0.15, 0.3, 0.6, 1.0, 1.5, 2.2, 3.2, 4.5, 6.5, 9.0, 13.0, 20.0)
"""Those that are tried."""
MOST_POINTS_LOST: Final = 0.5
"""Against Aragog: half of what is allowed, since the comparison is on other traffic."""
SEED: Final = 600


def jobs(size: Size, ceilings: Ceilings, folder: Path) -> Iterator[Job]:
    """Yield one episode of Aragog and one per price, for every pair."""
    for case in cases(size):
        yield from _jobs(case, size, ceilings, folder)


def choose(results: Results, size: Size, ceilings: Ceilings, folder: Path) -> dict[str, float]:
    """Return per pair the lowest price at which the rule loses less than `MOST_POINTS_LOST`, or the highest."""
    chosen: dict[str, float] = {}
    for case in cases(size):
        mine = [_accuracy(results, job) for job in _jobs(case, size, ceilings, folder)]
        least = mine[0] - MOST_POINTS_LOST / 100
        enough = [price for price, accuracy in zip(PRICES_S, mine[1:], strict=True) if accuracy >= least]
        chosen.setdefault(case.pair, min(enough, default=PRICES_S[-1]))
    return chosen


def _jobs(case: Case, size: Size, ceilings: Ceilings, folder: Path) -> Iterator[Job]:
    scenario = at_load(case, size, max(size.loads), ceilings)
    names = [case.policy(REFERENCE, folder)]
    names += [replace(case, point_s=price).policy(PRICED, folder) for price in PRICES_S]
    yield from (Job(name, scenario, SEED, str(folder)) for name in names)


def _accuracy(results: Results, job: Job) -> float:
    run = results.get(job.key)
    assert run is not None
    return float(run.metrics["accuracy_expected"])
