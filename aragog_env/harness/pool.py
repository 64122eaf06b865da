"""Runs jobs over processes so that nothing that one job does can lose the results of another.

Workers keep their compiled code and loaded tables between jobs. At most one job per worker is handed out at
a time, so that a result is on disk before its worker starts the next. A process that dies (out of memory, a
policy that exits) takes down the whole pool; the jobs that were running then are repeated one at a time, and
one that dies alone is at fault.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, Protocol, Self

from .rollout import Stopped
from .work import Context, J, R, Work

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _Flag(Protocol):
    def is_set(self) -> bool: ...

    def set(self) -> None: ...

    def wait(self, timeout: float) -> bool: ...


class _Lock(Protocol):
    def acquire(self, block: bool) -> bool: ...


@dataclass
class _Shared:
    """What the processes of a pool share."""

    stop: _Flag
    compiled: _Flag
    """Set when one process has compiled everything: the code is then in the cache on disk."""
    first: _Lock
    """Held, once and for ever, by the process that compiles while the others wait."""


_shared: _Shared | None = None


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(Generic[J, R]):
    """Does jobs in `workers` processes, or in this process when that is 1."""

    def __init__(self, workers: int, work: Work[J, R]) -> None:
        self.workers = workers
        self._work = work
        self._context = multiprocessing.get_context("spawn")  # fork would copy compiled code's threads in mid-air
        self._stop = self._context.Event()
        self._executor: ProcessPoolExecutor | None = None

    def run(self, jobs: Iterable[J], on_start: Callable[[J], None], on_done: Callable[[J, R], None]) -> None:
        """Run all jobs; `on_done` is called in this process, one result at a time.

        Raises:
            KeyboardInterrupt: the user interrupted; `on_done` has been called for all that was finished.
            SpecError: a scenario is bad input.
        """
        if self.workers == 1:
            for job in jobs:
                on_start(job)
                on_done(job, self._work(job, Context()))
            return
        with _environment(dict.fromkeys(_ONE_THREAD, "1")):
            suspects = self._run_parallel(deque(jobs), self.workers, on_start, on_done)
            for job in suspects:
                if self._run_parallel(deque([job]), 1, on_start, on_done):
                    on_done(job, self._work.lost(job))

    def close(self) -> None:
        """End the worker processes."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_parallel(
        self, queue: deque[J], width: int, on_start: Callable[[J], None], on_done: Callable[[J, R], None]
    ) -> list[J]:
        """Run the queue, `width` jobs at a time; return the jobs that were running when a process died."""
        suspects: list[J] = []
        running: dict[Future[R], J] = {}
        try:
            while queue or running:
                alive = self._hand_out(queue, running, width, on_start)
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                if not alive or any(isinstance(f.exception(), BrokenProcessPool) for f in finished):
                    wait(running)
                    suspects += self._bury(running, on_done)
                    continue
                for future in finished:
                    on_done(running[future], future.result())
                    del running[future]
        except BaseException:
            self._abandon(running, on_done)
            raise
        return suspects

    def _hand_out(
        self, queue: deque[J], running: dict[Future[R], J], width: int, on_start: Callable[[J], None]
    ) -> bool:
        """Give jobs to idle processes; return whether the pool is alive."""
        while queue and len(running) < width:
            try:
                future = self._submit(queue[0])
            except BrokenProcessPool:
                return False
            running[future] = queue.popleft()
            on_start(running[future])
        return True

    def _submit(self, job: J) -> Future[R]:
        with _sigint_blocked():  # children inherit the mask: Ctrl-C is for the parent to handle
            if self._executor is None:
                shared = _Shared(self._stop, self._context.Event(), self._context.Lock())
                self._executor = ProcessPoolExecutor(self.workers, self._context, _initialise, (shared,))
            return self._executor.submit(_work_in_process, self._work, job)

    def _bury(self, running: dict[Future[R], J], on_done: Callable[[J, R], None]) -> list[J]:
        lost = []
        for future, job in running.items():
            if future.exception() is None:
                on_done(job, future.result())
            else:
                lost.append(job)
        running.clear()
        self.close()
        return lost

    def _abandon(self, running: dict[Future[R], J], on_done: Callable[[J, R], None]) -> None:
        """Stop what is running, but keep what was finished meanwhile; a second Ctrl-C kills."""
        self._stop.set()
        processes = list(getattr(self._executor, "_processes", None) or {})
        try:
            self.close()
        except KeyboardInterrupt:
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
        for future, job in running.items():
            with contextlib.suppress(Exception, CancelledError):
                on_done(job, future.result(timeout=0))


def _initialise(shared: _Shared) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work_in_process(work: Work[J, R], job: J) -> R:
    shared = _shared
    if shared is None:
        raise RuntimeError("this runs in a worker process only")
    if not shared.compiled.is_set() and not shared.first.acquire(False):
        # Another process is compiling; doing the same here would cost as many cores and gigabytes as there
        # are workers.
        while not shared.compiled.wait(0.2) and not shared.stop.is_set():
            pass
    try:
        if shared.stop.is_set():
            raise Stopped("interrupted")
        return work(job, Context(should_stop=shared.stop.is_set, compiled=shared.compiled.set))
    finally:
        shared.compiled.set()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for child processes, unless the user has set them."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
