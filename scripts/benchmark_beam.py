"""How fast a scheduling round of Aragog is, on one core: ``python -m scripts.benchmark_beam [--quick]``.

Times the compiled beam search against the plain-Python one, which gives the same answer, and against the exhaustive one, all
in this run. The paper reports 4.1 ms per round for B = 4 (arXiv 2511.20975, Fig. 10). Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from aragog_env.outcomes import configuration_digits
from policies.aragog.beam import beam_search
from policies.aragog.exact import exact_search
from policies.aragog.narrowing import pack
from policies.aragog.plain import plain_search
from policies.aragog.round import Round, Settings

CALLS = 64
MODELS = 3
STAGES = 5
PAPER_MS = 4.1


def random_round(
    rng: np.random.Generator,
    calls: int = CALLS,
    *,
    stages: int = STAGES,
    models: int = MODELS,
    replicas: int = MODELS,
    most_free: int = 40,
    density: float = 0.3,
) -> Round:
    """Return a made-up round: requests at random stages with random viable sets, half of them with parallel stages.

    Args:
        rng: randomness.
        calls: ready calls.
        stages: LLM stages of the workflow, so that there are models ** stages configurations.
        models: number of models.
        replicas: number of engines, at least one per model.
        most_free: free slots of an engine are drawn from 0 to this number.
        density: mean share of configurations that are viable.
    """
    digits = configuration_digits(models, stages)
    words = -(-len(digits) // 64)
    masks = np.stack([pack(digits[:, k] == np.arange(models)[:, None], words) for k in range(stages)])
    request, kind = np.zeros(calls, np.int32), np.zeros(calls, np.int32)
    remaining = np.zeros((calls, words), np.uint64)
    i = number = 0
    while i < calls:
        ready = rng.permutation(stages)[: rng.integers(1, min(3, stages) + 1)][: calls - i]
        viable = rng.random(len(digits)) < 2 * density * rng.random()
        viable[-1] = True
        request[i : i + len(ready)], kind[i : i + len(ready)] = number, ready
        remaining[i : i + len(ready)] = pack(viable, words)
        i, number = i + len(ready), number + 1
    extra = rng.integers(0, models, replicas - models)
    occupancy = rng.integers(0, 10, replicas).astype(np.int32)
    free = rng.integers(0, most_free + 1, replicas).astype(np.int32)
    up = rng.random(replicas) < 0.95
    falling = -np.sort(-rng.random((replicas, int((occupancy + free).max()) + 1)), axis=1)
    return Round(
        request=request,
        kind=kind,
        remaining=remaining,
        allowed=np.tile(up, (calls, 1)),
        masks=masks,
        route_model=np.sort(np.concatenate([np.arange(models), extra])).astype(np.int32),
        occupancy=occupancy,
        free=free,
        # Rounded, so that gains tie now and then, as they do on the straight parts of a profile.
        gain_rps=np.round(falling, int(rng.integers(1, 5))),
    )


def roomy_round(seed: int, calls: int = CALLS) -> Round:
    """Return a round in which no engine runs out of slots: every call is placed, the most work a search can have."""
    rng = np.random.default_rng(seed)
    drawn = random_round(rng, calls, most_free=1)
    gain = -np.sort(-rng.random((MODELS, calls + 1)), axis=1)
    none = np.zeros(MODELS, np.int32)
    return drawn._replace(occupancy=none, free=none + calls, gain_rps=gain, allowed=np.ones((calls, MODELS), np.bool_))


def median_ms(search: Callable[[Round], object], rounds: list[Round]) -> float:
    """Return the median milliseconds of a search over `rounds`, after one that does not count."""
    search(rounds[0])
    times = []
    for round_ in rounds:
        begin = time.perf_counter()
        search(round_)
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1e3


def beam_round_ms(width: int = 4, calls: int = CALLS, repeats: int = 200) -> float:
    """Return the median milliseconds of a compiled round with `calls` ready calls and 3 models, slots for all of them."""
    rounds = [roomy_round(seed, calls) for seed in range(repeats)]
    return median_ms(lambda r: beam_search(r, Settings(width)), rounds)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    repeats = 50 if parser.parse_args().quick else 400
    table = Table(
        title=f"one round: {CALLS} ready calls, {MODELS} models, {MODELS**STAGES} configurations, slots for all"
    )
    for column in ("search", "median ms", "vs plain Python"):
        table.add_column(column, justify="left" if column == "search" else "right")
    few = [roomy_round(seed) for seed in range(10)]
    for width in (1, 2, 4, 8):
        fast = beam_round_ms(width, repeats=repeats)
        slow = median_ms(lambda r, w=width: plain_search(r, Settings(w)), few)  # type: ignore[misc]
        table.add_row(f"beam, B = {width}" + (" (greedy)" if width == 1 else ""), f"{fast:.3f}", f"{slow / fast:,.0f}x")
    table.add_row("exhaustive", f"{median_ms(exact_search, few[:5]):,.0f}", "")
    Console(width=100).print(table)
    print(f"the paper's scheduler: {PAPER_MS} ms per round at B = 4")


if __name__ == "__main__":
    main()
