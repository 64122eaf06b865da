"""Requests of a live run on their way through their workflows: which calls are ready, which tools are to be run, what is over.

The same rules as the compiled `aragog_env.progress`, with real outputs in place of drawn ones: a workflow's runtime reads from
the outputs whether a stage runs. No network, no clock and no threads here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...datasets.record import Record
from ...grading.runtime import WorkflowRuntime

Status = Literal["in flight", "done", "failed"]


@dataclass(eq=False)
class LiveCall:
    """One LLM stage of one request, from ready to done; tried again under another attempt where it fails."""

    request: LiveRequest
    node: int
    prompt: str
    prompt_tokens: int
    """Estimated until a server has counted them."""
    ready_s: float
    attempt: int = 0
    excluded: set[int] = field(default_factory=set)
    """Routes that failed it."""
    refused: set[int] = field(default_factory=set)
    """Models whose servers will never take it."""
    parked_s: float | None = None
    """Since when no server could take it."""
    last_error: str = ""

    @property
    def stage(self) -> str:
        """The node's name, for messages."""
        return self.request.runtime.graph.nodes[self.node].name

    @property
    def order(self) -> tuple[int, int, int]:
        """Requests by arrival, inside a request the deepest stage first: the order of a view."""
        return self.request.rank, -self.request.runtime.graph.nodes[self.node].depth, self.node


@dataclass(eq=False)
class LiveRequest:
    """One request."""

    rank: int
    """Order of arrival."""
    tape: int
    """Its place on the episode's tape."""
    workflow: int
    query: int
    record: Record
    runtime: WorkflowRuntime
    arrival_s: float
    outputs: dict[int, str] = field(default_factory=dict)
    """Of the nodes that ran."""
    served: dict[int, int] = field(default_factory=dict)
    """Model that each node was sent to."""
    finished: set[int] = field(default_factory=set)
    """Nodes that are done or skipped."""
    started: set[int] = field(default_factory=set)
    status: Status = "in flight"
    reason: str = ""
    finish_s: float = float("nan")
    """When its last stage ended; nan for a request that failed."""
    end_s: float = float("nan")
    """When it was over, well or not."""
    correct: int = -1
    """1, 0, or -1 when unknown."""
    graded: bool = False
    """Whether a grader has spoken, if only to refuse."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"request {self.rank} ({self.runtime.workflow.name}, {self.record.id})"

    def advance(self) -> tuple[list[int], list[int]]:
        """Begin every node whose parents are done; skip those that the outputs say are not needed.

        Returns:
            (LLM nodes that are ready now, tool nodes to be run now).
        """
        calls: list[int] = []
        tools: list[int] = []
        # In topological order, so that one pass sees the effect of every skipped node.
        for k, node in enumerate(self.runtime.graph.nodes):
            if k in self.started or not self.finished.issuperset(node.parents):
                continue
            self.started.add(k)
            if not self.runtime.runs(k, self.outputs):
                self.finished.add(k)
            elif node.kind == "tool":
                tools.append(k)
            else:
                calls.append(k)
        return calls, tools

    def complete(self, node: int, output: str) -> None:
        """A node has run."""
        self.outputs[node] = output
        self.finished.add(node)

    @property
    def is_complete(self) -> bool:
        """Whether every node is done or skipped."""
        return len(self.finished) == len(self.runtime.graph.nodes)

    def configuration(self, models: int) -> int:
        """Return the index of the models that served it; a skipped stage counts as served by the largest."""
        index = 0
        for k, node in enumerate(self.runtime.graph.nodes):
            if node.kind == "llm":
                index = index * models + self.served.get(k, models - 1)
        return index

    def restore(self, outputs: Mapping[int, tuple[str, int]], tools: Mapping[int, str]) -> None:
        """Take over what an earlier session recorded: node -> (output, model), and tool node -> output."""
        for node, (text, model) in outputs.items():
            self.served[node] = model
            self.complete(node, text)
        for node, text in tools.items():
            self.complete(node, text)
        self.started |= self.finished


class ReadyCalls:
    """The calls that wait for a decision, in the order of a view."""

    def __init__(self) -> None:
        self._calls: list[LiveCall] = []

    def add(self, call: LiveCall) -> None:
        """A call is ready, or ready again."""
        self._calls.append(call)
        self._calls.sort(key=lambda c: c.order)

    def remove(self, call: LiveCall) -> None:
        """A call was sent, or its request is over."""
        self._calls.remove(call)

    def drop(self, request: LiveRequest) -> None:
        """Forget all calls of a request that has failed."""
        self._calls = [call for call in self._calls if call.request is not request]

    def __iter__(self) -> Iterator[LiveCall]:
        return iter(tuple(self._calls))

    def __len__(self) -> int:
        return len(self._calls)


class TokenEstimator:
    """Estimates the length of prompts from what servers counted so far; characters / 4 at first.

    The ratio depends on the tokenizer and on what a stage's prompts are made of, so there is one per stage.
    """

    _PRIOR_TOKENS = 50.0
    """The first estimate weighs as much as this many counted tokens."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[float, float]] = {}

    def estimate(self, workflow: int, node: int, text: str) -> int:
        """Return the estimated tokens of a stage's prompt, at least 1."""
        characters, tokens = self._seen.get((workflow, node), (0.0, 0.0))
        ratio = (tokens + self._PRIOR_TOKENS) / (characters + 4.0 * self._PRIOR_TOKENS)
        return max(1, round(len(text) * ratio))

    def learn(self, workflow: int, node: int, text: str, tokens: int) -> None:
        """A server has counted a prompt."""
        if tokens > 0:
            before = self._seen.get((workflow, node), (0.0, 0.0))
            self._seen[workflow, node] = (before[0] + len(text), before[1] + tokens)
