"""Configurations as bit sets, and how a request's set shrinks: choosing a model deletes all configurations with another one.

Aragog, section 3.2: a request carries its remaining viable configurations; sending a stage to model m deletes those that have
another model there; sets only shrink, and intermediate outputs never bring anything back. What remains is therefore a pure
function of two things: the viable set found at arrival, and which models the request's stages were sent to.

A set of C configurations takes W = ceil(C / 64) words of 64 bits; configuration c is bit c % 64 of word c // 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError, did_you_mean
from aragog_env.jit import njit
from aragog_env.outcomes import configuration_digits
from aragog_env.specs.catalogue import cluster_models
from aragog_env.specs.graph import WorkflowGraph, unroll
from aragog_env.specs.load import scenario_workflows
from aragog_env.specs.scenario import Scenario

# mypy: disable-error-code="no-untyped-def"

WORD_BITS = 64


def pack(members: NDArray[np.bool_], words: int) -> NDArray[np.uint64]:
    """Return the sets of the last axis as bit sets, (..., C) -> (..., words)."""
    padded = np.zeros((*members.shape[:-1], words * WORD_BITS), np.bool_)
    padded[..., : members.shape[-1]] = members
    packed: NDArray[np.uint64] = np.packbits(padded, axis=-1, bitorder="little").view("<u8").astype(np.uint64)
    return packed


def unpack(words: NDArray[np.uint64], configurations: int) -> NDArray[np.bool_]:
    """Return bit sets as members, (..., W) -> (..., configurations)."""
    flat = np.ascontiguousarray(words, "<u8").view(np.uint8)
    return np.unpackbits(flat, axis=-1, bitorder="little")[..., :configurations].astype(np.bool_)


@dataclass(frozen=True, eq=False)
class Space:
    """The configurations of a scenario's workflows. V workflows, N nodes, M models, W words."""

    masks: NDArray[np.uint64]  # (V * N, M, W) configurations with model m at the node; a tool's row is empty
    feasible: tuple[NDArray[np.bool_], ...]
    """Per workflow, (C,): every stage has a candidate model, and the stages that must agree do."""
    fallback: tuple[int, ...]
    """Per workflow, the largest feasible configuration: what is left when no viable one is feasible."""
    nodes: int
    """N: row w * N + node of `masks` belongs to a node."""

    @property
    def words(self) -> int:
        """Words of a bit set, W."""
        return int(self.masks.shape[2])

    def bits(self, workflow: int, viable: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Return the feasible members of a viable set, (C,) -> (W,); the largest feasible configuration if there are none."""
        members = viable & self.feasible[workflow]
        if not members.any():
            members[self.fallback[workflow]] = True
        return pack(members, self.words)


def configuration_space(scenario: Scenario, same: str = "") -> Space:
    """Return the configurations that a scenario allows.

    Args:
        scenario: workflows and models.
        same: stages that must be served by one model, joined by ``+``, groups by ``/``: ``critique+refine/vote``. The copies
            of a fan-out stage count as stages: ``vote`` alone makes all voters agree. The paper's constrained space.

    Raises:
        SpecError: `same` names a stage that no workflow has.
    """
    models = [m.name for m in cluster_models(scenario.cluster)]
    graphs = [unroll(w) for w in scenario_workflows(scenario)]
    groups = [group.split("+") for group in same.split("/") if group]
    known = {stage.name for graph in graphs for stage in graph.workflow.stages if stage.kind == "llm"}
    for name in (name for group in groups for name in group):
        if name not in known:
            hint = did_you_mean(name, known)
            raise SpecError(f"no workflow of the scenario has an LLM stage '{name}'.{hint}", where="same")
    sizes = [len(models) ** graph.n_llm for graph in graphs]
    nodes, words = max(len(g.nodes) for g in graphs), -(-max(sizes) // WORD_BITS)
    masks = np.zeros((len(graphs) * nodes, len(models), words), np.uint64)
    feasible = []
    for w, graph in enumerate(graphs):
        digits = configuration_digits(len(models), graph.n_llm)
        for k, node in enumerate(graph.nodes):
            if node.llm_slot >= 0:
                members = digits[:, node.llm_slot] == np.arange(len(models))[:, None]
                masks[w * nodes + k] = pack(members, words)
        feasible.append(_feasible(graph, digits, models, groups))
    return Space(masks, tuple(feasible), tuple(int(np.flatnonzero(f)[-1]) for f in feasible), nodes)


def _feasible(
    graph: WorkflowGraph, digits: NDArray[np.int64], models: Sequence[str], groups: Sequence[Sequence[str]]
) -> NDArray[np.bool_]:
    """Return which configurations, (C,), use candidates only and one model per group of stages."""
    result = np.ones(len(digits), np.bool_)
    stages = [(node.llm_slot, graph.workflow.stages[node.stage]) for node in graph.nodes if node.llm_slot >= 0]
    for slot, stage in stages:
        if stage.candidates:
            result &= np.isin(digits[:, slot], [models.index(c) for c in stage.candidates if c in models])
    for group in groups:
        slots = [slot for slot, stage in stages if stage.name in group]
        for slot in slots[1:]:
            result &= digits[:, slot] == digits[:, slots[0]]
    if not result.any():
        raise SpecError(f"no configuration of '{graph.workflow.name}' satisfies the constraint", where="same")
    return result


@njit(cache=True, nogil=True)
def narrow(viable, served_by, kind, masks, remaining):
    """Write what is left of each call's viable set after the dispatches so far.

    Args:
        viable: (n, W) the set of each call's request at arrival.
        served_by: (n, N) model each node of the request was sent to, -1 not yet (or skipped: that deletes nothing).
        kind: (n,) row of `masks` of the call's own node; its workflow's first row is kind - kind % N.
        masks: (V * N, M, W).
        remaining: (n, W) the result.

    Returns:
        The first call with nothing left, or -1. Nothing can be left only after a dispatch outside the set.
    """
    n, words = remaining.shape
    width = served_by.shape[1]
    empty = -1
    for i in range(n):
        first = kind[i] - kind[i] % width
        for word in range(words):
            remaining[i, word] = viable[i, word]
        for node in range(width):
            m = served_by[i, node]
            if m >= 0:
                for word in range(words):
                    remaining[i, word] &= masks[first + node, m, word]
        left = np.uint64(0)
        for word in range(words):
            left |= remaining[i, word]
        if left == 0 and empty < 0:
            empty = i
    return empty
