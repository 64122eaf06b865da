"""Reproduce the Aragog paper's evaluation (arXiv 2511.20975, section 5) in the simulator, its numbers beside ours.

    python -m scripts.reproduce_aragog [--quick] [--out results/reproduction]

Runs all five workflow-data pairs on Qwen, Llama and mixed models at arrival rates up to past saturation, the ablations and
Fig. 4's binding strategies, on every core. Results land on disk as they come, so that an interrupted run goes on when started
again. Writes reproduction.md, reproduction.json and figures/*.png; --report-only writes them again from what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from aragog_env.errors import AragogError
from aragog_env.files import write_atomically
from aragog_env.harness.pool import usable_cores
from aragog_env.harness.progress import Progress
from aragog_env.harness.results import Results, finite, read

from .pages import write_part
from .reproduction import figures, routing, search, tables
from .reproduction.findings import collect, plain
from .reproduction.measure import Measured
from .reproduction.paper import FAMILIES
from .reproduction.plan import FULL, QUICK, Runs, Size, all_runs, jobs_for
from .running import run_missing

COMMAND = "python -m scripts.reproduce_aragog --page docs/reproduction.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer pairs, rates, requests and one seed: under 3 minutes"
    )
    parser.add_argument("--out", type=Path, help="results folder (default: results/reproduction, or -quick)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: one per core)")
    parser.add_argument(
        "--family", action="append", choices=list(FAMILIES), help="these families of models only, repeatable"
    )
    parser.add_argument("--report-only", action="store_true", help="write tables and figures from what is on disk")
    parser.add_argument("--page", type=Path, help="also write the report into this page, e.g. docs/reproduction.md")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    if options.family:
        # Figure 4 and the ablations are of Qwen.
        ablated = size.ablated if "qwen" in options.family else ()
        size = replace(size, families=tuple(dict.fromkeys(options.family)), ablated=ablated)
    out = options.out or Path("results") / ("reproduction-quick" if options.quick else "reproduction")
    try:
        data = reproduce(size, out, workers=options.workers, run=not options.report_only)
        if options.page:
            write_part(options.page, COMMAND, tables.markdown(data).partition("\n")[2])
    except AragogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {out}", file=sys.stderr)
        return 130
    return 0


def reproduce(
    size: Size,
    out: Path,
    *,
    workers: int = 1,
    run: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run what is missing and write the report; return its data.

    Args:
        size: how much is run.
        out: results folder; what is there is not run again.
        workers: processes.
        run: False only reports.
        progress: told about every run.

    Raises:
        AragogError: a run failed, or `run` is off and one is missing.
    """
    begin = time.perf_counter()
    results = execute(all_runs(size), size, out, workers, progress) if run else read(out)
    data = collect(Measured(results, size.seeds), size)
    data["routing"] = routing.overheads(data, size)
    data["search"] = search.searches(size.snapshots, out)
    write_atomically(out / "reproduction.json", json.dumps(finite(plain(data)), indent=1).encode() + b"\n")
    write_atomically(out / "reproduction.md", tables.markdown(data).encode())
    pictures = figures.save_all(data, out / "figures")
    print(tables.markdown(data))
    print(f"{out / 'reproduction.md'}, {len(pictures)} figures; {time.perf_counter() - begin:.0f} s")
    return data


def execute(runs: list[Runs], size: Size, out: Path, workers: int, progress: Progress | None) -> Results:
    """Run the episodes that are not on disk yet."""
    settings = {"seeds": list(range(size.seeds)), "size": size.name}
    jobs = jobs_for(runs, size, str(out))
    return run_missing(jobs, (run.scenario for run in runs), settings, out, workers, progress)


if __name__ == "__main__":
    sys.exit(main())
