"""What `aragog train-router` does: train the routers of a scenario's workflows, save them, say how good they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.errors import SpecError, did_you_mean
from aragog_env.specs.scenario import Scenario

from .report import RouterReport, markdown, rows
from .store import cache_folder, file_name, table_key
from .training import TrainSettings, train_router


def train_scenario(
    scenario: Scenario,
    workflows: Sequence[str] = (),
    embedder: str = "",
    folds: int = 0,
    seed: int = 0,
    out: Path | None = None,
    tell: Callable[[str], None] = print,
) -> tuple[list[RouterReport], list[Path]]:
    """Train one router per workflow; returns their reports and files.

    Args:
        scenario: whose workflows, models and outcome tables.
        workflows: only these; empty: all.
        embedder: as `make_embedder` takes it; empty: the default.
        folds: of cross-fitting; 0: the default.
        seed: of folds and weights.
        out: folder of the checkpoints and of report.json and report.md, for `viable=FOLDER`; None: the user's cache, where
            `viable=router` finds routers of the default settings by itself.
        tell: is told about progress.

    Raises:
        SpecError: no such workflow or embedder, or torch is not installed.
    """
    tables = {table.workflow: table for table in compile_scenario(scenario).outcomes}
    for name in workflows:
        if name not in tables:
            raise SpecError(f"scenario '{scenario.name}' has no workflow '{name}'.{did_you_mean(name, tables)}")
    settings = TrainSettings(embedder=embedder, folds=folds, seed=seed)
    folder = out or cache_folder()
    reports, files = [], []
    for name in workflows or tables:
        table = tables[name]
        checkpoint = train_router(table, settings, tell)
        stem = file_name(table) if out else f"{name}-{table_key(table, settings)}.npz"
        checkpoint.save(folder / stem)
        files.append(folder / stem)
        reports.append(RouterReport(**checkpoint.manifest["report"]))
    prefix = "" if out else f"{scenario.name}-"
    (folder / f"{prefix}report.json").write_text(json.dumps([asdict(r) for r in reports], indent=2) + "\n")
    (folder / f"{prefix}report.md").write_text(markdown(reports))
    return reports, files


def cells(reports: Sequence[RouterReport]) -> list[tuple[str, ...]]:
    """Return the reports as rows of text, the header first."""
    return rows(reports)
