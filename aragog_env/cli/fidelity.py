"""Compare live runs with their replay: errors of TTFT, TPOT, call latency and JCT, and whether policies rank the same.

Calibrate on some recordings and compare on others. Exit code 1: a target is missed (call latency within 10% at the median and
20% at P95, JCT within 15% and 25%, the same order of policies, but for those whose means lie inside each other's interval).
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help="recordings of live runs that ended")
    parser.add_argument(
        "--calibration", "-c", required=True, metavar="NAME|PATH", help="cluster written by 'aragog calibrate'"
    )
    parser.add_argument(
        "--decide-again", action="store_true", help="also let each recording's policy decide by itself in the replay"
    )
    parser.add_argument("--out", "-o", metavar="FOLDER", help="for fidelity.json and .md (default: results/fidelity-*)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..harness import fidelity_report as report
    from ..harness.fidelity import fidelity
    from ..specs.load import load_cluster

    found = fidelity(
        options.recordings,
        load_cluster(options.calibration),
        decide_again=options.decide_again,
        progress=lambda what: print(what, file=sys.stderr),
    )
    folder = Path(options.out or Path("results") / f"fidelity-{datetime.now():%Y%m%d-%H%M%S}")
    files = report.write(found, folder)
    if options.json:
        print(json.dumps(report.as_data(found), indent=2))
    else:
        from .output import print_rows

        print_rows(f"Errors of the replay on {found.cluster}", *report.short_rows(found))
        for ranking in found.rankings:
            if len(ranking.places) > 1:
                print_rows(f"Policies on {ranking.scenario}", *report.ranking_rows(ranking))
        print("\n".join(report.sentences(found)))
        print(f"written: {', '.join(map(str, files))}")
    return 0 if all(found.met.values()) else 1
