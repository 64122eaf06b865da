"""Write the report of a results folder: report.html (one file), report.md and figures/*.png."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", help="results folder of 'aragog evaluate' or 'aragog capacity'")
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


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..harness.report import write_report

    files = write_report(options.folder, capacity=options.capacity, baseline=options.baseline)
    print(f"report:  {files.html}\n         {files.markdown}")
    print(f"figures: {len(files.figures)} in {files.html.parent / 'figures'}")
    return 0
