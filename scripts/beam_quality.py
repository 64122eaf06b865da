"""How good the beam's rounds are, as in the paper's Fig. 10: ``python -m scripts.beam_quality [--snapshots N]``.

Rounds are recorded while Aragog with oracle sets runs a scenario at a rate above its capacity. Each search then answers the
same rounds; utilization (U) and flexibility (F) are relative to the exhaustive search, averaged over rounds. Rounds without a
choice (one ready call, or no free slot) are left out, and queues are cut after the first calls so that the exhaustive search
is possible.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from aragog_env.backends.sim import SimBackend
from aragog_env.harness.rollout import run_episode
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from policies.aragog.beam import beam_search
from policies.aragog.exact import exact_search
from policies.aragog.policy import AragogPolicy
from policies.aragog.round import Assignment, Round, Settings

SNAPSHOTS = 1000
MOST_CALLS = 32
"""Ready calls of a snapshot: the first of the queue."""
POLLS_S = (0.0, 0.1)
"""Rounds at every event, where one slot is free as a rule, and ten times a second, where several are."""
SOURCES = (
    ("default", 40.0, 800),
    ("aragog-voting_mmlu_pro-qwen", 40.0, 800),
    ("aragog-self_refine_humaneval-llama", 120.0, 2000),
)
"""Scenario, an arrival rate above what its cluster can serve, requests."""
PAPER = {"greedy": (78.4, 75.5), "beam, B = 4": (98.1, 92.2), "exhaustive": (100.0, 100.0)}


def live_rounds(scenario: str, rate_rps: float, requests: int, poll_s: float = 0.0, seed: int = 0) -> list[Round]:
    """Return the rounds of one episode in which there was something to choose, cut to the first `MOST_CALLS` calls."""
    backend = SimBackend(override(load_scenario(scenario), rate_rps=rate_rps, requests=requests, warmup_requests=0))
    policy = AragogPolicy("oracle", poll_s=poll_s)
    policy.record = []
    run_episode(policy, "aragog:oracle", backend, seed)
    return [cut(r, MOST_CALLS) for r in policy.record if len(r.request) > 1 and r.free.max() > 0]


def cut(round_: Round, calls: int) -> Round:
    """Return the round with the first `calls` calls only."""
    front = {name: getattr(round_, name)[:calls] for name in ("request", "kind", "remaining", "allowed")}
    return round_._replace(**front)


def snapshots(count: int, poll_s: float, seed: int = 0) -> list[Round]:
    """Return `count` rounds, drawn evenly from as many episodes of `SOURCES` as it takes."""
    rng = np.random.default_rng(seed)
    result: list[Round] = []
    for k, source in enumerate(SOURCES):
        wanted = (count * (k + 1)) // len(SOURCES) - (count * k) // len(SOURCES)
        rounds: list[Round] = []
        episode = 0
        while len(rounds) < wanted:
            rounds += live_rounds(*source, poll_s, seed=seed + episode)
            episode += 1
        result += [rounds[i] for i in rng.permutation(len(rounds))[:wanted]]
    return result


@dataclass(frozen=True)
class Quality:
    """One search over n rounds, relative to the exhaustive search."""

    utilization: NDArray[np.float64]  # (n,)
    flexibility: NDArray[np.float64]  # (n,)
    seconds: NDArray[np.float64]  # (n,)


def compare(rounds: Sequence[Round], widths: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Quality]:
    """Return the quality of greedy, beams and the exhaustive search; rounds in which nothing can be gained are left out."""
    exact = [_timed(partial(exact_search, r)) for r in rounds]
    useful = [i for i, (best, _) in enumerate(exact) if best.gain_rps > 0]
    result = {}
    for width in widths:
        beam_search(rounds[0], Settings(width))
        found = [_timed(partial(beam_search, rounds[i], Settings(width))) for i in useful]
        result["greedy" if width == 1 else f"beam, B = {width}"] = _quality(found, [exact[i] for i in useful])
    result["exhaustive"] = _quality([exact[i] for i in useful], [exact[i] for i in useful])
    return result


def _timed(search: Callable[[], Assignment]) -> tuple[Assignment, float]:
    begin = time.perf_counter()
    found = search()
    return found, time.perf_counter() - begin


def _quality(found: Sequence[tuple[Assignment, float]], best: Sequence[tuple[Assignment, float]]) -> Quality:
    return Quality(
        utilization=np.array([a.gain_rps / b.gain_rps for (a, _), (b, _) in zip(found, best, strict=True)]),
        flexibility=np.array([a.flexibility / b.flexibility for (a, _), (b, _) in zip(found, best, strict=True)]),
        seconds=np.array([seconds for _, seconds in found]),
    )


def main() -> None:
    """Record, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS, help=f"rounds per table (default: {SNAPSHOTS})")
    count = parser.parse_args().snapshots
    for poll_s in POLLS_S:
        rounds = snapshots(count, poll_s)
        calls = np.median([len(r.request) for r in rounds])
        slots = np.median([np.maximum(r.free, 0).sum() for r in rounds])
        when = f"every {poll_s:g} s" if poll_s else "at every event"
        table = Table(title=f"{len(rounds)} live rounds, held {when}; median {calls:.0f} calls, {slots:.0f} free slots")
        for column in ("search", "U %", "worst U %", "U < 100 %", "F %", "median ms", "paper U %", "paper F %"):
            table.add_column(column, justify="left" if column == "search" else "right")
        for name, q in compare(rounds).items():
            paper = [f"{x:.1f}" for x in PAPER.get(name, ())] or ["", ""]
            u = 100 * q.utilization
            below = f"{100 * np.mean(q.utilization < 1 - 1e-9):.1f}"
            cells = (f"{u.mean():.2f}", f"{u.min():.1f}", below, f"{100 * q.flexibility.mean():.1f}")
            table.add_row(name, *cells, f"{1e3 * np.median(q.seconds):.3f}", *paper)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
