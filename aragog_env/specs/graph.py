"""A workflow unrolled: one node per stage and fan-out copy, with bit masks for the engines that walk it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError, did_you_mean
from .strict import location
from .workflow import StageKind, StageSpec, WorkflowSpec

MAX_NODES: Final = 32
"""Nodes of one workflow; the engines keep sets of nodes in one 64-bit word."""


@dataclass(frozen=True)
class Node:
    """One stage of an unrolled workflow, or one copy of a fan-out stage."""

    name: str
    """The stage's name, with ``[copy]`` for a fan-out stage."""
    stage: int
    """Index into `WorkflowSpec.stages`."""
    copy: int
    kind: StageKind
    parents: tuple[int, ...]
    children: tuple[int, ...]
    context: tuple[int, ...]
    """Nodes whose outputs stand in this node's prompt, in node order whatever the order they are listed in."""
    depth: int
    """Nodes on the longest path to a leaf, this one included: a leaf has 1."""
    llm_slot: int
    """Position among the LLM nodes (digit of a configuration, first most significant); -1 for a tool."""
    skip_on: int
    """Node whose output may skip this one, or -1."""


@dataclass(frozen=True, eq=False)
class WorkflowGraph:
    """An unrolled workflow; nodes are in topological order, as listed in the file where that is possible."""

    workflow: WorkflowSpec
    nodes: tuple[Node, ...]
    parents: NDArray[np.int64]  # (N,) bit k is set when node k must be done first
    children: NDArray[np.int64]  # (N,) bit k is set when node k waits for this one
    depth: NDArray[np.int32]  # (N,)
    llm_slot: NDArray[np.int32]  # (N,) -1 for tools
    stage: NDArray[np.int32]  # (N,)
    copy: NDArray[np.int32]  # (N,)

    @property
    def n_llm(self) -> int:
        """Number of LLM nodes: the digits of a configuration."""
        return int((self.llm_slot >= 0).sum())

    @property
    def stage_of(self) -> tuple[StageSpec, ...]:
        """The stage of each node."""
        return tuple(self.workflow.stages[node.stage] for node in self.nodes)


def unroll(workflow: WorkflowSpec) -> WorkflowGraph:
    """Return the graph of a workflow.

    Raises:
        SpecError: unknown or cyclic parents, too many nodes, or a stage that lacks what its kind needs.
    """
    names = _stage_names(workflow)
    for i, stage in enumerate(workflow.stages):
        _check_references(workflow, i, stage, names)
    order = _topological(workflow, names)
    ancestors = _ancestors(workflow, names, order)
    for i, stage in enumerate(workflow.stages):
        _check_stage(workflow, i, stage, {workflow.stages[j].name for j in ancestors[i]})
    return _build(workflow, names, order)


def _build(workflow: WorkflowSpec, names: dict[str, int], order: list[int]) -> WorkflowGraph:
    copies = {i: len(s.fan_out.probabilities) if s.fan_out else 1 for i, s in enumerate(workflow.stages)}
    total = sum(copies.values())
    if total > MAX_NODES:
        raise SpecError(
            f"the workflow unrolls to {total} nodes (copies count); at most {MAX_NODES} are possible",
            where=location(workflow, "stages"),
        )
    flat = [(i, copy) for i in order for copy in range(copies[i])]
    index: dict[str, tuple[int, ...]] = {}
    for k, (i, _) in enumerate(flat):
        index[workflow.stages[i].name] = (*index.get(workflow.stages[i].name, ()), k)
    parents = [_nodes_of(workflow.stages[i].parents, index) for i, _ in flat]
    children: list[tuple[int, ...]] = [tuple(k for k, p in enumerate(parents) if j in p) for j in range(total)]
    depth = [1] * total
    for k in reversed(range(total)):
        depth[k] = 1 + max((depth[c] for c in children[k]), default=0)
    llm = [k for k, (i, _) in enumerate(flat) if workflow.stages[i].kind == "llm"]
    nodes = []
    for k, (i, copy) in enumerate(flat):
        stage = workflow.stages[i]
        prompt = stage.prompt
        context = _nodes_of(prompt.context, index) if prompt and prompt.context is not None else parents[k]
        nodes.append(
            Node(
                name=f"{stage.name}[{copy}]" if stage.fan_out else stage.name,
                stage=i,
                copy=copy,
                kind=stage.kind,
                parents=parents[k],
                children=children[k],
                context=tuple(sorted(context)),
                depth=depth[k],
                llm_slot=llm.index(k) if k in llm else -1,
                skip_on=index[stage.skip.on][0] if stage.skip else -1,
            )
        )
    return WorkflowGraph(
        workflow=workflow,
        nodes=tuple(nodes),
        parents=np.array([_mask(node.parents) for node in nodes], dtype=np.int64),
        children=np.array([_mask(node.children) for node in nodes], dtype=np.int64),
        depth=np.array(depth, dtype=np.int32),
        llm_slot=np.array([node.llm_slot for node in nodes], dtype=np.int32),
        stage=np.array([node.stage for node in nodes], dtype=np.int32),
        copy=np.array([node.copy for node in nodes], dtype=np.int32),
    )


def _nodes_of(stages: tuple[str, ...], index: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(k for name in stages for k in index[name])


def _mask(nodes: tuple[int, ...]) -> int:
    return sum(1 << k for k in nodes)


def _stage_names(workflow: WorkflowSpec) -> dict[str, int]:
    if not workflow.stages:
        raise SpecError("a workflow needs at least one stage", where=location(workflow, "stages"))
    names: dict[str, int] = {}
    for i, stage in enumerate(workflow.stages):
        if stage.name in names:
            raise SpecError(f"two stages are called '{stage.name}'", where=location(workflow, f"stages[{i}].name"))
        names[stage.name] = i
    if all(stage.kind == "tool" for stage in workflow.stages):
        raise SpecError("a workflow needs at least one LLM stage", where=location(workflow, "stages"))
    return names


def _check_references(workflow: WorkflowSpec, i: int, stage: StageSpec, names: dict[str, int]) -> None:
    """Refuse names of stages that do not exist."""
    mentions = [(f"parents[{k}]", name) for k, name in enumerate(stage.parents)]
    if stage.prompt and stage.prompt.context:
        mentions += [(f"prompt.context[{k}]", name) for k, name in enumerate(stage.prompt.context)]
    if stage.skip:
        mentions.append(("skip.on", stage.skip.on))
    for key, name in mentions:
        if name not in names:
            hint = did_you_mean(name, names)
            raise SpecError(f"unknown stage '{name}'.{hint}", where=location(workflow, f"stages[{i}].{key}"))
    for key, group in (
        ("parents", stage.parents),
        ("prompt.context", (stage.prompt and stage.prompt.context) or ()),
    ):
        twice = [name for k, name in enumerate(group) if name in group[:k]]
        if twice:
            raise SpecError(f"stage '{twice[0]}' is listed twice", where=location(workflow, f"stages[{i}].{key}"))


def _topological(workflow: WorkflowSpec, names: dict[str, int]) -> list[int]:
    """Return the stages in topological order, in file order where the parents allow it."""
    order: list[int] = []
    left = list(range(len(workflow.stages)))
    while left:
        ready = [i for i in left if all(names[p] in order for p in workflow.stages[i].parents)]
        if not ready:
            cycle = _cycle(workflow, names, left)
            raise SpecError(
                f"the stages form a cycle: {' -> '.join(cycle)} (each waits for the one before it); "
                "unroll a loop into as many stages as it may take, with skip conditions",
                where=location(workflow, f"stages[{names[cycle[0]]}].parents"),
            )
        order.append(ready[0])
        left.remove(ready[0])
    return order


def _cycle(workflow: WorkflowSpec, names: dict[str, int], left: list[int]) -> list[str]:
    """Return the names along one cycle among the stages `left`, in the direction of execution."""
    path: list[int] = []
    current = left[0]
    while current not in path:
        path.append(current)
        current = next(names[p] for p in workflow.stages[current].parents if names[p] in left)
    members = path[path.index(current) :]
    members.reverse()
    first = members.index(min(members))
    members = members[first:] + members[:first]
    return [workflow.stages[i].name for i in [*members, members[0]]]


def _ancestors(workflow: WorkflowSpec, names: dict[str, int], order: list[int]) -> dict[int, set[int]]:
    ancestors: dict[int, set[int]] = {}
    for i in order:
        direct = {names[p] for p in workflow.stages[i].parents}
        ancestors[i] = direct.union(*(ancestors[j] for j in direct)) if direct else set()
    return ancestors


def _check_stage(workflow: WorkflowSpec, i: int, stage: StageSpec, ancestors: set[str]) -> None:
    """Refuse a stage that lacks what its kind needs, has what its kind cannot use, or looks ahead."""

    def fail(message: str, key: str) -> None:
        raise SpecError(f"stage '{stage.name}' {message}", where=location(workflow, f"stages[{i}]{key}"))

    if stage.kind == "llm":
        _check_llm_stage(stage, fail)
    else:
        for key in ("prompt", "output", "candidates"):
            if getattr(stage, key) is not None:
                fail(f"is a tool and cannot have '{key}'; write 'kind: llm' or drop the key", f".{key}")
        if stage.tool_s is None:
            fail("is a tool and needs 'tool_s', the seconds it takes", "")
    if stage.fan_out and abs(sum(stage.fan_out.probabilities) - 1.0) > 1e-6:
        total = sum(stage.fan_out.probabilities)
        fail(f"has fan-out probabilities that sum to {total:g}; they must sum to 1", ".fan_out.probabilities")
    for name in (stage.prompt and stage.prompt.context) or ():
        if name not in ancestors:
            fail(f"reads the output of '{name}', which need not be done before it", ".prompt.context")
    if stage.skip:
        on = next(s for s in workflow.stages if s.name == stage.skip.on)
        if on.name not in ancestors:
            fail(f"is skipped on '{on.name}', which is no ancestor of it", ".skip.on")
        if on.kind != "llm" or on.fan_out:
            fail(f"is skipped on '{on.name}', which must be one LLM call (no tool, no fan-out)", ".skip.on")
        if not stage.skip.probability_by_size_b:
            fail("needs at least one probability of being skipped", ".skip.probability_by_size_b")


def _check_llm_stage(stage: StageSpec, fail: Callable[[str, str], None]) -> None:
    for key in ("prompt", "output"):
        if getattr(stage, key) is None:
            fail(f"is an LLM stage and needs '{key}'", "")
    for key in ("tool_s", "tool_output"):
        if getattr(stage, key) is not None:
            fail(f"is an LLM stage and cannot have '{key}'; write 'kind: tool' or drop the key", f".{key}")
    assert stage.prompt is not None and stage.output is not None
    if not stage.output.median_by_size_b:
        fail("needs at least one median number of output tokens", ".output.median_by_size_b")
    if stage.candidates is not None and not stage.candidates:
        fail("has an empty list of candidates; leave the key out to allow every model", ".candidates")
    reads = stage.prompt.context if stage.prompt.context is not None else stage.parents
    if not (stage.prompt.template_tokens or stage.prompt.query or reads):
        fail("has an empty prompt: give it template_tokens, the query or a context", ".prompt")
