"""Every configuration of a workflow on every query, with each distinct call made once.

A configuration's calls up to some stage depend only on the models of the stages before it, and different models often write
the same. So stages are done one after another, and a model is asked every distinct prompt once: some dozens of calls per
query instead of configurations x stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.datasets import Record
from aragog_env.grading.runtime import WorkflowRuntime
from aragog_env.outcomes import OutcomeTable, configuration_digits


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    tokens: int
    """Output tokens, the end of text included."""


Complete = Callable[[int, Sequence[str], int], Sequence[Completion]]
"""(index of the model, distinct prompts, most tokens) -> one completion per prompt."""

FEATURES: Final = ("log characters", "log digits", "sums", "products", "brackets", "depth")
CHUNK: Final = 100
"""Queries whose calls are made together; more take more memory, fewer leave servers idle."""


@dataclass(frozen=True)
class Measured:
    """Outcomes of Q queries: N nodes, M models, C configurations."""

    correct: NDArray[np.bool_]  # (Q, C)
    output_tokens: NDArray[np.float64]  # (Q, N, M) mean over the configurations before; 0 where a call never ran
    runs: NDArray[np.float64]  # (Q, N) share of the configurations in which a call ran
    calls: int


def measure(
    runtime: WorkflowRuntime,
    records: Sequence[Record],
    models: int,
    complete: Complete,
    log: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Run every configuration of a workflow without tools on the records.

    Raises:
        ValueError: the workflow has a tool stage.
    """
    if any(node.kind != "llm" for node in runtime.graph.nodes):
        raise ValueError(f"'{runtime.workflow.name}' has a tool stage; only LLM stages can be measured this way")
    parts = []
    for first in range(0, len(records), CHUNK):
        parts.append(_measure_chunk(runtime, records[first : first + CHUNK], models, complete))
        log(f"{min(first + CHUNK, len(records))} of {len(records)} queries, {sum(part.calls for part in parts)} calls")
    return Measured(
        correct=np.concatenate([part.correct for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        runs=np.concatenate([part.runs for part in parts]),
        calls=sum(part.calls for part in parts),
    )


def _measure_chunk(runtime: WorkflowRuntime, records: Sequence[Record], models: int, complete: Complete) -> Measured:
    nodes = len(runtime.graph.nodes)
    # states[q][i]: outputs of query q under the i-th choice of models for the calls so far, first call most significant
    states: list[list[dict[int, str]]] = [[{}] for _ in records]
    tokens = np.zeros((len(records), nodes, models))
    runs = np.zeros((len(records), nodes))
    calls = 0
    for node in range(nodes):
        prompts = [
            [runtime.prompt(node, record, state) if runtime.runs(node, state) else None for state in row]
            for record, row in zip(records, states, strict=True)
        ]
        distinct = sorted({prompt for row in prompts for prompt in row if prompt is not None})
        limit = _limit(runtime, node)
        answers = [dict(zip(distinct, complete(m, distinct, limit), strict=True)) for m in range(models)]
        calls += models * len(distinct)
        for q, row in enumerate(prompts):
            asked = [prompt for prompt in row if prompt is not None]
            runs[q, node] = len(asked) / len(row)
            if asked:
                tokens[q, node] = [np.mean([answers[m][prompt].tokens for prompt in asked]) for m in range(models)]
            states[q] = [
                state if prompt is None else {**state, node: answers[m][prompt].text}
                for state, prompt in zip(states[q], row, strict=True)
                for m in range(models)
            ]
    correct = np.array([_graded(runtime, record, row) for record, row in zip(records, states, strict=True)])
    return Measured(correct, tokens, runs, calls)


def _limit(runtime: WorkflowRuntime, node: int) -> int:
    output = runtime.graph.stage_of[node].output
    assert output is not None
    return int(output.max_tokens)


def _graded(runtime: WorkflowRuntime, record: Record, row: list[dict[int, str]]) -> list[bool]:
    grades: dict[str, bool] = {}
    for state in row:
        answer = runtime.answer(state)
        if answer not in grades:
            grades[answer] = runtime.grade(record, state).correct
    return [grades[runtime.answer(state)] for state in row]


def outcome_table(
    runtime: WorkflowRuntime,
    records: Sequence[Record],
    models: Sequence[str],
    measured: Measured,
    *,
    source: str,
    notes: dict[str, Any],
) -> OutcomeTable:
    """Return the measured outcome table; 95% intervals of every configuration's accuracy go into its notes."""
    graph = runtime.graph
    length = np.array([len(record.query) for record in records], dtype=np.int32)  # one token is one character
    prompt = [stage.prompt for stage in graph.stage_of]
    own = np.stack(
        [(p.template_tokens if p else 0) + (length if p and p.query else 0 * length) for p in prompt], axis=1
    ).astype(np.int32)
    never = measured.runs < 0.5
    tokens = np.maximum(np.rint(measured.output_tokens), 1).astype(np.int32)
    low, high = wilson(measured.correct.sum(axis=0), len(records))
    uniform = [m * sum(len(models) ** k for k in range(graph.n_llm)) for m in range(len(models))]
    return OutcomeTable(
        workflow=runtime.workflow.name,
        kind="measured",
        models=tuple(models),
        nodes=tuple(node.name for node in graph.nodes),
        llm_nodes=tuple(k for k, node in enumerate(graph.nodes) if node.kind == "llm"),
        p_correct=measured.correct.astype(np.float32),
        output_tokens=tokens,
        own_prompt_tokens=own,
        skipped=np.repeat(never[:, :, None], len(models), axis=2),
        tool_s=np.zeros(never.shape, dtype=np.float32),
        query_tokens=length,
        query_features=features([record.query for record in records]),
        expected_output_tokens=tokens.mean(axis=0).astype(np.float32),
        query_ids=tuple(record.id for record in records),
        query_texts=tuple(record.query for record in records),
        source=source,
        notes={
            **notes,
            "samples_per_cell": 1,
            "calls": measured.calls,
            "features": list(FEATURES),
            "one_model_95": {
                name: [
                    round(float(measured.correct[:, c].mean()), 4),
                    round(float(low[c]), 4),
                    round(float(high[c]), 4),
                ]
                for name, c in zip(models, uniform, strict=True)
            },
            "accuracy_95_low": np.round(low, 4).tolist(),
            "accuracy_95_high": np.round(high, 4).tolist(),
        },
    )


def wilson(right: NDArray[np.int64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95% Wilson interval of shares (right / count), low and high."""
    z = 1.959964
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def features(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return what can be seen of an expression without working it out, (Q, 6); see `FEATURES`."""
    rows = []
    for text in texts:
        depth = deepest = 0
        for char in text:
            depth += (char == "(") - (char == ")")
            deepest = max(deepest, depth)
        digits = sum(char.isdigit() for char in text)
        sums = text.count("+") + text.count("-")
        rows.append([math.log(len(text)), math.log(max(digits, 1)), sums, text.count("*"), text.count("("), deepest])
    return np.array(rows, dtype=np.float32)


def summary(models: Sequence[str], correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Return what a table of outcomes says in a few numbers.

    "repaired by X" is how often the answer is right with the largest model as verifier, among the queries and
    configurations in which it is wrong with the smallest one and all earlier calls are the same; "spoilt by X" the reverse.
    """
    m = len(models)
    calls = round(math.log(correct.shape[1], m))
    digits = configuration_digits(m, calls)
    uniform = [k * sum(m**j for j in range(calls)) for k in range(m)]
    viable = correct >= correct[:, -1:]
    cheaper = viable[:, digits.sum(axis=1) < calls * (m - 1)]
    weak, strong = correct[:, digits[:, -1] == 0], correct[:, digits[:, -1] == m - 1]
    return {
        "queries": len(correct),
        "one_model": {name: round(float(correct[:, c].mean()), 4) for name, c in zip(models, uniform, strict=True)},
        "best_configuration": round(float(correct.mean(axis=0).max()), 4),
        "queries_with_a_cheaper_viable_configuration": round(float(cheaper.any(axis=1).mean()), 4),
        "viable_configurations_per_query": round(float(viable.mean()), 4),
        "repaired_by_largest_verifier": round(float(strong[~weak].mean()) if (~weak).any() else 0.0, 4),
        "spoilt_by_largest_verifier": round(float((~strong[weak]).mean()) if weak.any() else 0.0, 4),
        "mean_by_model_of_call": np.round(
            [[correct[:, digits[:, k] == j].mean() for j in range(m)] for k in range(calls)], 4
        ).tolist(),
    }
