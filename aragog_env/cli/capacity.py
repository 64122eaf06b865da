"""Sweep the arrival rate: throughput-latency curve, ceiling, and capacity under the SLO, per policy."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from . import options as shared
from .evaluate import tell_failures, tell_interrupted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ..harness.defaults import CAPACITY_SEEDS

    parser.add_argument("--scenario", "-s", default="default", metavar="NAME|PATH", help="scenario (default: default)")
    shared.add_run_options(parser, seeds=CAPACITY_SEEDS)
    parser.add_argument(
        "--rates",
        metavar="RPS,RPS,...",
        help="rates of the curve (default: fractions of each policy's ceiling)",
    )
    parser.add_argument(
        "--window",
        type=float,
        default=120.0,
        metavar="S",
        help="offer every rate for at least this long (default: 120)",
    )
    parser.add_argument(
        "--precision",
        type=float,
        default=0.05,
        metavar="X",
        help="relative width at which bisection ends (default: 0.05)",
    )
    shared.add_scenario_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..errors import SpecError
    from ..harness.capacity import SweepSettings, capacity
    from ..harness.evaluate import default_folder
    from ..harness.progress import Silent, automatic

    if options.resume and options.out is None:
        raise SpecError("--resume needs --out: the folder to go on with")
    scenario = shared.scenario_from(options.scenario, options)
    folder = Path(options.out) if options.out else default_folder(f"capacity-{scenario.name}")
    settings = SweepSettings(_rates(options.rates), options.window, precision=options.precision)
    words = shared.command_line()
    try:
        results, found = capacity(
            shared.chosen_policies(options, [scenario]),
            scenario,
            shared.chosen_seeds(options),
            settings=settings,
            out=folder,
            executor=shared.chosen_executor(options),
            progress=Silent() if options.quiet else automatic(),
            resume=options.resume,
            command=words,
        )
    except KeyboardInterrupt:
        tell_interrupted(folder, words)
        return 130
    report = None
    if not options.no_report and results.ok:
        from ..harness.report import write_report

        report = write_report(folder).html
    if options.json:
        from ..harness.results import finite

        paths = {"results": str(folder), "report": str(report) if report else None}
        print(json.dumps(finite({**paths, "policies": [asdict(p) for p in found]}), indent=2))
    else:
        if not options.quiet:
            from .output import print_capacities

            print_capacities(found, scenario.name)
        print(f"results: {folder}")
        if report is not None:
            print(f"report:  {report}")
    tell_failures(results)
    return 1 if results.failed else 0


def _rates(text: str | None) -> tuple[float, ...]:
    from ..errors import SpecError

    if text is None:
        return ()
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or min(rates) <= 0:
        raise SpecError(f"expected positive rates separated by commas, got '{text}'", where="--rates")
    return rates
