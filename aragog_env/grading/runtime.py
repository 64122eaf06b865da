"""A workflow as something to run: what to ask next, what an output decides, what a tool says, how right the answer is.

No network here. Whoever talks to servers keeps one mapping per request, `outputs`: node of the unrolled workflow -> its
output. Nodes that were skipped, and copies of a fan-out stage that were not needed, are absent. All functions are pure
but `run_tool` and `grade`, which may run programs: they block, so call them in a thread from asynchronous code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..datasets import FORMATS, Record, load_dataset
from ..errors import SpecError
from ..specs.graph import WorkflowGraph, unroll
from ..specs.load import load_workflow, workflow_file
from ..specs.strict import location
from ..specs.workflow import StageSpec, WorkflowSpec
from .binding import resolve
from .grade import Grade
from .prompts import Fields, PromptContext, Template, join_outputs, load_template
from .tools import ToolCall, ToolResult

Outputs = Mapping[int, str]
"""Node -> output, for the nodes that ran."""
DEFAULT_TOOL_S = 60.0


class WorkflowRuntime:
    """One workflow with its templates, functions and data set; can serve any number of requests at once.

    Args:
        workflow: the workflow.
        folder: where its templates, Python files and data files are.

    Raises:
        SpecError: a template or function is missing or does not fit, with file and line.
    """

    def __init__(self, workflow: WorkflowSpec, folder: Path) -> None:
        self.workflow = workflow
        self.folder = folder
        self.graph: WorkflowGraph = unroll(workflow)
        self._nodes_of: dict[str, tuple[int, ...]] = {}
        for k, stage in enumerate(self.graph.stage_of):
            self._nodes_of[stage.name] = (*self._nodes_of.get(stage.name, ()), k)
        self._templates = {s.name: self._template(s) for s in workflow.stages if s.kind == "llm"}
        self._functions = self._bind()
        self._last = self._answering_stage()

    def prompt(self, node: int, record: Record, outputs: Outputs) -> str:
        """Return the prompt of an LLM node once its parents are done, as one text."""
        stage = self.graph.stage_of[node]
        spec = stage.prompt
        if spec is None:
            raise ValueError(f"stage '{stage.name}' is a tool: it has no prompt")
        names = stage.parents if spec.context is None else spec.context
        seen = {name: self.outputs_of(name, outputs) for name in names}
        copy = self.graph.nodes[node].copy + 1
        fields = {name: join_outputs(texts) for name, texts in seen.items()}
        if spec.query:
            fields["query"] = record.query
        if stage.fan_out:
            fields["copy"] = str(copy)
        change: Fields | None = self._functions.get(f"{stage.name}.fields")
        if change is not None:
            fields = dict(change(fields, PromptContext(record, stage.name, copy, seen)))
        return self._templates[stage.name].fill(fields)

    def messages(self, node: int, record: Record, outputs: Outputs) -> list[dict[str, str]]:
        """Return the prompt as the messages of a chat completion: one by the user."""
        return [{"role": "user", "content": self.prompt(node, record, outputs)}]

    def runs(self, node: int, outputs: Outputs) -> bool:
        """Return whether a node runs at all, once its parents are done: not skipped, and not a copy too many."""
        stage = self.graph.stage_of[node]
        return not self.skips(stage.name, outputs) and self.graph.nodes[node].copy < self.copies(stage.name, outputs)

    def skips(self, stage: str, outputs: Outputs) -> bool:
        """Return whether a stage is skipped, because the output of another says so (`skip.when`)."""
        when = self._functions.get(f"{stage}.when")
        if when is None:
            return False
        skip = self._stage(stage).skip
        assert skip is not None
        judged = self.outputs_of(skip.on, outputs)
        return bool(judged) and bool(when(judged[-1]))

    def copies(self, stage: str, outputs: Outputs) -> int:
        """Return how many copies of a stage run: what its parent's output says, at least one, at most all."""
        most = len(self._nodes_of[stage])
        count = self._functions.get(f"{stage}.count")
        if count is None:
            return most
        texts = [text for parent in self._stage(stage).parents for text in self.outputs_of(parent, outputs)]
        return max(1, min(most, int(count(join_outputs(texts)))))

    def run_tool(self, node: int, record: Record, outputs: Outputs) -> ToolResult:
        """Run a tool node and return what it says; blocks."""
        stage = self.graph.stage_of[node]
        run = self._functions.get(f"{stage.name}.tool")
        if run is None:
            message = f"stage '{stage.name}' cannot be run live: give it 'tool', the function that does its work"
            raise SpecError(message, where=self._where(stage, "tool"))
        inputs = {parent: self.outputs_of(parent, outputs) for parent in stage.parents}
        limit_s = stage.tool_s.maximum_s if stage.tool_s else DEFAULT_TOOL_S
        result: ToolResult = run(ToolCall(record, stage.name, inputs, limit_s))
        return result

    def outputs_of(self, stage: str, outputs: Outputs) -> tuple[str, ...]:
        """Return what a stage wrote, one text per copy; for a skipped stage, what stands for it (`skip.instead`)."""
        texts = tuple(outputs[node] for node in self._nodes_of[stage] if node in outputs)
        skip = self._stage(stage).skip
        if not texts and skip is not None and skip.instead:
            return self.outputs_of(skip.instead, outputs)
        return texts

    def answer(self, outputs: Outputs) -> str:
        """Return the answer of a finished request: what its last stage wrote, or what stands for that."""
        return join_outputs(self.outputs_of(self._last, outputs))

    def grade(self, record: Record, outputs: Outputs) -> Grade:
        """Grade the answer of a finished request; may block for as long as the grader's limits allow."""
        grader = self._functions.get("grader")
        if grader is None:
            message = "this workflow has no grader, so its answers cannot be graded"
            raise SpecError(message, where=location(self.workflow, "grader"))
        result: Grade = grader(record, self.answer(outputs))
        return result

    def records(
        self, path: str | Path | None = None, *, count: int | None = None, seed: int = 0, download: bool = False
    ) -> tuple[Record, ...]:
        """Return the workflow's questions: as many as its `queries` says, or as there are, or `count`.

        Args:
            path: file or folder; default: `dataset_files` of the workflow, then the usual places.
            count: how many.
            seed: of the draw.
            download: fetch the file when it is nowhere to be found.

        Raises:
            SpecError: the workflow names no format, or see `load_dataset`.
        """
        form = self.workflow.dataset_format
        if not form:
            message = "this workflow names no 'dataset_format', so its questions cannot be loaded"
            raise SpecError(message, where=location(self.workflow, "dataset_format"))
        if path is None:
            files = (self.folder / Path(name).expanduser() for name in self.workflow.dataset_files)
            path = next((file for file in files if file.exists()), None)
        count = self.workflow.queries if count is None else count
        loader = self._functions.get("dataset_format")
        return load_dataset(form, path, count=count, seed=seed, loader=loader, download=download)

    def _stage(self, name: str) -> StageSpec:
        return self.graph.stage_of[self._nodes_of[name][0]]

    def _where(self, stage: StageSpec, key: str) -> str:
        return location(self.workflow, f"stages[{self.workflow.stages.index(stage)}].{key}")

    def _template(self, stage: StageSpec) -> Template:
        assert stage.prompt is not None
        names = stage.parents if stage.prompt.context is None else stage.prompt.context
        known = {*names, *(["query"] if stage.prompt.query else []), *(["copy"] if stage.fan_out else [])}
        return load_template(self.folder / stage.prompt.template, None if stage.prompt.fields else known)

    def _bind(self) -> dict[str, Callable[..., Any]]:
        """Load every function the workflow names, so that a typing error shows before the first request."""
        named: dict[str, tuple[str, str]] = {}
        if self.workflow.grader:
            named["grader"] = (self.workflow.grader, location(self.workflow, "grader"))
        if self.workflow.dataset_format and self.workflow.dataset_format not in FORMATS:
            named["dataset_format"] = (self.workflow.dataset_format, location(self.workflow, "dataset_format"))
        for stage in self.workflow.stages:
            if stage.tool:
                if stage.kind != "tool":
                    message = f"stage '{stage.name}' is an LLM stage and cannot have 'tool'; write 'kind: tool'"
                    raise SpecError(message, where=self._where(stage, "tool"))
                named[f"{stage.name}.tool"] = (stage.tool, self._where(stage, "tool"))
            if stage.prompt and stage.prompt.fields:
                named[f"{stage.name}.fields"] = (stage.prompt.fields, self._where(stage, "prompt.fields"))
            if stage.skip and stage.skip.when:
                named[f"{stage.name}.when"] = (stage.skip.when, self._where(stage, "skip.when"))
            if stage.skip and stage.skip.instead:
                self._check_instead(stage)
            if stage.fan_out and stage.fan_out.count:
                named[f"{stage.name}.count"] = (stage.fan_out.count, self._where(stage, "fan_out.count"))
        return {key: resolve(name, self.folder, where=where) for key, (name, where) in named.items()}

    def _check_instead(self, stage: StageSpec) -> None:
        assert stage.skip is not None
        own = self._nodes_of[stage.name][0]
        earlier = [name for name, nodes in self._nodes_of.items() if nodes[0] < own]
        if stage.skip.instead not in earlier:
            message = f"'{stage.skip.instead}' is no stage before '{stage.name}' (there are: {', '.join(earlier)})"
            raise SpecError(message, where=self._where(stage, "skip.instead"))

    def _answering_stage(self) -> str:
        last = {self.graph.stage_of[k].name for k, node in enumerate(self.graph.nodes) if not node.children}
        if len(last) != 1:
            message = f"a live workflow needs one last stage, whose output is the answer; it has {len(last)}"
            raise SpecError(message, where=location(self.workflow, "stages"))
        return last.pop()


def load_runtime(name_or_path: str | Path) -> WorkflowRuntime:
    """Return the runtime of a workflow by name or path, as `aragog_env.specs.load.load_workflow` takes them.

    Raises:
        SpecError: unknown workflow, or one that cannot be run live.
    """
    folder = workflow_file(name_or_path).resolve().parent
    return WorkflowRuntime(load_workflow(name_or_path), folder)
