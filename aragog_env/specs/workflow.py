"""What a workflow is: a directed acyclic graph of LLM and tool stages with stated token lengths.

Keys marked "live runs" name functions that the simulator does not need, as ``module:function``, or as ``file.py:function``
for a file in the workflow's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .bounds import Count, NonNegative, NonNegativeInt, Positive, Share

StageKind = Literal["llm", "tool"]


@dataclass(frozen=True)
class LengthSpec:
    """A log-normal token count, clipped to [minimum, maximum]."""

    median: Positive
    sigma: NonNegative = 0.0
    minimum: NonNegativeInt = 1
    maximum: Count = 8192


@dataclass(frozen=True)
class DurationSpec:
    """A log-normal duration in seconds, clipped to [0, maximum_s]."""

    median_s: NonNegative
    sigma: NonNegative = 0.0
    maximum_s: NonNegative = 60.0


@dataclass(frozen=True)
class OutputSpec:
    """Output tokens of an LLM stage: a log-normal whose median depends on the model's size.

    `median_by_size_b` maps a model size in 1e9 parameters to a median; sizes between are interpolated
    linearly in log(size), sizes outside take the nearest. `query_correlation` is the share of the log
    variance that all models have in common on one query (data: rank correlation over queries 0.45-0.7).
    """

    median_by_size_b: dict[Positive, Positive]
    sigma: NonNegative
    max_tokens: Count
    query_correlation: Share = 0.6
    source: str = ""


@dataclass(frozen=True)
class PromptSpec:
    """How the prompt of an LLM stage is put together: template, then the query, then parents' outputs.

    Stages that name the same `template` share its tokens (and then the query's) as a common prefix.
    """

    template: str
    template_tokens: NonNegativeInt
    query: bool = True
    """Whether the query's own text (`WorkflowSpec.query_tokens`) is part of this prompt."""
    context: tuple[str, ...] | None = None
    """Stages whose outputs are appended, in the order of the stages; None means the parents."""
    fields: str = ""
    """Live runs: a function that changes what the placeholders stand for (see `aragog_env.grading.prompts`)."""


@dataclass(frozen=True)
class FanOutSpec:
    """Parallel copies of a stage; how many is known once its parents are done."""

    probabilities: tuple[Share, ...]
    """probabilities[k] is the chance of k + 1 copies."""
    count: str = ""
    """Live runs: a function from the parent's output to the number of copies; without one, as many as possible run."""


@dataclass(frozen=True)
class SkipSpec:
    """Skip a stage when an earlier stage's output says so (a critique that finds nothing to refine)."""

    on: str
    probability_by_size_b: dict[Positive, Share]
    """Chance that the stage is skipped, by the size of the model that served `on`."""
    when: str = ""
    """Live runs: a function from the output of `on` to whether the stage is skipped; without one, it never is."""
    instead: str = ""
    """Live runs: the earlier stage whose output stands for this one's when it is skipped."""


@dataclass(frozen=True)
class StageSpec:
    """One agent of a workflow: an LLM prompt, or a tool that takes time and returns tokens."""

    name: str
    kind: StageKind = "llm"
    parents: tuple[str, ...] = ()
    prompt: PromptSpec | None = None
    output: OutputSpec | None = None
    candidates: tuple[str, ...] | None = None
    """Models allowed to serve this stage; None means every model of the cluster."""
    fan_out: FanOutSpec | None = None
    skip: SkipSpec | None = None
    tool_s: DurationSpec | None = None
    """Seconds a tool takes: a log-normal (see `DurationSpec`)."""
    tool_output: LengthSpec | None = None
    tool: str = ""
    """Live runs: the function that does a tool stage's work (see `aragog_env.grading.tools`)."""
    quality_weight: NonNegative = 1.0
    """Weight of this stage's model in the synthetic outcome generator (0: does not matter)."""


@dataclass(frozen=True)
class WorkflowSpec:
    """A workflow with the data set it is run on."""

    name: str
    stages: tuple[StageSpec, ...]
    query_tokens: LengthSpec
    queries: Count
    """Number of distinct queries in the data set."""
    dataset: str = ""
    """The data set in words."""
    dataset_format: str = ""
    """Live runs: how its files are read, a name of `aragog_env.datasets` or a function from a path to records."""
    dataset_files: tuple[str, ...] = ()
    """Live runs: where its file may lie, seen from the workflow's folder; without any, the usual places are searched."""
    grader: str = ""
    """Live runs: the function that grades an answer (see `aragog_env.grading.runtime`)."""
    accuracy_by_size_b: dict[Positive, Share] = field(default_factory=dict)
    """Accuracy when one model of that size serves every stage: input of the synthetic outcome generator."""
    difficulty_sigma: NonNegative = 1.0
    description: str = ""
    source: str = ""
    locations: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each key stands in its file, for error messages."""
