"""What recordings know: for a query, what each call was asked and wrote, under which models, and whether the answer was right.

What a call is asked depends on what the calls before it wrote, hence on the models that served them: its *context*. A turn is
*recorded* when the same query met the same model in the same context, and *recorded in another context* when only the models
before it differ; the context that agrees in the most places then answers. Otherwise it was never recorded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

from ..compiled_scenario import CompiledScenario
from ..recording.reader import Recording
from ..specs.graph import WorkflowGraph

T = TypeVar("T")
Context = tuple[str, ...]
"""The model of each LLM call that a node depends on, in node order; SKIPPED where it did not run."""
SKIPPED: Final = "-"


class Known(IntEnum):
    """How well a turn is known."""

    RECORDED = 0
    OTHER_CONTEXT = 1
    NEVER = 2


@dataclass(frozen=True)
class Prompt:
    """A recorded prompt."""

    tokens: int
    read_tokens: int
    """What the calls and tools whose outputs it is said to hold wrote; more than `tokens` where it holds them only in part."""


class Facts(Generic[T]):
    """Values by what they are about and by context. The first value of a context stays."""

    def __init__(self) -> None:
        self._values: dict[Hashable, dict[Context, T]] = {}

    def add(self, key: Hashable, context: Context, value: T) -> None:
        """Note a value."""
        self._values.setdefault(key, {}).setdefault(context, value)

    def get(self, keys: Sequence[Hashable], context: Context) -> tuple[T | None, Known]:
        """Return the value of the first key that knows this context; else the value in the context that is most like it."""
        found = [self._values[key] for key in keys if key in self._values]
        for values in found:
            if context in values:
                return values[context], Known.RECORDED
        if not found:
            return None, Known.NEVER

        def agreement(other: Context) -> int:
            return sum(a == b for a, b in zip(other, context, strict=True))

        return found[0][max(found[0], key=agreement)], Known.OTHER_CONTEXT


@dataclass(eq=False)
class RecordedRequest:
    """One request of a recording."""

    workflow: int
    query: int
    query_id: str
    tape: int
    rank: int
    arrival_s: float
    done: bool
    configuration: int
    correct: int
    """1, 0, or -1 when unknown."""
    served: dict[int, str] = field(default_factory=dict)
    """Model by node."""
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    output_tokens: dict[int, int] = field(default_factory=dict)
    """Of calls and tools."""
    tool_s: dict[int, float] = field(default_factory=dict)


def stand_in(like: RecordedRequest, tape: int, arrival_s: float) -> RecordedRequest:
    """Return a request that was never recorded: the question of another one."""
    return RecordedRequest(like.workflow, like.query, like.query_id, tape, -1, arrival_s, False, -1, -1)


def read_requests(recording: Recording, compiled: CompiledScenario) -> list[RecordedRequest]:
    """Return the requests of a recording in order of arrival, with what was finished of them."""
    names = [graph.workflow.name for graph in compiled.graphs]
    requests: dict[int, RecordedRequest] = {}
    for row in recording.rows("requests"):
        requests[row["request"]] = RecordedRequest(
            workflow=names.index(row["workflow"]),
            query=row["query"],
            query_id=row["query_id"],
            tape=row["tape"],
            rank=row["request"],
            arrival_s=row["arrival_s"],
            done=row["status"] == "done",
            configuration=-1 if row["configuration"] is None else row["configuration"],
            correct=-1 if row["correct"] is None else row["correct"],
        )
    characters: dict[int, tuple[int, int]] = {}
    for row in recording.rows("calls", "status = 'ok'"):
        request, node = requests[row["request"]], row["node"]
        request.served[node], request.output_tokens[node] = row["model"], max(1, row["output_tokens"])
        request.prompt_tokens[node] = max(1, row["prompt_tokens"])
        length, tokens = characters.get(request.workflow, (0, 0))
        characters[request.workflow] = (length + len(row["prompt"]), tokens + row["prompt_tokens"])
    for row in recording.rows("tools"):
        request, node = requests[row["request"]], row["node"]
        length, tokens = characters.get(request.workflow, (0, 0))
        # Nobody counts a tool's tokens: as many per character as in this workflow's prompts.
        request.output_tokens[node] = max(1, round(len(row["output"]) * (tokens / length if length else 0.25)))
        request.tool_s[node] = row["finish_s"] - row["start_s"]
    return list(requests.values())


class Turns:
    """All that recordings of one scenario know. `own` below is the number of a request on the tape that is replayed.

    Args:
        compiled: the scenario.
    """

    def __init__(self, compiled: CompiledScenario) -> None:
        self._graphs = compiled.graphs
        self._ancestors = [_llm_ancestors(graph) for graph in compiled.graphs]
        self._runs: Facts[bool] = Facts()
        self._prompts: Facts[Prompt] = Facts()
        self._written: Facts[int] = Facts()
        self._tools: Facts[tuple[int, float]] = Facts()
        self._right: dict[Hashable, int] = {}

    def context(self, workflow: int, node: int, served: Mapping[int, str]) -> Context:
        """Return the models before a node."""
        return tuple(served.get(k, SKIPPED) for k in self._ancestors[workflow][node])

    def add(self, request: RecordedRequest, own: Hashable | None = None) -> None:
        """Take in a recorded request; `own` is what stands for it where it is replayed itself."""
        keys: list[Hashable] = [(request.workflow, request.query_id)]
        if own is not None:
            keys.append(own)
        for key in keys:
            for k, node in enumerate(self._graphs[request.workflow].nodes):
                context = self.context(request.workflow, k, request.served)
                ran = k in request.output_tokens
                if ran or request.done:
                    self._runs.add((key, k), context, ran)
                if not ran:
                    continue
                if node.kind == "tool":
                    self._tools.add((key, k), context, (request.output_tokens[k], request.tool_s[k]))
                    continue
                read = sum(request.output_tokens.get(c, 0) for c in node.context)
                self._prompts.add((key, k), context, Prompt(request.prompt_tokens[k], read))
                self._written.add((key, k, request.served[k]), context, request.output_tokens[k])
            if request.done and request.correct >= 0:
                self._right.setdefault((key, request.configuration), request.correct)

    @staticmethod
    def _keys(request: RecordedRequest, own: Hashable, *more: Any) -> list[Hashable]:
        return [(own, *more), ((request.workflow, request.query_id), *more)]

    def runs(self, request: RecordedRequest, own: Hashable, k: int, context: Context) -> bool | None:
        """Return whether a node runs, None where no recording tells."""
        return self._runs.get(self._keys(request, own, k), context)[0]

    def prompt(self, request: RecordedRequest, own: Hashable, k: int, context: Context) -> tuple[Prompt | None, Known]:
        """Return the prompt of a call; its own model does not matter."""
        return self._prompts.get(self._keys(request, own, k), context)

    def written(
        self, request: RecordedRequest, own: Hashable, k: int, model: str, context: Context
    ) -> tuple[int | None, Known]:
        """Return what a model writes."""
        return self._written.get(self._keys(request, own, k, model), context)

    def tool(self, request: RecordedRequest, own: Hashable, k: int, context: Context) -> tuple[int, float] | None:
        """Return a tool's output tokens and seconds."""
        return self._tools.get(self._keys(request, own, k), context)[0]

    def right(self, request: RecordedRequest, own: Hashable, configuration: int) -> int | None:
        """Return whether the answer of a configuration was right, None where no recording tells."""
        for key in (own, (request.workflow, request.query_id)):
            if (found := self._right.get((key, configuration))) is not None:
                return found
        return None


def _llm_ancestors(graph: WorkflowGraph) -> list[tuple[int, ...]]:
    """Return, for each node, the LLM calls that have to be over before it begins."""
    before: list[set[int]] = []
    for node in graph.nodes:
        before.append({*node.parents, *(k for parent in node.parents for k in before[parent])})
    return [tuple(k for k in sorted(nodes) if graph.nodes[k].kind == "llm") for nodes in before]
