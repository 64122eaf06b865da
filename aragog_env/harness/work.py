"""What the executors of jobs agree on: a job, the work that is done with it in any process, and a pool that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar


class FolderJob(Protocol):
    """A job that leaves files in a folder; pickled."""

    @property
    def folder(self) -> str:
        """Where its files go."""

    def moved(self, folder: str) -> Self:
        """Return the job with its files elsewhere."""


J = TypeVar("J", bound=FolderJob)
R = TypeVar("R")
J_contra = TypeVar("J_contra", bound=FolderJob, contravariant=True)
R_co = TypeVar("R_co", covariant=True)


def never() -> bool:
    """Return False."""
    return False


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Context:
    """How work talks to who ordered it."""

    should_stop: Callable[[], bool] = never
    """Whether the user interrupted; asked now and then."""
    tell: Callable[[str], None] = print
    """Is told about progress, in lines. Files are complete then, and may be copied."""
    compiled: Callable[[], None] = nothing
    """Called when all code is compiled, where that is long before the end: others wait for it."""


class Work(Protocol[J_contra, R_co]):
    """What is done with jobs; pickled."""

    def __call__(self, job: J_contra, context: Context) -> R_co:
        """Do a job.

        Raises:
            AragogError: bad input, or interrupted (`rollout.Stopped`). What a single job is at fault for is in its result.
        """

    def lost(self, job: J_contra) -> R_co:
        """Return the result of a job whose process died twice."""

    def files(self, job: J_contra) -> Mapping[str, bytes]:
        """Return files that the job needs in its folder, by path, where that folder is not the driver's."""

    def needs(self, job: J_contra) -> Mapping[str, float]:
        """Return the resources that a job takes, as a cluster counts them: ``num_cpus``, ``num_gpus``."""


class JobPool(Protocol[J, R_co]):
    """Does work in workers. Use as a context manager."""

    def run(self, jobs: Sequence[J], on_start: Callable[[J], None], on_done: Callable[[J, R_co], None]) -> None:
        """Do all jobs; `on_done` is called in this process, one result at a time, and before its worker goes on.

        Raises:
            KeyboardInterrupt: the user interrupted; `on_done` has been called for all that was finished.
            AragogError: bad input, or nothing more can be run.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...
