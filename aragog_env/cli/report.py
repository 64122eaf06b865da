"""Write the report of results: report.html (one file), report.md and figures/*.png in their folder.

Of several folders, or with training runs among them, also a comparison: one page with the policies of all of them side by side
and the learning curves. --wandb copies results, training runs and the comparison to Weights & Biases.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "folder",
        nargs="+",
        help="results of 'aragog evaluate' or 'aragog capacity', or runs of 'aragog train' and grids of them",
    )
    parser.add_argument(
        "--capacity",
        action="append",
        default=[],
        metavar="FOLDER",
        help="show the curves of this rate sweep too, repeatable",
    )
    parser.add_argument(
        "--baseline", metavar="POLICY", help="policy that differences are taken to (default: round_robin)"
    )
    parser.add_argument(
        "--out", "-o", metavar="FOLDER", help="folder of the comparison (default: results/comparison-<date-time>)"
    )
    parser.add_argument(
        "--wandb", choices=("off", "offline", "online"), default="off", help="copy everything to Weights & Biases"
    )
    parser.add_argument("--wandb-project", metavar="NAME", help="project there (default: WANDB_PROJECT or aragog)")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..harness.comparison import compare, mirror_comparison
    from ..harness.mirror import mirror
    from ..harness.report import write_report
    from ..harness.results import read
    from ..harness.tracking import check_mode
    from ..harness.training_curves import is_training

    check_mode(options.wandb)
    folders = [Path(folder) for folder in dict.fromkeys(options.folder)]
    results = [folder for folder in folders if not is_training(folder)]
    common = {"mode": options.wandb, "project": options.wandb_project}
    for folder in results:
        files = write_report(folder, capacity=options.capacity, baseline=_known(folder, options.baseline, len(folders)))
        print(f"report:  {files.html}\n         {files.markdown}")
        print(f"figures: {len(files.figures)} in {files.html.parent / 'figures'}")
    if folders == results and len(results) == 1:
        directories = mirror(read(results[0]), **common)
    else:
        comparison = compare(folders, options.out, options.baseline)
        print(f"comparison: {comparison.html}")
        directories = mirror_comparison(comparison, **common)
    if options.wandb == "offline":
        shared.tell_sync(*(str(directory.parent) for directory in directories))
    return 0


def _known(folder: Path, baseline: str | None, folders: int) -> str | None:
    """Return the baseline; None where it is one of several folders that does not have it."""
    from ..harness.results import read

    if folders == 1 or baseline in {run.policy for run in read(folder).runs}:
        return baseline
    return None
