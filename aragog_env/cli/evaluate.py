"""Run policies x scenarios x seeds; write results, a report with pictures, and a table.

On the simulator, or with --backend live on real servers, one run after the other, each with a recording. Every result is on
disk as soon as it is there; an interrupted evaluation goes on with --resume, an interrupted live run where its recording ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options as shared

if TYPE_CHECKING:
    from ..harness.report import ReportFiles
    from ..harness.results import Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ..harness.defaults import DEFAULT_SEEDS

    parser.add_argument(
        "--scenario",
        "-s",
        action="append",
        metavar="NAME|PATH",
        help="scenario, repeatable (default: default)",
    )
    shared.add_run_options(parser, seeds=DEFAULT_SEEDS)
    parser.add_argument(
        "--baseline",
        metavar="POLICY",
        help="policy that differences are taken to (default: round_robin, else least_loaded)",
    )
    parser.add_argument(
        "--wandb", choices=("off", "offline", "online"), default="off", help="mirror to Weights & Biases"
    )
    parser.add_argument(
        "--wandb-project", metavar="NAME", help="project of the mirror (default: WANDB_PROJECT or aragog)"
    )
    shared.add_backend_options(parser)
    shared.add_scenario_options(parser, several_rates=True)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..errors import AragogError, SpecError
    from ..harness.backends import Simulated
    from ..harness.evaluate import default_folder, evaluate
    from ..harness.progress import Silent, automatic
    from ..harness.replay import with_recorded
    from ..harness.summary import choose_baseline
    from ..harness.tracking import check_mode

    if options.resume and options.out is None:
        raise SpecError("--resume needs --out: the folder to go on with")
    check_mode(options.wandb)
    scenarios = shared.scenarios_from(options.scenario or ["default"], options)
    target = shared.chosen_target(options, scenarios)
    scenarios = [target.adapt(scenario) for scenario in scenarios]
    policies = shared.chosen_policies(options, scenarios)
    choose_baseline(policies, options.baseline)
    folder = Path(options.out) if options.out else default_folder(scenarios[0].name)
    words = shared.command_line()
    try:
        results = evaluate(
            with_recorded(policies),
            scenarios,
            shared.chosen_seeds(options),
            out=folder,
            executor=shared.chosen_executor(options),
            progress=Silent() if options.quiet else automatic(),
            resume=options.resume,
            target=target,
            command=words,
        )
    except KeyboardInterrupt:
        tell_interrupted(folder, words)
        return 130
    except AragogError:
        if not isinstance(target, Simulated) and (folder / "results.jsonl").exists():
            tell_interrupted(folder, words)
        raise
    report = None if options.no_report or not results.ok else _report(results, options.baseline)
    if options.wandb != "off":
        from ..harness.mirror import mirror

        mirror(results, mode=options.wandb, project=options.wandb_project)
        if options.wandb == "offline":
            shared.tell_sync(f"{folder}/wandb")
    _answer(results, report, options)
    tell_failures(results)
    return 1 if results.failed else 0


def tell_interrupted(folder: Path, words: list[str]) -> None:
    """Say what is left of an interrupted command and how to go on."""
    from ..harness.results import read

    finished = len(read(folder).ok) if (folder / "manifest.json").exists() else 0
    print(f"interrupted; {finished} finished runs are in {folder}", file=sys.stderr)
    print(f"go on with: {shared.resume_command(folder, words)}", file=sys.stderr)


def tell_failures(results: Results) -> None:
    """Name the policies that failed, with their first error."""
    errors: dict[str, list[str]] = {}
    for failed in results.failed:
        errors.setdefault(failed.policy, []).append(failed.error or "no reason known")
    for policy, messages in errors.items():
        runs = f"{len(messages)} run{'s' if len(messages) > 1 else ''} failed"
        print(
            f"error: {messages[0]} [{policy}: {runs}; traceback in {results.folder}/results.jsonl]",
            file=sys.stderr,
        )


def _report(results: Results, baseline: str | None) -> ReportFiles:
    from ..harness.report import write_report

    return write_report(results.folder, baseline=baseline)


def _answer(results: Results, report: ReportFiles | None, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(_as_data(results, report, options.baseline), indent=2))
        return
    if not options.quiet:
        from ..harness.replay import unrecorded_sentences
        from ..harness.summary import COMPARABLE, TERMINAL, summarise
        from .output import print_summary

        wanted = tuple(dict.fromkeys((*TERMINAL, *(COMPARABLE if len(results.manifest["scenarios"]) > 1 else ()))))
        for table in summarise(results, wanted, options.baseline):
            print_summary(table, TERMINAL if table.scenario else COMPARABLE)
        print("".join(f"{line}\n" for line in unrecorded_sentences(results)), end="")
    print(f"results: {results.folder}")
    if report is not None:
        print(f"report:  {report.html}")


def _as_data(results: Results, report: ReportFiles | None, baseline: str | None) -> dict[str, Any]:
    from ..harness.results import finite
    from ..harness.summary import as_data, summarise

    data: dict[str, Any] = finite(
        {
            "results": str(results.folder),
            "report": str(report.html) if report else None,
            "tables": as_data(summarise(results, baseline=baseline)),
            "failed": [
                {"policy": r.policy, "scenario": r.scenario, "seed": r.seed, "error": r.error} for r in results.failed
            ],
        }
    )
    return data
