"""The whole workflow on PyTorch instead of servers: what the trained models can do together, before anything is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aragog_env.grading.runtime import load_runtime

from .measuring import Complete, Completion, Measured, measure, summary
from .model import Llama, load_pretrained
from .scoring import generate
from .tokenizer import decode

BATCH = 256
"""Prompts decoded together."""


def local(models: Sequence[Llama]) -> Complete:
    """Return a caller that decodes greedily on PyTorch."""

    def complete(index: int, prompts: Sequence[str], max_tokens: int) -> list[Completion]:
        ordered = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))
        done: dict[int, Completion] = {}
        for first in range(0, len(ordered), BATCH):
            members = ordered[first : first + BATCH]
            for k, tokens in zip(
                members, generate(models[index], [prompts[k] for k in members], max_tokens), strict=True
            ):
                done[k] = Completion(decode(tokens), len(tokens))
        return [done[k] for k in range(len(prompts))]

    return complete


def run_pipeline(folders: Sequence[Path], queries: int) -> Measured:
    """Run every configuration of the models in `folders`, smallest first, on the first test queries."""
    runtime = load_runtime("arithmetic")
    models = [load_pretrained(folder).eval() for folder in folders]
    return measure(runtime, runtime.records()[:queries], len(models), local(models))


def pipeline_report(folders: Sequence[Path], queries: int = 100) -> dict[str, Any]:
    """Return `summary` of the models in `folders`, smallest first."""
    return summary([folder.name for folder in folders], run_pipeline(folders, queries).correct)
