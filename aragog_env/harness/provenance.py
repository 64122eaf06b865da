"""Where results come from: versions, commit, machine and command, for the manifest."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "numba", "gymnasium")


def session_record(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Describe this process as plain data; `command` defaults to how Python was started."""
    words = list(command) if command is not None else [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(words),
        "versions": versions(),
        "git": git_state(Path(__file__).resolve().parent),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and what it computes with."""
    import aragog_env

    found = {
        "python": platform.python_version(),
        "aragog": str(getattr(aragog_env, "__version__", "unknown")),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of `folder` and whether tracked files differ from it; empty outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def machine() -> dict[str, Any]:
    """Return what decides the speed of this machine; `load` is what it had to do in the last 1, 5 and 15 minutes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []
    return {"system": f"{platform.system()} {platform.release()}", "cpu": _cpu_name(), "cores": usable, "load": load}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
