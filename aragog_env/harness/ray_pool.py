"""Does jobs on a Ray cluster: an existing one, or one that is started on this machine for as long as it takes.

A job does its work in a temporary folder of whatever machine it runs on. Its files come back with its result, and what its
work told on the way (`Context.tell`) brings along the files that have changed since, so that the driver's folder holds what
a job needs to go on elsewhere. A job whose worker dies is given to another worker once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Self
from uuid import uuid4

from ..errors import AragogError, SpecError
from ..files import write_atomically
from .pool import usable_cores
from .rollout import Stopped
from .work import Context, J, R, Work

_TRIES: Final = 2
_STARTS: Final = 3
_ASK_EVERY_S: Final = 0.5
"""How often a job asks whether the user interrupted, and the driver for news: each is a remote call."""
# Nothing is contacted that the user did not name.
_QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_PROMPT_ENABLED": "0"}


@dataclass(frozen=True)
class _Answer(Generic[R]):
    """How a job ended: a result, or an error that ends everything; and its files, by path below its folder."""

    result: R | None
    error: AragogError | None
    files: Mapping[str, bytes]


class _Desk:
    """Lives in a process of its own and passes on news from workers to the driver, and its wish to stop to them."""

    def __init__(self) -> None:
        self._news: list[tuple[int, str, Mapping[str, bytes]]] = []
        self._stopped = False

    def put(self, number: int, line: str, files: Mapping[str, bytes]) -> None:
        """Leave what job `number` told, and the files that changed."""
        self._news.append((number, line, files))

    def take(self) -> list[tuple[int, str, Mapping[str, bytes]]]:
        """Return the news and forget them."""
        news, self._news = self._news, []
        return news

    def stop(self) -> None:
        """Ask all jobs to stop."""
        self._stopped = True

    def stopped(self) -> bool:
        """Return whether to stop."""
        return self._stopped


@dataclass
class _Running(Generic[J]):
    number: int
    job: J
    tries: int = 0


class RayPool(Generic[J, R]):
    """Does jobs on the CPUs of a Ray cluster.

    Args:
        work: what is done with them.
        workers: jobs at a time; None: as many as the cluster has CPUs.
        address: of the cluster; None: `RAY_ADDRESS`, else one is started here with `workers` CPUs and ends with the pool.

    Raises:
        SpecError: Ray is not installed.
    """

    def __init__(self, work: Work[J, R], workers: int | None = None, address: str | None = None) -> None:
        self._ray = _import()
        self._work, self._workers, self._address = work, workers, address or os.environ.get("RAY_ADDRESS")
        self._token = uuid4().hex
        self._desk: Any = None
        self._task: Any = None
        self._ours = False
        self._jobs: list[J] = []

    def run(self, jobs: Iterable[J], on_start: Callable[[J], None], on_done: Callable[[J, R], None]) -> None:
        """Run all jobs; `on_done` is called in this process, one result at a time, after the job's files are on disk.

        Raises:
            KeyboardInterrupt: the user interrupted; `on_done` has been called for all that was finished.
            AragogError: bad input, or the cluster cannot be reached or used.
        """
        self._jobs = list(jobs)
        queue = deque(_Running(number, job) for number, job in enumerate(self._jobs))
        if not queue:
            return
        self._connect()
        width = self._workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        running: dict[Any, _Running[J]] = {}
        try:
            while queue or running:
                while queue and len(running) < width:
                    entry = queue.popleft()
                    running[self._submit(entry)] = entry
                    if entry.tries == 1:
                        on_start(entry.job)
                for ref in self._wait(running):
                    entry = running.pop(ref)
                    answer = self._answer(ref)
                    if answer is not None:
                        self._finish(entry, answer, on_done)
                    elif entry.tries < _TRIES:
                        queue.appendleft(entry)
                    else:
                        on_done(entry.job, self._work.lost(entry.job))
        except BaseException:
            self._abandon(running, on_done)
            raise

    def close(self) -> None:
        """Leave the cluster, and end it if it was started for this pool."""
        if self._desk is not None:
            with contextlib.suppress(Exception):
                self._ray.kill(self._desk)
            self._desk = None
        if self._ours:
            self._ray.shutdown()
            self._ours = False
        _lock_path(self._token).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        """Go to the cluster, or start one."""
        if self._desk is not None:
            return
        ray = self._ray
        if not ray.is_initialized():
            connect(self._address, self._workers)
            self._ours = True
        self._desk = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Desk).remote()
        self._task = ray.remote(max_retries=0)(_work_on_cluster)

    def _submit(self, entry: _Running[J]) -> Any:
        entry.tries += 1
        needs = dict(self._work.needs(entry.job))
        largest = max((node["Resources"].get("CPU", 0.0) for node in self._ray.nodes() if node["Alive"]), default=0.0)
        if largest:  # more than any machine has would wait for ever
            needs["num_cpus"] = min(needs["num_cpus"], largest)
        files = self._work.files(entry.job)
        arguments = (self._work, entry.job, entry.number, files, self._desk, os.getcwd(), self._token)
        return self._task.options(**needs).remote(*arguments)

    def _wait(self, running: Mapping[Any, _Running[J]]) -> list[Any]:
        """Return finished tasks, perhaps none, after all that they told on the way has been taken in."""
        finished, _ = self._ray.wait(list(running), num_returns=1, timeout=_ASK_EVERY_S)
        for number, line, files in self._ray.get(self._desk.take.remote()):
            _write(self._jobs[number].folder, files)
            print(line, flush=True)
        return list(finished)

    def _answer(self, ref: Any) -> _Answer[R] | None:
        """Return how a task ended; None if its worker died.

        Raises:
            AragogError: the workers cannot do this kind of work at all.
        """
        from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

        try:
            answer: _Answer[R] = self._ray.get(ref)
        except (RayTaskError, RuntimeEnvSetupError) as error:
            cause = getattr(error, "cause", None) or error
            reason = (str(cause).strip().splitlines() or [""])[0]
            raise AragogError(
                f"a Ray worker cannot do its work ({type(cause).__name__}: {reason}); every machine of the cluster needs this "
                "project at the same version as here, and what policies import"
            ) from error
        except RayError:
            return None
        return answer

    def _finish(self, entry: _Running[J], answer: _Answer[R], on_done: Callable[[J, R], None]) -> None:
        _write(entry.job.folder, answer.files)
        if answer.error is not None:
            raise answer.error
        assert answer.result is not None
        on_done(entry.job, answer.result)

    def _abandon(self, running: dict[Any, _Running[J]], on_done: Callable[[J, R], None]) -> None:
        """Stop what is running, but keep what it has done so far; a second Ctrl-C kills."""
        try:
            self._desk.stop.remote()
            while running:
                for ref in self._wait(running):
                    entry = running.pop(ref)
                    with contextlib.suppress(Exception):
                        if (answer := self._answer(ref)) is not None:
                            self._finish(entry, answer, on_done)
        except KeyboardInterrupt:
            for ref in running:
                with contextlib.suppress(Exception):
                    self._ray.cancel(ref, force=True)
            raise
        except Exception:  # the cluster is gone: the first error says so
            pass


def connect(address: str | None, cpus: int | None = None) -> Any:
    """Make this process part of a Ray cluster, or start one on this machine; returns what `ray.init` does.

    Args:
        address: of the cluster; None: start one.
        cpus: of the one that is started; None: one per core.

    Raises:
        SpecError: Ray is not installed, or does not get there.
    """
    ray = _import()
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": cpus or usable_cores(), "include_dashboard": False}
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        for left in range(_STARTS if address is None else 1, 0, -1):
            try:
                return ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # a plain one where a busy machine does not start Ray within 30 s
                ray.shutdown()
                if left == 1:
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    what = f"cannot use the Ray cluster at '{address}'" if address else "cannot start Ray here"
                    raise SpecError(f"{what}: {reason}", where="--executor ray") from error
    finally:
        if before is not None:
            with contextlib.suppress(ValueError):  # in another thread than the main one
                signal.signal(signal.SIGTERM, before)  # Ray's own would end the process at once


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SpecError(
            'Ray is not installed; run pip install -e ".[ray]", or leave out --executor', where="--executor ray"
        ) from error
    return ray


def _write(folder: str, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        write_atomically(Path(folder) / path, content)


def _work_on_cluster(
    work: Work[J, R], job: J, number: int, files: Mapping[str, bytes], desk: Any, home: str, token: str
) -> _Answer[R]:
    """Do a job: runs on a worker, in a folder of its own.

    Args:
        work: what to do.
        job: with what.
        number: of the job, for news.
        files: that the job needs in its folder.
        desk: takes the news.
        home: the driver's working directory, which relative paths in names of policies are about.
        token: names the pool, so that only one worker of a machine compiles for it.
    """
    import ray

    with contextlib.suppress(OSError):
        os.chdir(home)
    stopped = _Asking(lambda: bool(ray.get(desk.stopped.remote())))
    with tempfile.TemporaryDirectory(prefix="aragog-") as folder, _one_compiles(token, stopped) as compiled:
        _write(folder, files)
        changes = _Changes(Path(folder))

        def tell(line: str) -> None:
            ray.get(desk.put.remote(number, line, changes.take()))

        if stopped():
            return _Answer(None, Stopped("interrupted"), {})
        try:
            result = work(job.moved(folder), Context(stopped, tell, compiled))
        except AragogError as error:
            return _Answer(None, error, changes.take())
        return _Answer(result, None, changes.take())


@dataclass
class _Asking:
    """Asks a costly question now and then, and until the answer is yes."""

    question: Callable[[], bool]
    _answer: bool = False
    _asked: float = field(default=float("-inf"))

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._answer and now - self._asked > _ASK_EVERY_S:
            self._asked, self._answer = now, self.question()
        return self._answer


class _Changes:
    """The files of a folder that are new or changed since the last look; links are left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[int, int]] = {}
        self._look()

    def _look(self) -> list[str]:
        changed = []
        for path in sorted(self._folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            status, name = path.stat(), path.relative_to(self._folder).as_posix()
            if self._known.get(name) != (mark := (status.st_mtime_ns, status.st_size)):
                self._known[name] = mark
                changed.append(name)
        return changed

    def take(self) -> dict[str, bytes]:
        """Return their contents by path."""
        return {name: (self._folder / name).read_bytes() for name in self._look()}


_compiled: set[str] = set()
"""Pools for which this process has compiled, or waited for the one that did."""


def _lock_path(token: str) -> Path:
    return Path(tempfile.gettempdir()) / f"aragog-{token[:16]}.lock"


@contextlib.contextmanager
def _one_compiles(token: str, stopped: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """Let one process of a machine compile while the others wait: yields what it calls when that is done.

    A lock on a file: a process that dies gives it up. The next one finds the file empty, and compiles.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system: all compile
        _compiled.add(token)
    if token in _compiled:
        yield lambda: None
        return
    with open(_lock_path(token), "a+b") as file:
        while not stopped():
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.2)
        file.seek(0)

        def done() -> None:
            if token not in _compiled:
                _compiled.add(token)
                file.write(b"compiled\n")
                file.flush()
                fcntl.flock(file, fcntl.LOCK_UN)

        if file.read():
            done()
        try:
            yield done
        finally:
            done()
