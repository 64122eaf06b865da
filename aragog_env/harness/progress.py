"""Progress bars on standard error, one per policy and a total; silent when nobody looks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .jobs import Job
    from .results import RunResult


class Progress(Protocol):
    """Told about every job of an experiment."""

    def begin(self, jobs: Sequence[Job], skipped: int) -> None:
        """`jobs` are about to be run, besides those announced before; `skipped` were already on disk."""

    def start(self, job: Job) -> None:
        """`job` starts."""

    def done(self, job: Job, result: RunResult) -> None:
        """`job` has ended and its result is on disk."""

    def end(self) -> None:
        """Nothing more will be run."""


class Silent:
    """No progress."""

    def begin(self, jobs: Sequence[Job], skipped: int) -> None:
        """Say nothing."""

    def start(self, job: Job) -> None:
        """Say nothing."""

    def done(self, job: Job, result: RunResult) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


class Bars:
    """Bars drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=Console(stderr=True),
        )
        self._total = self._bars.add_task("all runs", total=0, note="")
        self._tasks: dict[str, object] = {}
        self._running: Counter[str] = Counter()

    def begin(self, jobs: Sequence[Job], skipped: int) -> None:
        """Add the jobs to the bars."""
        self._bars.start()
        several = len({job.scenario.name for job in jobs}) > 1
        for job in jobs:
            label = self._label(job, several)
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(f"  {label}", total=0, note="")
            task = self._tasks[label]
            self._bars.update(task, total=(self._bars.tasks[task].total or 0) + 1)  # type: ignore[arg-type,call-overload]
        total = self._bars.tasks[self._total]
        note = f"{skipped} already on disk" if skipped else "compiles when run for the first time"
        self._bars.update(self._total, total=(total.total or 0) + len(jobs), note=note)
        self._several = several

    def start(self, job: Job) -> None:
        """Show what is running."""
        rate = "" if job.rate_rps is None else f", {job.rate_rps:g} req/s"
        self._update(job, note=f"seed {job.seed}{rate}", advance=0)

    def done(self, job: Job, result: RunResult) -> None:
        """Move the bars on."""
        note = "" if result.status == "ok" else "failed"
        self._update(job, note=note, advance=1)
        self._bars.update(self._total, advance=1, note="")

    def end(self) -> None:
        """Leave the bars as they are."""
        self._bars.stop()

    def _update(self, job: Job, *, note: str, advance: int) -> None:
        self._bars.update(self._tasks[self._label(job, self._several)], note=note, advance=advance)  # type: ignore[arg-type]

    @staticmethod
    def _label(job: Job, several: bool) -> str:
        return f"{job.policy} / {job.scenario.name}" if several else job.policy


def automatic() -> Progress:
    """Return bars if standard error is a terminal."""
    return Bars() if sys.stderr.isatty() else Silent()
