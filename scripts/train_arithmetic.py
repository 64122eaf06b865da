"""Train the three models of the arithmetic workflow from scratch, on the CPU.

    python -m scripts.train_arithmetic                      # all three, then the report; goes on where it was stopped
    python -m scripts.train_arithmetic --models arithmetic-s
    python -m scripts.train_arithmetic --queries 2000       # write the test expressions again, and nothing else
    python -m scripts.train_arithmetic --report-only        # weights, scores and report from the checkpoints as they are

Checkpoints go to `--out` (default runs/arithmetic), weights to workflows/arithmetic/models/<name> as Hugging Face
checkpoints, the report to workflows/arithmetic/models/report.json. A run with the same seed and as many updates gives the
same weights on the same machine and number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from .arithmetic.expressions import write_queries
from .arithmetic.model import Llama, save_pretrained
from .arithmetic.pipeline import pipeline_report
from .arithmetic.recipes import RECIPES, recipe
from .arithmetic.scoring import score
from .arithmetic.training import Recipe, Run, describe, start, train
from .pages import replaced

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "workflows" / "arithmetic"
DOCS: Final = ROOT / "docs" / "arithmetic.md"
COMMAND: Final = "python -m scripts.train_arithmetic --report-only"
"""What the part of the page is named after."""
SCORED: Final = 500
"""Test examples of each stage in the report."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    names = [entry.name for entry in RECIPES]
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_arithmetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--minutes", type=float, help="time limit of each model instead of its own")
    parser.add_argument("--updates", type=int, help="updates of each model instead of its own")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and examples (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/arithmetic"), help="checkpoints")
    parser.add_argument("--weights", type=Path, default=FOLDER / "models", help="finished models and the report")
    parser.add_argument("--queries", type=int, help="write so many test expressions and stop")
    parser.add_argument("--report-only", action="store_true", help="train nothing; finish what the checkpoints hold")
    options = parser.parse_args(arguments)
    if options.queries:
        write_queries(FOLDER / "expressions.jsonl", options.queries)
        print(f"wrote {options.queries} expressions to {FOLDER / 'expressions.jsonl'}")
        return 0
    torch.set_num_threads(options.threads)
    runs: dict[str, tuple[Recipe, Run]] = {}
    for name in options.models:
        chosen = recipe(name)
        chosen = replace(
            chosen,
            seed=options.seed,
            minutes=options.minutes or chosen.minutes,
            updates=options.updates or chosen.updates,
        )
        folder = options.out / name
        if options.report_only:
            run = start(chosen, folder / "checkpoint.pt")
            if not run.update:
                print(f"there is no checkpoint of {name} in {folder}", file=sys.stderr)
                return 2
        else:
            run = train(chosen, folder, log=lambda line: print(line, flush=True))
        save_pretrained(run.model, options.weights / name)
        runs[name] = (chosen, run)
    _write_report(runs, options.weights / "report.json")
    return 0


def _write_report(runs: dict[str, tuple[Recipe, Run]], path: Path) -> None:
    """Write what was trained and how good it is; entries of models that were not trained now are kept."""
    old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries = {entry["name"]: entry for entry in old.get("models", [])}
    for name, (chosen, run) in runs.items():
        entries[name] = {**describe(chosen, run), "scores": _scores(run.model), "threads": torch.get_num_threads()}
    order = [entry.name for entry in RECIPES if entry.name in entries]
    report: dict[str, Any] = {"models": [entries[name] for name in order], "scored": SCORED}
    if len(order) == len(RECIPES):
        report["workflow"] = pipeline_report([path.parent / name for name in order])
        if path.parent == FOLDER / "models":
            text = DOCS.read_text(encoding="utf-8")
            DOCS.write_text(with_table(text, report), encoding="utf-8")
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name in order:
        shares = " ".join(f"{stage} {share:.1%}" for stage, share in entries[name]["scores"].items())
        print(f"{name}: {entries[name]['parameters']} parameters, {entries[name]['seconds'] / 60:.0f} min, {shares}")
    if "workflow" in report:
        print(json.dumps(report["workflow"], indent=1))


def with_table(text: str, report: dict[str, Any]) -> str:
    """Return the documentation with the table of a whole report between its marks."""
    rows = [
        "| model | layers x width | parameters | updates | training | plan | solve | combine | verify | all calls |"
    ]
    rows.append("| --- |" + " ---: |" * 9)
    whole = report["workflow"]
    for entry in report["models"]:
        shares = [*entry["scores"].values(), whole["one_model"][entry["name"]]]
        shown = " | ".join(f"{share:.1%}" for share in shares)
        size = f"{entry['layers']} x {entry['hidden_size']} | {entry['parameters']:,} | {entry['updates']:,}"
        rows.append(f"| `{entry['name']}` | {size} | {entry['seconds'] / 60:.0f} min | {shown} |")
    note = (
        f"Exact outputs, {report['scored']} examples a stage from the test side (some of the verifier's mistakes cannot be\n"
        f"repaired); all calls: right answers when the model serves every call, {whole['queries']} test queries, PyTorch.\n"
        f"The largest verifier repairs {whole['repaired_by_largest_verifier']:.0%} of what is wrong with the smallest one, "
        f"over all configurations,\nand spoils {whole['spoilt_by_largest_verifier']:.1%} of what is right."
    )
    return replaced(text, COMMAND, "\n".join(rows) + "\n\n" + note)


def _scores(model: Llama) -> dict[str, float]:
    return {stage: round(share, 4) for stage, share in score(model, SCORED, seed=1).items()}


if __name__ == "__main__":
    sys.exit(main())
