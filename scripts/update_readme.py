"""Compute the results table and the picture of README.md again: `python -m scripts.update_readme`.

    python -m scripts.update_readme --results results/default-20260101-120000   # from a folder that is there

Runs `aragog evaluate` with its defaults, writes the table between the two marker comments of the README and
puts the Gantt chart of one policy under docs/images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aragog_env.errors import SpecError
from aragog_env.harness.evaluate import default_folder, evaluate
from aragog_env.harness.progress import automatic
from aragog_env.harness.report import write_report
from aragog_env.harness.results import Results, read
from aragog_env.harness.summary import Cell, format_interval, format_value, heading, summarise

ROOT: Final = Path(__file__).resolve().parent.parent
BEGIN: Final = "<!-- results: python -m scripts.update_readme -->"
END: Final = "<!-- end of results -->"
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
        cells = [_cell(name, row.cells[name]) for name in COLUMNS]
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


def _cell(name: str, cell: Cell) -> str:
    return f"{format_value(name, cell.estimate.value)} {format_interval(name, cell.estimate)}".strip()


def replace_results(readme: str, text: str) -> str:
    """Return the README with `text` between the two markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SpecError(f"README.md lacks the markers '{BEGIN}' and '{END}'")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Update the README and the picture; return the exit code."""
    parser = argparse.ArgumentParser(description="Compute the README's table and picture again.")
    parser.add_argument("--results", type=Path, help="take them from this folder of `aragog evaluate`")
    options = parser.parse_args(argv)
    if options.results:
        results = read(options.results)
    else:
        results = evaluate(out=default_folder("readme"), progress=automatic())
    write_report(results.folder)
    scenario = results.runs[0].scenario
    path = ROOT / "README.md"
    path.write_text(replace_results(path.read_text(), results_text(results)))
    (ROOT / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(results.folder / "figures" / f"gantt-{scenario}-{PICTURED}.png", ROOT / PICTURE)
    print(f"updated {path} and {PICTURE} from {results.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
