"""Training runs as jobs: several of them side by side, in processes or on a Ray cluster, each in its own folder.

A run's folder exists and says what to do (`run.json`) before it becomes a job; to start it, to go on with it after its process
was killed, and to go on with it tomorrow are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..errors import AragogError
from ..registry import load_entry_point
from .rollout import Stopped
from .work import Context

LEARNERS: Final = {"ppo": "PPOSettings", "dqn": "DQNSettings", "imitation": "ImitationSettings"}
"""Names of learners, and of their classes of settings: ``baselines.NAME``, reached by name only."""
_NEEDED: Final = ("run.json", "state.pt", "curve.jsonl", "*.safetensors")


@dataclass(frozen=True)
class TrainingJob:
    """A run to start or to go on with."""

    learner: str
    folder: str
    name: str = ""
    """Begins the lines that it tells; also its W&B name, wherever its folder is."""
    group: str = ""
    """Its W&B group."""
    minutes: float | None = None
    wandb: str = "off"
    cpus: int = 1
    gpus: int = 0

    def moved(self, folder: str) -> TrainingJob:
        """Return the job with its run in another folder."""
        return replace(self, folder=folder)


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    folder: str
    error: str | None = None


@dataclass(frozen=True)
class Train:
    """The work of training: start a run, or go on with it."""

    def __call__(self, job: TrainingJob, context: Context) -> Trained:
        """Train until all steps are done or time is up.

        Raises:
            Stopped: the user interrupted; the run's folder holds a checkpoint.
        """
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            if asked > 1:  # learners ask before every update: one of them is done, and what it calls is compiled
                context.compiled()
            return context.should_stop()

        def tell(line: str) -> None:
            context.tell(f"{job.name}: {line}" if job.name else line)

        module = f"baselines.{job.learner}"
        train = load_entry_point(f"{module}:train", "train")
        settings = load_entry_point(f"{module}:{LEARNERS[job.learner]}", "train")
        options: dict[str, Any] = {"minutes": job.minutes, "wandb": job.wandb, "should_stop": should_stop}
        options |= {"name": job.name or None, "group": job.group or None}
        try:
            train(None, settings, Path(job.folder), resume=True, tell=tell, **options)
        except AragogError as error:
            return Trained(job.folder, str(error))
        except Exception as error:
            return Trained(job.folder, f"{type(error).__name__}: {error}")
        if context.should_stop():
            raise Stopped("interrupted")
        return Trained(job.folder)

    def lost(self, job: TrainingJob) -> Trained:
        """Return the result of a run whose process died twice."""
        return Trained(job.folder, "its process died twice (killed, out of memory, or it exited)")

    def files(self, job: TrainingJob) -> Mapping[str, bytes]:
        """Return what a run needs to start or to go on."""
        paths = [path for pattern in _NEEDED for path in sorted(Path(job.folder).glob(pattern))]
        return {path.name: path.read_bytes() for path in paths}

    def needs(self, job: TrainingJob) -> Mapping[str, float]:
        """Return one core per thread, and a GPU where the settings name one."""
        return {"num_cpus": job.cpus, "num_gpus": job.gpus}
