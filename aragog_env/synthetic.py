"""A small generative model of outcome tables, for workflows nobody has measured with these models.

One standard normal latent per query, configuration and attempt decides: the answer is right when it is
positive.

    skill(query, node, model) = level(model) + a * difficulty(query) + b * affinity(query, model)
                                + c * knack(query, node, model)

`a**2` is the correlation between different models on one query, `a**2 + b**2 + c**2` that of one model with
itself; the rest is call noise. Skills of a configuration's calls are combined along the graph: each stage
pulls the state that it gets from its parents towards its own skill, in proportion to its `quality_weight`,
more strongly upwards (repair) than downwards. `level` is solved for such that one model in every stage has
the accuracy that the workflow file states.

This is a first version with parameters read off published tables; `GeneratorParameters` is what a fit
replaces.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import SpecError
from .outcomes import OutcomeTable, configuration_digits
from .specs.graph import Node, WorkflowGraph
from .specs.hardware import ModelSpec
from .specs.workflow import LengthSpec, StageSpec, WorkflowSpec

Floats = NDArray[np.float64]
MAX_CELLS: Final = 100_000_000
"""Queries x configurations of one table; beyond it the table would not fit in memory several times over."""


@dataclass(frozen=True)
class GeneratorParameters:
    """What the generator assumes about every workflow; the workflow file adds accuracies and lengths."""

    sibling_correlation: float = 0.64
    """Between models on one query. Tetrachoric: MATH .62, GSM8K .68, CRUXEval .73, MMLU-Pro .60, BFCL .75."""
    repeat_correlation: float = 0.88
    """One model, the same query twice. Tetrachoric: MATH .83, CRUXEval .86-.91, GSM8K .92-.94."""
    stage_share: float = 0.4
    """Share of the query-by-model variance that is specific to the stage (assumption: nobody measured it)."""
    repair: float = 0.6
    """How much more a better later stage pulls up than a worse one pulls down (0: as much, 1: the most).

    At 0.6 a second equal stage gains 2 points; self-repair in LiveCodeBench gains 0.5-8.4 (28 models)."""
    length_difficulty: float = 0.6
    """Minus the correlation of log length and latent: gives wrong answers 1.4-1.7 times as long at sigma
    0.4-0.6 (MATH-L5 Qwen2.5-7B 825/497, 72B 634/379; CRUXEval Qwen2.5-7B 271/168)."""
    length_sharing: float = 0.5
    """Share of the common log-length variance that the stages of a query have in common (assumption)."""
    skip_difficulty: float = 0.5
    """Share of a skip decision's variance that follows the query's difficulty (assumption)."""


def draw_table(
    workflow: WorkflowSpec,
    graph: WorkflowGraph,
    models: Sequence[ModelSpec],
    seed: int = 0,
    parameters: GeneratorParameters | None = None,
) -> OutcomeTable:
    """Draw the outcome table of a workflow; `seed` is part of the data set, not of an episode.

    Every random number belongs to a name (of the workflow, a model, a node), so that a model has the same
    strengths in every cluster it appears in.

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
    draw = _Draw(workflow, graph, tuple(models), seed, parameters or GeneratorParameters())
    return draw.table()


class _Draw:
    """The random variables of one table, and what follows from them. Q queries, N nodes, M models."""

    def __init__(
        self,
        workflow: WorkflowSpec,
        graph: WorkflowGraph,
        models: tuple[ModelSpec, ...],
        seed: int,
        parameters: GeneratorParameters,
    ) -> None:
        self.workflow, self.graph, self.models, self.seed, self.parameters = (
            workflow,
            graph,
            models,
            seed,
            parameters,
        )
        self.queries = workflow.queries
        self.a = np.sqrt(parameters.sibling_correlation) * workflow.difficulty_sigma
        own = parameters.repeat_correlation - parameters.sibling_correlation
        self.b = np.sqrt(own * (1 - parameters.stage_share))
        self.c = np.sqrt(own * parameters.stage_share)
        self.noise = np.sqrt(1 - parameters.repeat_correlation)
        self.difficulty = self.normal("difficulty")  # (Q,) high is easy
        nodes = graph.nodes
        self.own = np.stack([self.own_terms(node) for node in nodes], axis=1)  # (Q, N, M)
        self.surplus = np.stack([self.surplus_copies(node) for node in nodes], axis=1)  # (Q, N)
        self.skipped = np.stack([self.skips(k, node) for k, node in enumerate(nodes)], axis=1)  # (Q, N, M)
        self.tokens_of_query = self.lengths(workflow.query_tokens, "query")  # (Q,)

    def generator(self, *name: str) -> np.random.Generator:
        keys = [zlib.crc32(part.encode()) for part in (self.workflow.name, *name)]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *keys])))

    def normal(self, *name: str) -> Floats:
        return self.generator(*name).standard_normal(self.queries)

    def lengths(self, spec: LengthSpec, *name: str) -> NDArray[np.int32]:
        value = spec.median * np.exp(spec.sigma * self.normal(*name))
        return np.rint(np.clip(value, spec.minimum, spec.maximum)).astype(np.int32)

    def own_terms(self, node: Node) -> Floats:
        """Return b * affinity + c * knack, (Q, M); zero for a tool."""
        if node.kind == "tool":
            return np.zeros((self.queries, len(self.models)))
        terms = [
            self.b * self.normal("affinity", model.name) + self.c * self.normal("knack", model.name, node.name)
            for model in self.models
        ]
        return np.stack(terms, axis=1)

    def surplus_copies(self, node: Node) -> NDArray[np.bool_]:
        """Return for which queries this copy of a fan-out stage is not needed, (Q,)."""
        stage = self.workflow.stages[node.stage]
        if stage.fan_out is None:
            return np.zeros(self.queries, dtype=np.bool_)
        # copy k exists when at least k + 1 copies were asked for
        needs_more = np.cumsum(stage.fan_out.probabilities)[node.copy - 1] if node.copy else 0.0
        surplus: NDArray[np.bool_] = self.generator("fan-out", stage.name).random(self.queries) < needs_more
        return surplus

    def skips(self, k: int, node: Node) -> NDArray[np.bool_]:
        """Return whether the node is skipped when model m served `skip.on` (or is a surplus copy), (Q, M)."""
        skip = self.workflow.stages[node.stage].skip
        skipped = np.repeat(self.surplus[:, k, None], len(self.models), axis=1)
        if skip is not None:
            share = self.parameters.skip_difficulty
            ease = normal_cdf(np.sqrt(share) * self.difficulty + np.sqrt(1 - share) * self.normal("skip", node.name))
            chance = [by_size(skip.probability_by_size_b, model.size_b) for model in self.models]
            skipped |= ease[:, None] > 1 - np.array(chance)
        return skipped

    def state(self, digits: NDArray[np.int64], level: Floats) -> Floats:
        """Return the latent of the final answer, (Q, C); `digits` (C, LLM nodes) says which models serve."""
        weights = _cumulative_weights(self.workflow, self.graph)
        states: list[Floats | None] = []  # None: nothing but tools so far
        for k, node in enumerate(self.graph.nodes):
            before = self.combine(node.parents, states, weights)
            if node.kind == "tool":
                states.append(before)
                continue
            skill = (self.own[:, k, :] + level)[:, digits[:, node.llm_slot]] + self.a * self.difficulty[:, None]
            if before is None:
                states.append(skill)
                continue
            weight = self.workflow.stages[node.stage].quality_weight / max(weights[k], 1e-12)
            tilt = self.parameters.repair * (1 - weight)
            step = skill - before
            after = before + weight * np.where(step > 0, 1 + tilt, 1 - tilt) * step
            states.append(np.where(self.skip_mask(k, node, digits), before, after))
        final = self.combine(tuple(k for k, n in enumerate(self.graph.nodes) if not n.children), states, weights)
        assert final is not None  # `unroll` refuses workflows without an LLM stage
        return final

    def skip_mask(self, k: int, node: Node, digits: NDArray[np.int64]) -> NDArray[np.bool_]:
        if node.skip_on < 0:
            return np.zeros((self.queries, 1), dtype=np.bool_)
        return self.skipped[:, k, :][:, digits[:, self.graph.nodes[node.skip_on].llm_slot]]

    def combine(self, nodes: tuple[int, ...], states: list[Floats | None], weights: Floats) -> Floats | None:
        """Return the weighted mean of the states of `nodes`, surplus copies left out; None without any."""
        known = [(k, state) for k in nodes if (state := states[k]) is not None]
        if len(known) <= 1:
            return known[0][1] if known else None
        share = np.stack([np.where(self.surplus[:, k], 0.0, max(weights[k], 1e-12)) for k, _ in known], axis=1)
        share /= share.sum(axis=1, keepdims=True)
        total = share[:, :1] * known[0][1]
        for i, (_, state) in enumerate(known[1:], start=1):
            total += share[:, i : i + 1] * state
        return total

    def levels(self) -> Floats:
        """Return the level of each model, (M,), that gives its stated accuracy when it serves every stage."""
        m = len(self.models)
        digits = np.repeat(np.arange(m)[:, None], self.graph.n_llm, axis=1)
        base = self.state(digits, np.zeros(m))  # a common shift of all skills shifts the state by as much
        targets = [by_size(self.workflow.accuracy_by_size_b, model.size_b) for model in self.models]
        levels = [_solve_level(base[:, i] / self.noise, target) for i, target in enumerate(targets)]
        return np.array(levels) * float(self.noise)

    def output_tokens(self) -> NDArray[np.int32]:
        """Return the output of every call, (Q, N, M): log-normal, longer where an error is likely."""
        drift = -self.parameters.length_difficulty
        rest = np.sqrt(1 - drift**2)
        sharing = self.parameters.length_sharing
        of_query = self.normal("length")
        result = np.empty((self.queries, len(self.graph.nodes), len(self.models)), dtype=np.int32)
        for k, node in enumerate(self.graph.nodes):
            stage = self.workflow.stages[node.stage]
            if stage.output is None:
                length = stage.tool_output
                tokens = np.ones(1) if length is None else self.lengths(length, "tool output", node.name)[:, None]
                result[:, k, :] = np.maximum(tokens, 1)
                continue
            mixed = np.sqrt(sharing) * of_query + np.sqrt(1 - sharing) * self.normal("length", node.name)
            common = drift * self.difficulty + rest * mixed
            noise = np.stack([self.normal("length", node.name, model.name) for model in self.models], axis=1)
            own = drift * self.own[:, k, :] / np.hypot(self.b, self.c) + rest * noise
            correlation = stage.output.query_correlation
            z = np.sqrt(correlation) * common[:, None] + np.sqrt(1 - correlation) * own
            median = np.array([by_size(stage.output.median_by_size_b, model.size_b) for model in self.models])
            tokens = np.exp(np.log(median) + stage.output.sigma * z)
            result[:, k, :] = np.rint(np.clip(tokens, 1, stage.output.max_tokens))
        return result

    def tool_seconds(self, node: Node) -> Floats:
        spec = self.workflow.stages[node.stage].tool_s
        if spec is None:
            return np.zeros(self.queries)
        return np.minimum(spec.median_s * np.exp(spec.sigma * self.normal("tool", node.name)), spec.maximum_s)

    def own_prompt_tokens(self, stage: StageSpec) -> NDArray[np.int32]:
        if stage.prompt is None:
            return np.zeros(self.queries, dtype=np.int32)
        return (stage.prompt.template_tokens + self.tokens_of_query * stage.prompt.query).astype(np.int32)

    def table(self) -> OutcomeTable:
        """Return everything as a table."""
        graph, stages = self.graph, self.graph.stage_of
        digits = configuration_digits(len(self.models), graph.n_llm)
        probability = normal_cdf(self.state(digits, self.levels()) / self.noise)
        return OutcomeTable(
            workflow=self.workflow.name,
            kind="synthetic",
            models=tuple(model.name for model in self.models),
            nodes=tuple(node.name for node in graph.nodes),
            llm_nodes=tuple(k for k, node in enumerate(graph.nodes) if node.kind == "llm"),
            p_correct=probability.astype(np.float32),
            output_tokens=self.output_tokens(),
            own_prompt_tokens=np.stack([self.own_prompt_tokens(stage) for stage in stages], axis=1),
            skipped=self.skipped,
            tool_s=np.stack([self.tool_seconds(node) for node in graph.nodes], axis=1).astype(np.float32),
            query_tokens=self.tokens_of_query,
            query_features=np.zeros((self.queries, 0), np.float32),
            expected_output_tokens=expected_output_tokens(graph, self.models),
            source="aragog_env.synthetic, first version: parameters read off published tables, not fitted",
            notes={"seed": self.seed, "parameters": asdict(self.parameters)},
        )


def _cumulative_weights(workflow: WorkflowSpec, graph: WorkflowGraph) -> Floats:
    """Return the summed quality weight of each node and all that came before it, (N,)."""
    own = [workflow.stages[n.stage].quality_weight if n.kind == "llm" else 0.0 for n in graph.nodes]
    before: list[set[int]] = []
    for node in graph.nodes:
        before.append(set(node.parents).union(*(before[p] for p in node.parents)))
    return np.array([own[k] + sum(own[j] for j in before[k]) for k in range(len(own))])


def _solve_level(base: Floats, target: float) -> float:
    """Return x with mean(cdf(x + base)) = target, by bisection; base (Q,) in units of the call noise."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(normal_cdf(middle + base).mean()) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def by_size(table: Mapping[float, float], size_b: float) -> float:
    """Return the value for a model size: linear in log(size) between entries, the nearest outside them."""
    sizes = sorted(table)
    return float(np.interp(np.log(size_b), np.log(sizes), [table[size] for size in sizes]))


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


def clipped_lognormal_mean(median: float, sigma: float, low: float, high: float) -> float:
    """Return the mean of a log-normal that is clipped (not truncated) to [low, high]."""
    if sigma == 0:
        return min(max(median, low), high)
    mu = np.log(median)
    below, above = ((np.log(np.array([max(low, 1e-300), high])) - mu) / sigma).tolist()
    inside = normal_cdf(np.array([above - sigma, below - sigma, below, above]))
    middle = np.exp(mu + sigma**2 / 2) * (inside[0] - inside[1])
    return float(low * inside[2] + middle + high * (1 - inside[3]))


def normal_cdf(x: Floats) -> Floats:
    """Return the standard normal distribution function (Abramowitz and Stegun 26.2.17, error below 1e-7)."""
    t = 1 / (1 + 0.2316419 * np.abs(x))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-0.5 * x * x) * (poly / np.sqrt(2 * np.pi))
    return np.asarray(np.where(x >= 0, 1 - tail, tail))
