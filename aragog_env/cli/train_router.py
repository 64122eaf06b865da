"""Train Aragog's router on the outcome tables of a scenario: one head per configuration, cross-fitted over questions."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "scenario", nargs="?", default="default", metavar="SCENARIO", help="scenario (default: default)"
    )
    parser.add_argument("--workflow", action="append", metavar="NAME", help="only this workflow, repeatable")
    parser.add_argument(
        "--embedder",
        default="",
        metavar="NAME",
        help="features, ngrams[:DIMENSIONS] or sentence-transformers:NAME_OR_PATH\n"
        "(default: ngrams where queries have texts, else features)",
    )
    parser.add_argument("--folds", type=int, default=0, metavar="N", help="folds of cross-fitting (default: 6, or 10)")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of folds and weights (default: 0)")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="save checkpoints and report here, for aragog:viable=FOLDER\n"
        "(default: the user's cache, where policies look by themselves)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..registry import load_entry_point
    from ..specs.load import load_scenario

    # Policies live above this package: reached by name only.
    train = load_entry_point("policies.aragog.command:train_scenario", "train-router")
    cells = load_entry_point("policies.aragog.command:cells", "train-router")
    reports, files = train(
        load_scenario(options.scenario),
        workflows=options.workflow or (),
        embedder=options.embedder,
        folds=options.folds,
        seed=options.seed,
        out=Path(options.out) if options.out else None,
        tell=lambda line: print(line, file=sys.stderr),
    )
    if options.json:
        print(json.dumps({"reports": [asdict(r) for r in reports], "files": [str(f) for f in files]}, indent=2))
        return 0
    _print(cells(reports))
    for file in files:
        print(file)
    return 0


def _print(rows: list[tuple[str, ...]]) -> None:
    """Print a line per quantity and a column per workflow."""
    from rich.table import Table

    from .output import console

    table = Table(title="Routers on questions that they have not seen", caption="explained in docs/router.md")
    for k, column in enumerate(zip(*rows, strict=True)):
        head, *body = column
        if k == 0:
            table.add_column("")
            for name in body:
                table.add_column(name, justify="right")
        else:
            table.add_row(head, *body)
    console().print(table)
