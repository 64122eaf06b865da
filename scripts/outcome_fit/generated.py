"""Single calls and two-stage chains drawn from the generator, to compare with public per-query results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.specs.graph import WorkflowGraph, unroll
from aragog_env.specs.workflow import LengthSpec, OutputSpec, PromptSpec, StageSpec, WorkflowSpec
from aragog_env.synthetic.latents import REFERENCE_SIZE_B, Latents
from aragog_env.synthetic.numeric import normal_cdf, solve_level
from aragog_env.synthetic.parameters import GeneratorParameters
from aragog_env.synthetic.quality import Quality, solve_scale

Floats = NDArray[np.float64]
REVISE_WEIGHT: Final = 0.8
"""Quality weight of 'refine' against 1 for 'generate' in the shipped self-refine workflows."""


def single_call(
    name: str, queries: int, models: Sequence[tuple[str, float, float]], parameters: GeneratorParameters, seed: int = 0
) -> tuple[Floats, NDArray[np.float32]]:
    """Return the chance of a right answer, (Q, M), and the features, (Q, 32), of a workflow of one call.

    `models`: name, size in 1e9 parameters, accuracy. Models of unknown size take the reference size.
    """
    latents = Latents(name, queries, seed, parameters)
    a = np.sqrt(parameters.sibling_correlation)
    b = np.sqrt(parameters.repeat_correlation - parameters.sibling_correlation)
    noise = np.sqrt(1 - parameters.repeat_correlation)
    columns = []
    for model, size_b, accuracy in models:
        base = a * latents.difficulty("answer", size_b) + b * latents.strength(model, "answer", 0)
        columns.append(normal_cdf(base / noise + solve_level(base / noise, accuracy)))
    return np.stack(columns, axis=1), latents.features(("answer",))


def chain_graph(weight: float = REVISE_WEIGHT) -> WorkflowGraph:
    """Return the graph of a draft and its revision."""
    output = OutputSpec(median_by_size_b={1: 1}, sigma=0, max_tokens=1)
    draft = StageSpec(name="draft", prompt=PromptSpec("draft", 1), output=output)
    revise = replace(draft, name="revise", parents=("draft",), prompt=PromptSpec("revise", 1), quality_weight=weight)
    return unroll(WorkflowSpec("fit/chain", (draft, revise), LengthSpec(1), queries=1))


def repair_gains(accuracies: Sequence[float], parameters: GeneratorParameters, queries: int = 8192) -> Floats:
    """Return by how much a second call of the same model raises each accuracy of a first call."""
    graph = chain_graph()
    scale = solve_scale(graph, parameters)
    latents = Latents("fit/chain", queries, 1, parameters)
    quality = Quality(graph, latents, (("model", REFERENCE_SIZE_B),))
    first = scale.difficulty * quality.difficulty[:, 0, 0] + scale.strength * quality.strength[:, 0, 0]
    last = quality.state(np.zeros((1, 2), np.int64), scale, np.zeros((2, 1)))[:, 0]
    gains = []
    for accuracy in accuracies:
        level = solve_level(first / scale.noise, accuracy)
        gains.append(float(normal_cdf(last / scale.noise + level).mean()) - accuracy)
    return np.array(gains)
