"""Training runs as their folders tell of them (`run.json`, `curve.jsonl`), without what trained them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from ..errors import SpecError
from . import tracking
from .plots import draw, figure_legend
from .tables import Entry, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN: Final = (("eval/reward", "Reward per request"), ("eval/jct_mean_s", "Mean completion time (s)"))
"""Of the evaluations on the way: column of the curve, and its label."""
_BESIDES: Final = ("settings", "start", "sampler", "device", "threads", "save_minutes")


@dataclass(frozen=True)
class TrainingCurve:
    """A training run: what it was begun with, and how it went."""

    folder: Path
    name: str
    group: str
    learner: str
    scenario: str
    settings: Mapping[str, Any]
    """Those that are not at their defaults."""
    started: str
    rows: Sequence[Mapping[str, Any]]
    """A point of the curve each, with `update` and `steps`."""

    @property
    def steps(self) -> int:
        """Decisions it was trained for."""
        return int(self.rows[-1]["steps"]) if self.rows else 0

    @property
    def minutes(self) -> float:
        """Time it took, in all sessions."""
        total, last = 0.0, 0.0
        for row in self.rows:
            wall_s = float(row["wall_s"])
            total += wall_s - last if wall_s >= last else wall_s
            last = wall_s
        return total / 60

    @property
    def key(self) -> tuple[str, ...]:
        """What its W&B run is recognised by."""
        return training_key(self.name, self.started)

    @property
    def tracked(self) -> list[Path]:
        """What W&B was told while it trained, or later: the directories of its W&B run."""
        return sorted(self.folder.glob(f"wandb/*run-*-{tracking.run_id(*self.key)}"))

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of one column, where it is there."""
        points = [(float(row["steps"]), float(row[name])) for row in self.rows if row.get(name) is not None]
        return [x for x, _ in points], [y for _, y in points]

    @property
    def best(self) -> Mapping[str, Any]:
        """The point with the highest reward in an evaluation; empty if there was none."""
        found = [row for row in self.rows if row.get("eval/reward") is not None]
        return max(found, key=lambda row: float(row["eval/reward"]), default={})


def training_key(name: str, started: str) -> tuple[str, ...]:
    """Return what the W&B run of a training run is recognised by: its name, and when it was begun."""
    return "train", name, started


def is_training(folder: Path) -> bool:
    """Return whether a folder holds a training run, or a grid of them."""
    return (folder / "run.json").exists() or any(folder.glob("*/run.json"))


def read_training(folder: Path) -> list[TrainingCurve]:
    """Read a training run, or the runs of a grid.

    Raises:
        SpecError: there is none, or a file is damaged.
    """
    folders = [folder] if (folder / "run.json").exists() else sorted(path.parent for path in folder.glob("*/run.json"))
    if not folders:
        raise SpecError("there is no training run here", where=str(folder))
    return [_read(path) for path in folders]


def _read(folder: Path) -> TrainingCurve:
    try:
        about = json.loads((folder / "run.json").read_text())
        scenario, settings = yaml.safe_load(about["scenario"])["name"], yaml.safe_load(about["settings"]) or {}
        curve = folder / "curve.jsonl"
        lines = curve.read_text().splitlines() if curve.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        place = folder.resolve()
        started = about["sessions"][0]["started"]
        return TrainingCurve(
            folder, place.name, place.parent.name, about["kind"], scenario, settings, started, tuple(rows)
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as error:
        raise SpecError(f"this training run cannot be read ({error})", where=str(folder)) from error


def training_table(curves: Sequence[TrainingCurve]) -> Table:
    """Return how long each run took, and how good it became."""
    rows = []
    for curve in curves:
        best = curve.best
        settings = ", ".join(f"{name}={value}" for name, value in curve.settings.items() if name not in _BESIDES)
        rows.append(
            (
                Entry(curve.name),
                Entry(curve.learner),
                Entry(curve.scenario),
                Entry(f"{curve.steps:,}"),
                Entry(f"{curve.minutes:.1f}"),
                Entry(f"{int(best['steps']):,}" if best else "\N{EN DASH}"),
                *(Entry(f"{best[name]:.3f}" if best.get(name) is not None else "\N{EN DASH}") for name, _ in SHOWN),
                Entry(f"{100 * best['eval/accuracy']:.1f}" if best.get("eval/accuracy") is not None else "\N{EN DASH}"),
                Entry(settings),
            )
        )
    header = (
        "Run", "Learner", "Scenario", "Steps", "Minutes", "best at step", "Reward", "JCT mean (s)", "Accuracy (%)", "Settings",
    )  # fmt: skip
    notes = (
        "Reward (per request), JCT and accuracy: of the evaluation with the highest reward, on traffic of its own. "
        "Settings: those that are not at their defaults.",
    )
    return Table("Training runs.", header, tuple(rows), notes, frozenset({1, 2, len(header) - 1}))


def curves_figure(curves: Sequence[TrainingCurve], colour: Mapping[str, str]) -> Figure | None:
    """Return the evaluations on the way against steps; None where there were none."""
    if not any(curve.column(SHOWN[0][0])[0] for curve in curves):
        return None

    thousands = max(curve.steps for curve in curves) < 2e6
    unit, word = (1e3, "thousands") if thousands else (1e6, "millions")

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(SHOWN))
        for axes, (name, label) in zip(panels, SHOWN, strict=True):
            for curve in curves:
                x, y = curve.column(name)
                axes.plot([v / unit for v in x], y, "o-", ms=2.5, lw=1.2, color=colour[curve.name], label=curve.name)
            axes.set(xlabel=f"Decisions ({word})", ylabel=label)
            axes.set_xlim(left=0)
        figure_legend(figure, panels[0])

    return draw(paint, 7.6, 3.0)


def mirror_training(curve: TrainingCurve, *, mode: str, project: str | None = None) -> Path:
    """Copy a training run to W&B: the run that ``aragog train --wandb`` makes, from its files; returns its directory."""
    with tracking.start(
        curve.folder,
        mode=mode,
        project=project,
        key=curve.key,
        name=curve.name,
        group=curve.group,
        job_type="train",
        tags=(curve.learner, curve.scenario),
        config={"learner": curve.learner, "scenario": curve.scenario, **curve.settings},
    ) as run:
        log_curve(run)
        for row in curve.rows:
            run.log(curve_point(row), step=row["update"])
        for file in sorted(curve.folder.glob("*.safetensors")):
            tracking.log_files(run, f"{run.id}-{file.stem}", "model", {file.name: file}, steps=curve.steps)
        return tracking.directory(run)


def log_curve(run: Any) -> None:
    """Tell a W&B run that points of the learning curve will follow: over steps, the best of the evaluations as summary."""
    run.define_metric("train/steps")
    run.define_metric("*", step_metric="train/steps")
    for name, best in (("eval/reward", "max"), ("eval/jct_mean_s", "min"), ("eval/accuracy", "max")):
        run.define_metric(name, summary=best, step_metric="train/steps")


def curve_point(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point of the curve under the names that it has in W&B."""
    return {name if "/" in name else f"train/{name}": value for name, value in row.items()}
