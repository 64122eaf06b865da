"""Draw the outcome table of a workflow from the generative model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from ..outcomes import OutcomeTable, configuration_digits
from ..specs.graph import Node, WorkflowGraph
from ..specs.hardware import ModelSpec
from ..specs.workflow import LengthSpec, StageSpec, WorkflowSpec
from .latents import Latents
from .numeric import Floats, by_size, clipped_lognormal_mean, normal_cdf, solve_level
from .parameters import GeneratorParameters, load_parameters
from .quality import Quality, solve_scale

MAX_CELLS: Final = 100_000_000
"""Queries x configurations of one table; beyond it the table would not fit in memory several times over."""


def draw_table(
    workflow: WorkflowSpec,
    graph: WorkflowGraph,
    models: Sequence[ModelSpec],
    seed: int = 0,
    parameters: GeneratorParameters | None = None,
) -> OutcomeTable:
    """Draw the outcome table of a workflow; `seed` is part of the data set, not of an episode.

    Args:
        workflow: gives accuracies, lengths and the number of queries.
        graph: the workflow unrolled.
        models: smallest first.
        seed: another one gives other queries with the same statistics.
        parameters: None for the fitted ones.

    Raises:
        SpecError: the workflow states no accuracies, or the table would be too large.
    """
    if not workflow.accuracy_by_size_b:
        raise SpecError(
            f"workflow '{workflow.name}' needs 'accuracy_by_size_b' for a synthetic outcome table",
            where=workflow.locations.get(""),
        )
    if workflow.queries * len(models) ** graph.n_llm > MAX_CELLS:
        raise SpecError(
            f"workflow '{workflow.name}' has {workflow.queries} queries x {len(models)}^{graph.n_llm} "
            f"configurations, more than {MAX_CELLS:,}; use fewer models, or a smaller fan-out",
            where=workflow.locations.get(""),
        )
    return Draw(graph, tuple(models), seed, parameters or load_parameters(workflow.name)).table()


class Draw:
    """One table: its random variables, and what follows from them. Q queries, N nodes, M models."""

    def __init__(
        self, graph: WorkflowGraph, models: tuple[ModelSpec, ...], seed: int, parameters: GeneratorParameters
    ) -> None:
        self.graph, self.models, self.seed, self.parameters = graph, models, seed, parameters
        self.workflow = graph.workflow
        self.latents = Latents(self.workflow.name, self.workflow.queries, seed, parameters)
        self.quality = Quality(graph, self.latents, tuple((model.name, model.size_b) for model in models))
        self.scale = solve_scale(graph, parameters)
        self.tokens_of_query = self.lengths(self.workflow.query_tokens, "query")  # (Q,)

    def lengths(self, spec: LengthSpec, *name: str) -> NDArray[np.int32]:
        """Return a log-normal token count, (Q,)."""
        value = spec.median * np.exp(spec.sigma * self.latents.normal(*name))
        return np.rint(np.clip(value, spec.minimum, spec.maximum)).astype(np.int32)

    def levels(self) -> Floats:
        """Return the mean skill, (N, M), that gives a model its stated accuracy when it serves every stage."""
        m = len(self.models)
        digits = np.repeat(np.arange(m)[:, None], self.graph.n_llm, axis=1)
        offsets = self.quality.offsets()
        base = self.quality.state(digits, self.scale, offsets)  # a common shift of all skills shifts it by as much
        targets = [by_size(self.workflow.accuracy_by_size_b, model.size_b) for model in self.models]
        noise = self.scale.noise
        levels = np.array([noise * solve_level(base[:, i] / noise, t) for i, t in enumerate(targets)])
        return np.asarray(offsets + levels)

    def p_correct(self) -> NDArray[np.float32]:
        """Return the chance of a right answer, (Q, C)."""
        digits = configuration_digits(len(self.models), self.graph.n_llm)
        state = self.quality.state(digits, self.scale, self.levels())
        return normal_cdf(state / self.scale.noise).astype(np.float32)

    def output_tokens(self) -> NDArray[np.int32]:
        """Return the output of every call, (Q, N, M): log-normal, longer where an error is likely."""
        drift = -self.parameters.length_difficulty
        rest = np.sqrt(1 - drift**2)
        sharing = self.parameters.length_sharing
        of_query = self.latents.normal("length")
        result = np.empty((self.workflow.queries, len(self.graph.nodes), len(self.models)), dtype=np.int32)
        for k, node in enumerate(self.graph.nodes):
            stage = self.workflow.stages[node.stage]
            if stage.output is None:
                length = stage.tool_output
                tokens = np.ones(1) if length is None else self.lengths(length, "tool output", node.name)[:, None]
                result[:, k, :] = np.maximum(tokens, 1)
                continue
            mixed = np.sqrt(sharing) * of_query + np.sqrt(1 - sharing) * self.latents.normal("length", node.name)
            common = drift * self.quality.difficulty[:, k] + rest * mixed[:, None]
            noise = np.stack([self.latents.normal("length", node.name, m.name) for m in self.models], axis=1)
            own = drift * self.quality.strength[:, k] + rest * noise
            correlation = stage.output.query_correlation
            z = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
            median = np.array([by_size(stage.output.median_by_size_b, model.size_b) for model in self.models])
            tokens = np.exp(np.log(median) + stage.output.sigma * z)
            result[:, k, :] = np.rint(np.clip(tokens, 1, stage.output.max_tokens))
        return result

    def tool_seconds(self, node: Node) -> Floats:
        """Return how long a tool takes, (Q,); 0 for an LLM call."""
        spec = self.workflow.stages[node.stage].tool_s
        if spec is None:
            return np.zeros(self.workflow.queries)
        value = spec.median_s * np.exp(spec.sigma * self.latents.normal("tool", node.name))
        return np.minimum(value, spec.maximum_s)

    def own_prompt_tokens(self, stage: StageSpec) -> NDArray[np.int32]:
        """Return the length of template and query, (Q,); 0 for a tool."""
        if stage.prompt is None:
            return np.zeros(self.workflow.queries, dtype=np.int32)
        return (stage.prompt.template_tokens + self.tokens_of_query * stage.prompt.query).astype(np.int32)

    def table(self) -> OutcomeTable:
        """Return everything as a table."""
        graph, stages = self.graph, self.graph.stage_of
        llm_stages = tuple(dict.fromkeys(stage.name for stage in stages if stage.kind == "llm"))
        return OutcomeTable(
            workflow=self.workflow.name,
            kind="synthetic",
            models=tuple(model.name for model in self.models),
            nodes=tuple(node.name for node in graph.nodes),
            llm_nodes=tuple(k for k, node in enumerate(graph.nodes) if node.kind == "llm"),
            p_correct=self.p_correct(),
            output_tokens=self.output_tokens(),
            own_prompt_tokens=np.stack([self.own_prompt_tokens(stage) for stage in stages], axis=1),
            skipped=self.quality.skipped,
            tool_s=np.stack([self.tool_seconds(node) for node in graph.nodes], axis=1).astype(np.float32),
            query_tokens=self.tokens_of_query,
            query_features=self.latents.features(llm_stages),
            expected_output_tokens=expected_output_tokens(graph, self.models),
            source="aragog_env.synthetic, parameters of specs/presets/outcome_generator.yaml (see docs/outcome_fit.md)",
            notes={"seed": self.seed, "parameters": asdict(self.parameters), "scale": asdict(self.scale)},
        )


def expected_output_tokens(graph: WorkflowGraph, models: Sequence[ModelSpec]) -> NDArray[np.float32]:
    """Return the mean output of each node on each model, (N, M), from the length models alone."""
    result = np.ones((len(graph.nodes), len(models)), dtype=np.float32)
    for k, stage in enumerate(graph.stage_of):
        if stage.output is not None:
            for m, model in enumerate(models):
                median = by_size(stage.output.median_by_size_b, model.size_b)
                result[k, m] = clipped_lognormal_mean(median, stage.output.sigma, 1, stage.output.max_tokens)
        elif stage.tool_output is not None:
            length = stage.tool_output
            low = max(1, length.minimum)
            result[k, :] = clipped_lognormal_mean(length.median, length.sigma, low, length.maximum)
    return result
