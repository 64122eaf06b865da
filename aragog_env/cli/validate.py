"""Re-run finished runs of a results folder and compare everything but decision times bit for bit.

Exit code 0: all reproduced; 1: something differs.
"""

from __future__ import annotations

import argparse
import json
import sys

from .options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", help="results folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sample", type=positive, default=5, metavar="N", help="how many runs, drawn at random (default: 5)"
    )
    which.add_argument("--all", action="store_true", help="all runs")
    parser.add_argument("--sample-seed", type=int, default=0, metavar="SEED", help="seed of the draw")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..harness.progress import Silent, automatic
    from ..harness.validate import validate

    found = validate(
        options.folder,
        sample=None if options.all else options.sample,
        seed=options.sample_seed,
        progress=Silent() if options.quiet else automatic(),
    )
    if options.json:
        mismatches = [{"run": list(key), "differences": problems} for key, problems in found.mismatches.items()]
        print(json.dumps({"checked": len(found.checked), "mismatches": mismatches, "notes": found.notes}, indent=2))
    else:
        exact = len(found.checked) - len(found.mismatches)
        print(f"{len(found.checked)} runs re-run, {exact} reproduced exactly")
    for (policy, scenario, seed, _), problems in found.mismatches.items():
        print(f"error: {policy} on {scenario}, seed {seed}: {problems[0]}", file=sys.stderr)
        if len(problems) > 1:
            print(f"       and {len(problems) - 1} more differences", file=sys.stderr)
    if found.mismatches:
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
    return 0 if found.ok else 1
