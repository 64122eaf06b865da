"""From skills of calls to the chance that the final answer is right, for every query and configuration.

Each stage pulls the state that it gets from its parents towards its own skill. Its weight is its `quality_weight`
as a share of all weight so far; a better stage pulls up with weight ** (1 - repair), a worse one down with
weight ** (1 + repair), so later stages repair more than they spoil. Parallel parents are averaged by weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..specs.graph import Node, WorkflowGraph
from .latents import REFERENCE_SIZE_B, Latents
from .numeric import Floats, by_size, normal_cdf
from .parameters import GeneratorParameters

REFERENCE_QUERIES: Final = 4096


@dataclass(frozen=True)
class Scale:
    """Standard deviations of the parts of a skill, and of the call noise at the end."""

    difficulty: float
    strength: float
    noise: float


class Quality:
    """Skills of the calls of one workflow, Q queries, N nodes, M models, and what follows from them."""

    def __init__(self, graph: WorkflowGraph, latents: Latents, models: tuple[tuple[str, float], ...]) -> None:
        """`models`: name and size in 1e9 parameters, smallest first."""
        self.graph, self.latents, self.models = graph, latents, models
        self.weights = _cumulative_weights(graph)
        stages = [stage.name for stage in graph.stage_of]
        self.difficulty = np.stack(
            [np.stack([latents.difficulty(stage, size) for _, size in models], axis=1) for stage in stages], axis=1
        )  # (Q, N, M)
        self.strength = np.stack(
            [
                np.stack([latents.strength(name, stages[k], node.copy) for name, _ in models], axis=1)
                for k, node in enumerate(graph.nodes)
            ],
            axis=1,
        )  # (Q, N, M)
        self.surplus = np.stack([self._surplus_copies(node) for node in graph.nodes], axis=1)  # (Q, N)
        self.skipped = np.stack([self._skips(k, node) for k, node in enumerate(graph.nodes)], axis=1)  # (Q, N, M)

    def offsets(self) -> Floats:
        """Return by how much each model's level differs from stage to stage, (N, M)."""
        sigma = self.latents.parameters.stage_skill_sigma
        return np.array(
            [
                [sigma * float(self.latents.generator("stage skill", stage.name, name).standard_normal())
                 for name, _ in self.models]
                for stage in self.graph.stage_of
            ]
        )  # fmt: skip

    def state(self, digits: NDArray[np.int64], scale: Scale, level: Floats) -> Floats:
        """Return the latent of the final answer without noise, (Q, C).

        Args:
            digits: (C, LLM nodes) which model serves each LLM node.
            scale: see `Scale`.
            level: (N, M) mean skill.
        """
        repair = self.latents.parameters.repair
        states: list[Floats | None] = []  # None: nothing but tools so far
        for k, node in enumerate(self.graph.nodes):
            before = self._combine(node.parents, states)
            if node.kind == "tool":
                states.append(before)
                continue
            mine = scale.difficulty * self.difficulty[:, k] + scale.strength * self.strength[:, k] + level[k]
            skill = mine[:, digits[:, node.llm_slot]]
            if before is None:
                states.append(skill)
                continue
            weight = self.graph.workflow.stages[node.stage].quality_weight / max(self.weights[k], 1e-12)
            step = skill - before
            after = before + np.where(step > 0, weight ** (1 - repair), weight ** (1 + repair)) * step
            states.append(np.where(self._skip_mask(k, node, digits), before, after))
        final = self._combine(tuple(k for k, n in enumerate(self.graph.nodes) if not n.children), states)
        assert final is not None  # `unroll` refuses workflows without an LLM stage
        return final

    def _surplus_copies(self, node: Node) -> NDArray[np.bool_]:
        """Return for which queries this copy of a fan-out stage is not needed, (Q,)."""
        stage = self.graph.workflow.stages[node.stage]
        if stage.fan_out is None:
            return np.zeros(self.latents.queries, dtype=np.bool_)
        # copy k exists when at least k + 1 copies were asked for
        needs_more = np.cumsum(stage.fan_out.probabilities)[node.copy - 1] if node.copy else 0.0
        draw = self.latents.generator("fan-out", stage.name).random(self.latents.queries)
        return np.asarray(draw < needs_more)

    def _skips(self, k: int, node: Node) -> NDArray[np.bool_]:
        """Return whether the node is skipped when model m served `skip.on` (or is a surplus copy), (Q, M)."""
        skip = self.graph.workflow.stages[node.stage].skip
        skipped = np.repeat(self.surplus[:, k, None], len(self.models), axis=1)
        if skip is not None:
            share = self.latents.parameters.skip_difficulty
            common = self.latents.ease("difficulty", "level")
            ease = normal_cdf(np.sqrt(share) * common + np.sqrt(1 - share) * self.latents.normal("skip", node.name))
            chance = [by_size(skip.probability_by_size_b, size) for _, size in self.models]
            skipped |= ease[:, None] > 1 - np.array(chance)
        return skipped

    def _skip_mask(self, k: int, node: Node, digits: NDArray[np.int64]) -> NDArray[np.bool_]:
        if node.skip_on < 0:
            return np.zeros((self.latents.queries, 1), dtype=np.bool_)
        return self.skipped[:, k, :][:, digits[:, self.graph.nodes[node.skip_on].llm_slot]]

    def _combine(self, nodes: tuple[int, ...], states: list[Floats | None]) -> Floats | None:
        """Return the weighted mean of the states of `nodes`, surplus copies left out; None without any."""
        known = [(k, state) for k in nodes if (state := states[k]) is not None]
        if len(known) <= 1:
            return known[0][1] if known else None
        share = np.stack([np.where(self.surplus[:, k], 0.0, max(self.weights[k], 1e-12)) for k, _ in known], axis=1)
        share /= share.sum(axis=1, keepdims=True)
        total = share[:, :1] * known[0][1]
        for i, (_, state) in enumerate(known[1:], start=1):
            total += share[:, i : i + 1] * state
        return total


def solve_scale(graph: WorkflowGraph, parameters: GeneratorParameters) -> Scale:
    """Return the scale at which the *final* answers of a workflow have the fitted correlations.

    Combining stages averages their variables away, while the correlations were measured on final answers; whole agents
    with many calls show about the same ones as single calls (SWE-bench Verified: siblings 0.61-0.89). Solved on queries and
    two equal models of its own, so that it depends on the workflow only.
    """
    latents = Latents(f"{graph.workflow.name}/reference", REFERENCE_QUERIES, 0, parameters)
    quality = Quality(graph, latents, (("first", REFERENCE_SIZE_B), ("second", REFERENCE_SIZE_B)))
    digits = np.repeat(np.arange(2)[:, None], graph.n_llm, axis=1)
    level = np.zeros((len(graph.nodes), 2))
    common, own = parameters.sibling_correlation, parameters.repeat_correlation - parameters.sibling_correlation
    noise = float(np.sqrt(1 - parameters.repeat_correlation))
    scale = Scale(float(np.sqrt(common)), float(np.sqrt(own)), noise)
    for _ in range(8):
        covariance = np.cov(quality.state(digits, scale, level).T)
        shared = float(covariance[0, 1])
        private = float(covariance[0, 0] + covariance[1, 1]) / 2 - shared
        scale = Scale(
            scale.difficulty * float(np.sqrt(common / max(shared, 1e-9))),
            scale.strength * float(np.sqrt(own / max(private, 1e-9))),
            noise,
        )
    return Scale(scale.difficulty * graph.workflow.difficulty_sigma, scale.strength, noise)


def _cumulative_weights(graph: WorkflowGraph) -> Floats:
    """Return the summed quality weight of each node and all that came before it, (N,)."""
    own = [graph.workflow.stages[n.stage].quality_weight if n.kind == "llm" else 0.0 for n in graph.nodes]
    before: list[set[int]] = []
    for node in graph.nodes:
        before.append(set(node.parents).union(*(before[p] for p in node.parents)))
    return np.array([own[k] + sum(own[j] for j in before[k]) for k in range(len(own))])
