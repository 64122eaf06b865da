"""Where jobs are done: in processes of this machine, or on the CPUs of a Ray cluster. The results are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..errors import SpecError, did_you_mean
from .pool import Pool, usable_cores
from .work import J, JobPool, R, Work

ExecutorName = Literal["local", "ray"]
EXECUTORS: Final[tuple[ExecutorName, ...]] = get_args(ExecutorName)


@dataclass(frozen=True)
class Executor:
    """A choice of where jobs are done.

    Raises:
        SpecError: there is no such executor, or a local one is given an address.
    """

    name: ExecutorName = "local"
    workers: int | None = None
    """Jobs at a time; None: one per core, or per CPU of the cluster."""
    address: str | None = None
    """Of a Ray cluster; None: `RAY_ADDRESS`, else one is started on this machine."""

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise SpecError(f"unknown executor '{self.name}'.{did_you_mean(self.name, EXECUTORS)}", where="--executor")
        if self.address is not None and self.name != "ray":
            raise SpecError("only Ray has an address; add --executor ray", where="--ray-address")

    def pool(self, work: Work[J, R]) -> JobPool[J, R]:
        """Make the pool that does `work`."""
        if self.name == "local":
            return Pool(self.workers or usable_cores(), work)
        from .ray_pool import RayPool

        return RayPool(work, self.workers, self.address)
