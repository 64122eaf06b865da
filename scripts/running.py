"""Experiments of many episodes that go on where they were interrupted: what several scripts share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aragog_env.harness.evaluate import run_jobs
from aragog_env.harness.jobs import Episodes, Job
from aragog_env.harness.pool import Pool
from aragog_env.harness.progress import Progress, automatic
from aragog_env.harness.results import Results, open_for_writing
from aragog_env.specs.scenario import Scenario


def run_missing(
    jobs: Sequence[Job],
    scenarios: Iterable[Scenario],
    settings: Mapping[str, Any],
    out: Path,
    workers: int,
    progress: Progress | None = None,
) -> Results:
    """Run the episodes that are not on disk yet.

    Args:
        jobs: all episodes of the experiment.
        scenarios: for the manifest; of several with one name the last.
        settings: for the manifest, besides the policies.
        out: results folder, new or to go on with.
        workers: processes.
        progress: told about every run; by default what suits the terminal.
    """
    named = list({scenario.name: scenario for scenario in scenarios}.values())
    settings = {"policies": list(dict.fromkeys(job.policy for job in jobs)), **settings}
    progress = progress or automatic()
    with open_for_writing(out, named, resume=(out / "manifest.json").exists(), settings=settings) as results:
        with Pool(workers, Episodes()) as pool:
            try:
                run_jobs(results, jobs, pool, progress)
            finally:
                progress.end()
    return results
