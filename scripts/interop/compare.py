"""What the scripts of this folder share: options, and the table in which the trained policy stands beside others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from aragog_env import evaluate, load_scenario
from aragog_env.cli.output import print_summary
from aragog_env.harness.results import Results
from aragog_env.harness.summary import summarise
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario

BESIDE = ("aragog", "least_loaded")
SHOWN = ("jct_mean_s", "jct_p95_s", "slo_attainment", "accuracy")


def options(name: str, steps: int, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a script; `scenario` is loaded, `out` is a new folder."""
    parser = argparse.ArgumentParser(prog=f"python -m scripts.interop.{name}")
    parser.add_argument("--scenario", default="default", help="name or file (default: default)")
    parser.add_argument("--requests", type=int, default=100, help="per episode (default: 100)")
    parser.add_argument("--steps", type=int, default=steps, help=f"decisions to train for (default: {steps:,})")
    parser.add_argument("--seeds", type=int, default=3, help="of the comparison (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help=f"new folder (default: runs/{name})")
    parsed = parser.parse_args(arguments)
    if parsed.out.exists():
        parser.error(f"'{parsed.out}' exists already; give another --out")
    parsed.out.mkdir(parents=True)
    parsed.scenario = override(load_scenario(parsed.scenario), requests=parsed.requests, warmup_requests=0)
    return parsed


def compare(policy: str, scenario: Scenario, seeds: int, out: Path) -> Results:
    """Evaluate a policy beside two others on the same traffic, with the shared harness, and print the table."""
    results = evaluate([policy, *BESIDE], scenario, seeds, out=out / "results", workers=1)
    for table in summarise(results, SHOWN):
        print_summary(table, SHOWN)
    return results
