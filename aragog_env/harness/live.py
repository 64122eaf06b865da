"""Evaluation on real servers: runs one after the other, each with a recording that an interrupted run goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..backends.live import LiveBackend, LiveOptions
from ..errors import SpecError
from ..servers.find import ServedCluster
from ..servers.settle import settle
from ..specs.scenario import Scenario
from .backends import Runner
from .executor import Executor
from .jobs import Job, OnDone, OnStart, PolicyMaker, run_job
from .results import RunResult, recording_path


@dataclass(frozen=True)
class Live:
    """Real servers as the target of an evaluation.

    Attributes:
        served: the cluster and where it answers; it takes the place of the scenario's.
        options: how runs behave.
        datasets: file or folder of a workflow's data set, by workflow.
        settle_s: how long to wait between two runs until the servers are idle.
    """

    served: ServedCluster
    options: LiveOptions = field(default_factory=LiveOptions)
    datasets: Mapping[str, str | Path] = field(default_factory=dict)
    settle_s: float = 60.0

    def adapt(self, scenario: Scenario) -> Scenario:
        """Put the scenario on the cluster that is served."""
        return replace(scenario, cluster=self.served.cluster)

    def describe(self) -> dict[str, Any]:
        """Say that it is live, and on which servers."""
        return {"backend": "live", **self.served.describe()}

    def runner(self, make_policy: PolicyMaker, executor: Executor) -> Runner:
        """Make what executes the jobs.

        Raises:
            SpecError: several processes were asked for, or another machine.
        """
        if executor.workers not in (None, 1) or executor.name != "local":
            raise SpecError(
                "live runs go one after the other, from here: two at once would be each other's load",
                where="--workers" if executor.name == "local" else "--executor",
            )
        return LiveRunner(self, make_policy)


class LiveRunner:
    """Executes jobs on real servers, one at a time."""

    def __init__(self, live: Live, make_policy: PolicyMaker) -> None:
        self._live, self._make_policy = live, make_policy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job], on_start: OnStart, on_done: OnDone) -> None:
        """Run all jobs in their order.

        Raises:
            AragogError: a server does not answer; what is finished is on disk.
        """
        for job in jobs:
            on_start(job)
            on_done(job, self._one(job))

    def _one(self, job: Job) -> RunResult:
        """Run a job, or go on with it where its recording ends."""
        live, where = self._live, recording_path(job.key)
        path = Path(job.folder) / where
        resumed = path.exists()
        notes = settle(live.served.endpoints, live.settle_s)
        backend = LiveBackend(
            job.scenario,
            live.served.endpoints,
            recording=path,
            policy=job.policy,
            datasets=live.datasets,
            options=live.options,
            resume=resumed,
        )
        with backend:
            result = run_job(job, lambda: backend, self._make_policy)
            if result.status == "failed":
                backend.close(f"failed: {result.error}")
        if result.status == "failed" and path.exists():
            # Another try begins anew: half of this one was decided by a policy that fails.
            path = _set_aside(path)
        details: dict[str, Any] = {"resumed": resumed, "before": list(notes)}
        if result.status == "ok":
            log_notes = backend.log().notes
            details |= {name: log_notes[name] for name in ("failed_requests", "retries")}
        config = {**result.config, "backend": "live"}
        recording = path.relative_to(job.folder).as_posix() if path.exists() else None
        return replace(result, recording=recording, details=details, config=config)


def _set_aside(path: Path) -> Path:
    """Rename the recording of a run that failed, with what may lie beside it; return its new path."""
    free = next(p for i in range(1, 1000) if not (p := path.with_name(f"{path.stem}.failed-{i}.db")).exists())
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(free.with_name(free.name + ending))
    return free
