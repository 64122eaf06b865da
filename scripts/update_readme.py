"""Compute the results tables and the picture of README.md again: `python -m scripts.update_readme`.

    python -m scripts.update_readme --results results/default-20260101-120000   # from a folder that is there
    python -m scripts.update_readme --live results/live                         # the table of the live section

Runs `aragog evaluate` with its defaults, writes the table between two marker comments of the README and
puts the Gantt chart of one policy under docs/images. The live table comes from the commands of its section.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aragog_env.harness.evaluate import default_folder, evaluate
from aragog_env.harness.metrics import counted
from aragog_env.harness.progress import automatic
from aragog_env.harness.report import write_report
from aragog_env.harness.results import Results, read
from aragog_env.harness.statistics import Estimate, bootstrap
from aragog_env.harness.summary import format_interval, format_value, heading, summarise

from .arithmetic.measuring import wilson
from .pages import ROOT, write_part

COMMAND: Final = "python -m scripts.update_readme"
LIVE_COMMAND: Final = "python -m scripts.update_readme --live results/live"
COLUMNS: Final = ("jct_mean_s", "jct_p95_s", "slo_attainment", "accuracy", "gpu_seconds_per_request")
PICTURED: Final = "least_loaded"
PICTURE: Final = Path("docs/images/gantt.png")


def results_text(results: Results) -> str:
    """Return the table of the first scenario as Markdown, with what one must know to read it."""
    table = summarise(results, COLUMNS)[0]
    lines = [
        "| Policy | " + " | ".join(heading(name) for name in COLUMNS) + " |",
        "| :-- |" + " --: |" * len(COLUMNS),
    ]
    for row in table.rows:
        cells = [_shown(name, row.cells[name].estimate) for name in COLUMNS]
        lines.append(f"| `{row.policy}` | " + " | ".join(cells) + " |")
    machine = results.manifest["sessions"][-1]["machine"]
    seeds = max(row.seeds for row in table.rows)
    lines += [
        "",
        f"Scenario `{table.scenario}`, {seeds} seeds per policy, {table.requests:,} counted requests in all; "
        f"mean over seeds with 95% bootstrap interval. Simulated on {machine['cpu']}, {machine['cores']} "
        "cores. Accuracies come from synthetic outcome tables.",
    ]
    return "\n".join(lines)


def live_text(results: Results) -> str:
    """Return the runs on real servers as a Markdown table, a row each.

    One run per row, so intervals are over its requests: bootstrap for the mean, Wilson's for the share of right answers.
    """
    lines = ["| Policy | Rate (req/s) | JCT mean (s) | JCT P95 (s) | Right answers (%) |", "| :-- |" + " --: |" * 4]
    for run in results.ok:
        requests = counted(results.log(run))
        right = (requests["correct"] > 0).sum(keepdims=True)
        low, high = wilson(right, len(requests))
        cells = [
            f"{run.config['rate_rps']:g}",
            _shown("jct_mean_s", bootstrap(requests["finish_s"] - requests["arrival_s"])),
            format_value("jct_p95_s", run.metrics["jct_p95_s"]),
            _shown("accuracy", Estimate(float(right[0]) / len(requests), float(low[0]), float(high[0]), len(requests))),
        ]
        lines.append(f"| `{run.policy}` | " + " | ".join(cells) + " |")
    machine = results.manifest["sessions"][-1]["machine"]
    counts = {int(run.metrics["requests"]) for run in results.ok}
    lines += [
        "",
        f"Scenario `{results.ok[0].scenario.partition('@')[0]}`, one run and {min(counts)} counted requests per row, seed "
        f"{results.ok[0].seed}; 95% intervals over requests. Measured on {machine['cpu']}, {machine['cores']} cores for "
        "three vLLM servers and the client; answers are graded.",
    ]
    return "\n".join(lines)


def _shown(name: str, estimate: Estimate) -> str:
    return f"{format_value(name, estimate.value)} {format_interval(name, estimate)}".strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Update the README and the picture; return the exit code."""
    parser = argparse.ArgumentParser(description="Compute the README's table and picture again.")
    parser.add_argument("--results", type=Path, help="take them from this folder of `aragog evaluate`")
    parser.add_argument(
        "--live", type=Path, help="only the live table, from this folder of `aragog evaluate --backend live`"
    )
    options = parser.parse_args(argv)
    path = ROOT / "README.md"
    if options.live:
        write_part(path, LIVE_COMMAND, live_text(read(options.live)))
        print(f"updated {path} from {options.live}")
        return 0
    if options.results:
        results = read(options.results)
    else:
        results = evaluate(out=default_folder("readme"), progress=automatic())
    write_report(results.folder)
    scenario = results.runs[0].scenario
    write_part(path, COMMAND, results_text(results))
    (ROOT / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(results.folder / "figures" / f"gantt-{scenario}-{PICTURED}.png", ROOT / PICTURE)
    print(f"updated {path} and {PICTURE} from {results.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
