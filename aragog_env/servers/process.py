"""Processes that outlive the command that started them: start one detached, recognise it later, stop exactly it.

A process id alone is no identity, since ids are used again: a process is known by its id together with the moment it began.
A server's helpers (vLLM starts several) live in its session. While the server runs, all of its session is its own. Afterwards
a helper is known by a token in the environment it inherited; and since vLLM's helpers change their titles, which overwrites
what others can see of their environment, also by the list that was made when the server was healthy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOKEN_NAME: Final = "ARAGOG_SERVER_TOKEN"
_PROC: Final = Path("/proc")


def start_detached(command: Sequence[str], env: Mapping[str, str], log: Path) -> int:
    """Start `command` in a session of its own, output to the end of `log`; return its process id.

    A new session is a new process group as well, so that a Ctrl-C in this terminal does not reach it.

    Raises:
        OSError: the program cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output, open(os.devnull, "rb") as nothing:
        actions = [
            (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ]
        # Not subprocess.Popen: that object wants to be waited for, and this process is meant to be left behind.
        return os.posix_spawnp(command[0], list(command), dict(env), file_actions=actions, setsid=True)


def began(pid: int) -> str | None:
    """Return when a process began, as text that no other process with this id will have; None if there is none."""
    _reap(pid)
    if _PROC.joinpath("self", "stat").exists():
        try:
            # The command's name stands in parentheses and may hold anything; fields are counted from behind it.
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def is_running(pid: int, start: str) -> bool:
    """Return whether the very process that began at `start` still runs."""
    return began(pid) == start


@dataclass(frozen=True)
class Identity:
    """A process that cannot be mistaken for another."""

    pid: int
    start: str
    """What `began` says of it."""


def session(pid: int) -> list[Identity]:
    """Return the processes in the session that process `pid` began; none where /proc is missing."""
    found = []
    for folder in _PROC.iterdir() if _PROC.joinpath("self", "stat").exists() else ():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == pid and fields[0] not in ("Z", "X"):
            found.append(Identity(int(folder.name), fields[19]))
    return found


def members(leader: Identity, token: str, helpers: Collection[Identity] = ()) -> list[int]:
    """Return the processes of a server: itself, and its helpers, which can outlive it.

    Args:
        leader: the server.
        token: the text in its environment.
        helpers: those that are known already.
    """
    runs = is_running(leader.pid, leader.start)
    found = {leader.pid} if runs else set()
    for one in session(leader.pid):
        if runs or one in helpers or _has_token(one.pid, token):
            found.add(one.pid)
    return sorted(found)


def _has_token(pid: int, token: str) -> bool:
    try:
        return f"{TOKEN_NAME}={token}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def memory_bytes(pids: Sequence[int]) -> int:
    """Return the resident memory of the processes together; 0 where it is not known."""
    total = 0
    for pid in pids:
        try:
            total += int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            continue
    return total


def stop(leader: Identity, token: str, helpers: Collection[Identity] = (), *, patience_s: float = 20.0) -> bool:
    """Stop a server and its helpers: politely, and after `patience_s` for certain. Returns whether anything ran.

    Only processes that are the ones we started are touched, whoever has their ids by now.
    """
    # The session is the server's for certain only while the server runs: note now who is in it.
    if is_running(leader.pid, leader.start):
        helpers = {*helpers, *session(leader.pid)}
    first = members(leader, token, helpers)
    # The leader first: vLLM's API server stops its engine processes itself when it is asked nicely.
    _send([leader.pid] if leader.pid in first else first, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while members(leader, token, helpers) and time.monotonic() < deadline:
        time.sleep(0.05)
    while left := members(leader, token, helpers):
        _send(left, signal.SIGKILL)
        time.sleep(0.05)
    return bool(first)


def _send(pids: Sequence[int], which: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, which)
        except ProcessLookupError:
            continue


def _reap(pid: int) -> None:
    """Collect an ended child of this very process; processes started by another command are none of ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except (ChildProcessError, OSError):
        return


def tail(log: Path, lines: int = 15, *, limit_bytes: int = 65536) -> str:
    """Return the last lines of a log."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit_bytes))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(no log: {error.strerror})"
    return "\n".join(text.splitlines()[-lines:])


def default_python() -> str:
    """Return the interpreter that servers run in unless another is named."""
    return sys.executable
