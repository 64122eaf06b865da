"""HumanEval for real: build the program of a problem from an answer and run its checks in the sandbox.

Source: the data set and its execution harness (openai/human-eval, MIT): prompt + completion + tests + check(entry point).
"""

from __future__ import annotations

import ast

from ..datasets.record import Record
from .answers import extract_python
from .grade import Grade
from .sandbox import Limits, run_isolated


def grade(record: Record, output: str, limits: Limits | None = None) -> Grade:
    """Grade an answer: a whole function (what our prompts ask for), or a completion of the prompt.

    Args:
        record: a problem, see `aragog_env.datasets.humaneval`.
        output: the answer, with or without a code block.
        limits: of the sandbox.
    """
    extras = record.extras
    code = extract_python(output, extras["entry_point"])
    if code is None:
        return Grade(False, 0.0, "error", "", "no Python code found in the output")
    solution = build_solution(record.query, code, extras["entry_point"])
    checks = f"{extras['test']}\ncheck({extras['entry_point']})\n"
    verdict = run_isolated("program", {"solution": solution, "checks": checks}, limits)
    right = verdict.status == "passed"
    return Grade(right, float(right), verdict.status, code, verdict.detail, verdict.wall_s)


def build_solution(prompt: str, code: str, entry_point: str) -> str:
    """Return the program: the prompt (imports, helpers, the function as a stub), then the answer.

    An answer that defines the function replaces the stub, and may leave out the prompt's imports and helpers; any other
    is the rest of the function.
    """
    if _defines(code, entry_point):
        # `from __future__` must come first, and the prompt has none.
        future = [line for line in code.splitlines() if line.startswith("from __future__ ")]
        rest = [line for line in code.splitlines() if not line.startswith("from __future__ ")]
        return "\n".join([*future, prompt, *rest]) + "\n"
    return prompt + code + "\n"


def _defines(code: str, name: str) -> bool:
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Cut off in the middle of the function: no completion either way, but read as what it tries to be.
        return f"def {name}" in code
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
    return False
