"""Run what a model wrote, or what may take for ever, in a process that can do nothing else.

What holds it, always: a fresh interpreter with an empty environment and an empty folder; resource limits (processor time,
memory, no file bytes, no processes); no capabilities; a filter of system calls (`seccomp.py`) that leaves no network, no
new process or thread, no file opened for writing, no signals. Where the kernel permits: namespaces of its own (user,
network, processes, IPC), and Landlock, so that only Python's own files can be read. Without a filter nothing is run: the
status is then ``refused``. No rights are needed, and root gives its rights up first.

Not covered: the checks run in the same interpreter as the program, so one that sets out to forge its verdict can. What
models do by accident (exit early, print, crash, replace functions) does not pass. Reading of other files by a program is
prevented by Landlock only; what is read can leave through the verdict's short detail alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import AragogError
from . import seccomp

Status = Literal["passed", "failed", "error", "timeout", "refused"]
"""``error``: it did not come to a verdict (does not load, crashed). ``refused``: it cannot be run safely here."""
_FOLDER: Final = Path(__file__).resolve().parent
_GRACE_S: Final = 20.0
"""Beyond the job's own limit: starting an interpreter on a busy machine. The supervisor keeps the limit itself."""
_STATUSES: Final = ("passed", "failed", "error", "timeout", "refused")


class SandboxError(AragogError):
    """The sandbox itself broke: no answer of the supervisor, or nonsense."""


@dataclass(frozen=True)
class Limits:
    """What a job may use."""

    wall_s: float = 10.0
    cpu_s: int = 6
    """Whole seconds of processor time."""
    memory_bytes: int = 1 << 30
    """Address space, the interpreter's own 50 MB or so included."""
    output_bytes: int = 1 << 20
    """Size of the report."""


@dataclass(frozen=True)
class Verdict:
    """What became of a job."""

    status: Status
    detail: str
    """One line for people; at most some hundred characters, possibly written by the program itself."""
    value: Any
    """What the job reports besides, plain data; None when it did not end well."""
    wall_s: float
    """From fork to report, without starting the interpreter."""
    cpu_s: float
    isolation: tuple[str, ...]
    """What held the program, e.g. ``("network namespace", "Landlock", "seccomp")``; empty when it did not report."""


def run_isolated(
    job: Literal["program", "sql"],
    payload: Mapping[str, Any],
    limits: Limits | None = None,
    *,
    namespaces: bool = True,
) -> Verdict:
    """Run a job to its end or its limit; blocks, so call it from a thread in asynchronous code.

    Args:
        job: which of the jobs in this folder (`job_program.py`, `job_sql.py`).
        payload: plain data for it.
        limits: what it may use.
        namespaces: whether to try namespaces; off shows what holds where a container forbids them.

    Raises:
        SandboxError: the supervisor could not be started, or gave no answer.
    """
    limits = limits or Limits()
    if not seccomp.supported():
        why = "programs are run on Linux on x86-64 or arm64 only, where system calls can be filtered"
        return Verdict("refused", why, None, 0.0, 0.0, ())
    request = {
        "job": str(_FOLDER / f"job_{job}.py"),
        "payload": dict(payload),
        "filter": seccomp.build_filter().hex(),
        "namespaces": namespaces,
        "wall_s": limits.wall_s,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "output_bytes": limits.output_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="aragog-sandbox-") as folder:
        answer = _ask(json.dumps(request).encode() + b"\n", folder, limits)
    return _read(answer)


def _ask(request: bytes, folder: str, limits: Limits) -> bytes:
    """Start the supervisor, send the request, return its answer; nothing of it is left running."""
    # -P and -s with an environment of our own are what -I means, except that -I would ignore the fixed hash seed, and
    # the order of sets must be the same whenever a program is graded.
    command = [sys.executable, "-P", "-s", "-S", "-B", str(_FOLDER / "sandbox_child.py")]
    deadline = time.monotonic() + limits.wall_s + _GRACE_S
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"cannot start the sandbox ({error})") from error
    with process:
        try:
            return _converse(process, request, deadline, limits.output_bytes + (1 << 16))
        finally:
            _kill(process)


def _converse(process: subprocess.Popen[bytes], request: bytes, deadline: float, most: int) -> bytes:
    """Return what the supervisor prints. Its standard input stays open: the end of it means that we are gone."""
    import select  # not on every platform that imports this module

    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
    except BrokenPipeError as error:
        raise SandboxError("the sandbox ended before it took its request") from error
    answer = bytearray()
    poll = select.poll()
    poll.register(process.stdout.fileno(), select.POLLIN)
    while len(answer) <= most:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise SandboxError("the sandbox gave no answer in time; the machine may be overloaded")
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            return bytes(answer)
        answer += chunk
    raise SandboxError("the sandbox answered more than it may")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor's whole session; its number is not reused while it is not reaped."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                pass
    process.wait()


def _read(answer: bytes) -> Verdict:
    try:
        data = json.loads(answer)
        status = data["status"]
        if status not in _STATUSES:
            raise ValueError(status)
        return Verdict(
            status=status,
            detail=str(data["detail"]),
            value=data["value"],
            wall_s=float(data["wall_s"]),
            cpu_s=float(data["cpu_s"]),
            isolation=tuple(data["layers"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SandboxError(f"the sandbox gave no proper answer ({error!r})") from error


@lru_cache(maxsize=1)
def isolation() -> tuple[str, ...]:
    """Return what holds programs on this machine; empty where they are refused."""
    verdict = run_isolated("program", {"solution": "", "checks": ""})
    return verdict.isolation if verdict.status == "passed" else ()
