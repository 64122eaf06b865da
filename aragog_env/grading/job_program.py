"""Job of the sandbox: define a solution, then run its checks. Runs in the worker, on the standard library alone."""

from __future__ import annotations

import sys
import types
from typing import Any


def prepare(payload: dict[str, Any]) -> dict[str, Any]:
    """Nothing to do before the door is shut: the program is text."""
    return payload


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict on ``payload['solution']``, checked by ``payload['checks']`` in the same module."""
    # A module of its own, not __main__: `if __name__ == "__main__":` blocks of a solution are not part of it, and
    # dataclasses look their module up by name.
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    for name, failure in (("solution", "error"), ("checks", "failed")):
        try:
            exec(compile(payload[name], f"<{name}>", "exec"), module.__dict__)
        except BaseException as error:
            return {"status": failure, "detail": _describe(name, error)}
    return {"status": "passed", "detail": "", "value": None}


def _describe(part: str, error: BaseException) -> str:
    line = ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == f"<{part}>":
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    try:
        text = str(error)[:200]
    except BaseException:
        text = "(no message)"
    return f"{type(error).__name__} in the {part}{line}: {text}"
