"""An evaluation of forty slow episodes in a process of its own, to be interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """\
import sys, time
from pathlib import Path
from tests.harness.fakes import Fixed, FakeBackend, make_scenario
from aragog_env.harness.evaluate import evaluate
from aragog_env.harness.executor import Executor
from aragog_env.policy import Dispatch

class Slow(Fixed):
    def act(self, view):
        time.sleep(0.01)
        return Dispatch(0, 0)

if __name__ == "__main__":
    base = Path(sys.argv[1])
    try:
        evaluate({"slow": Slow}, make_scenario(base, requests=20), 40, out=base / "out", make_backend=FakeBackend, OPTIONS)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def start(folder: Path, options: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own.

    Args:
        folder: results go to its folder `out`.
        options: more arguments of `evaluate`, as Python.
        arguments: of the script; `sys.argv[2]` is the first one.
    """
    script = folder / "slow.py"
    script.write_text(SCRIPT.replace("OPTIONS", options))
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
