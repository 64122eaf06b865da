"""What a configuration costs whatever the load is: the order in which "cheapest" is meant by static routers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.outcomes import configuration_digits
from aragog_env.specs.graph import WorkflowGraph
from aragog_env.view import ClusterInfo


def static_cost(
    info: ClusterInfo, workflow: int, prompt_tokens: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return what each configuration of a workflow costs, (C,), in billions of parameters times tokens.

    A token, read or written, takes about two operations per parameter, so this is proportional to FLOPs: the static cost that
    Aragog's per-input and per-workflow baselines minimise (section 2, complaint 2).

    Args:
        info: what is known of the cluster and its workflows.
        workflow: which workflow.
        prompt_tokens: (N,) expected prompt of each node, see `expected_prompt_tokens`; by default the mean query.
    """
    llm = np.flatnonzero(info.radix[workflow] > 0)
    if prompt_tokens is None:
        prompt_tokens = np.full(info.radix.shape[1], info.queries[workflow].tokens.mean())
    sizes = np.asarray(info.model_sizes_b)
    by_node = sizes * (info.expected_output_tokens[workflow, llm] + prompt_tokens[llm, None])  # (n_llm, M)
    digits = configuration_digits(len(sizes), len(llm))
    return np.asarray(by_node[np.arange(len(llm)), digits].sum(axis=1))


def expected_prompt_tokens(
    info: ClusterInfo, workflow: int, graph: WorkflowGraph, query_tokens: float | None = None
) -> NDArray[np.float64]:
    """Return the expected prompt of each node, (N,): template, query and expected outputs of what it reads; tools 0.

    Outputs of earlier stages are averaged over models, since it is not known yet who will write them.

    Args:
        info: what is known of the cluster and its workflows.
        workflow: which workflow.
        graph: the same workflow, unrolled.
        query_tokens: length of the query; by default the mean over the data set.
    """
    if query_tokens is None:
        query_tokens = float(info.queries[workflow].tokens.mean())
    written = info.expected_output_tokens[workflow].mean(axis=1)
    result = np.zeros(info.radix.shape[1])
    for k, (node, stage) in enumerate(zip(graph.nodes, graph.stage_of, strict=True)):
        if stage.prompt is not None:
            own = stage.prompt.template_tokens + (query_tokens if stage.prompt.query else 0.0)
            result[k] = own + written[list(node.context)].sum()
    return result
