"""Outcome tables: for each query and configuration, is the answer right; for each call, how many tokens.

A table is the only thing the simulator knows about answers. Its file (npz, see `OutcomeTable.save`) is the
same for tables measured on real models and for synthetic ones; `kind` says which it is, and results carry
that label.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import SpecError
from .files import write_atomically
from .queries import QuerySet

if TYPE_CHECKING:
    from .specs.graph import WorkflowGraph
    from .specs.hardware import ModelSpec
    from .specs.workflow import WorkflowSpec

SCHEMA: Final = 2
"""Version of the file format; a change of meaning raises it."""
OutcomeKind = Literal["synthetic", "measured"]

_ARRAYS: Final[dict[str, tuple[str, type[np.generic]]]] = {
    "p_correct": ("QC", np.float32),
    "output_tokens": ("QNM", np.int32),
    "own_prompt_tokens": ("QN", np.int32),
    "skipped": ("QNM", np.bool_),
    "tool_s": ("QN", np.float32),
    "query_tokens": ("Q", np.int32),
    "query_features": ("QD", np.float32),
    "expected_output_tokens": ("NM", np.float32),
}


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """Outcomes of Q queries of one workflow: N nodes, M models, C = M**n_llm configurations.

    A configuration's index is a mixed-radix number with one digit (model index) per LLM node in node order,
    the first node most significant; C - 1 is the largest model everywhere. Policies may read
    `expected_output_tokens` only.
    """

    workflow: str
    kind: OutcomeKind
    models: tuple[str, ...]
    """Model names, smallest first: what model indices mean."""
    nodes: tuple[str, ...]
    """Names of the unrolled stages, in node order."""
    llm_nodes: tuple[int, ...]
    """Nodes that are LLM calls: the digits of a configuration, first most significant."""
    p_correct: NDArray[np.float32]  # (Q, C) probability that the final answer is right; skipped calls do not matter
    output_tokens: NDArray[np.int32]  # (Q, N, M) at least 1; a tool's output in every column
    own_prompt_tokens: NDArray[np.int32]  # (Q, N) template and query, without outputs of earlier stages; tools 0
    skipped: NDArray[np.bool_]  # (Q, N, M) [..., m]: skipped when model m served `skip.on`; surplus copies: all m
    tool_s: NDArray[np.float32]  # (Q, N) seconds of tool stages, LLM stages 0
    query_tokens: NDArray[np.int32]  # (Q,)
    query_features: NDArray[np.float32]  # (Q, D) what a frozen embedding tells of a query without text; D may be 0
    expected_output_tokens: NDArray[np.float32]  # (N, M) mean over queries as known in advance
    query_ids: tuple[str, ...] = ()
    """Identifiers in the data set, for measured tables; else empty."""
    query_texts: tuple[str, ...] = ()
    """Texts, where the licence allows; else empty."""
    source: str = ""
    """Where the numbers come from: a recording, or the generator with its parameters."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Anything else that JSON can hold, e.g. generator parameters or samples per cell."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together, and freeze them."""
        for name, (axes, dtype) in _ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype:
                raise SpecError(f"'{name}' must be {np.dtype(dtype)}, got {array.dtype}", where=self._where)
            if array.shape != (shape := tuple(self._sizes[axis] for axis in axes)):
                raise SpecError(f"'{name}' must have the shape {shape}, got {array.shape}", where=self._where)
            array.setflags(write=False)
        self._check_values()

    def _check_values(self) -> None:
        # Comparisons are written so that NaN fails them.
        if not bool(np.all((self.p_correct >= 0) & (self.p_correct <= 1))):
            raise SpecError("'p_correct' must lie between 0 and 1", where=self._where)
        if not bool(np.all(self.output_tokens >= 1)):
            raise SpecError("'output_tokens' must be at least 1", where=self._where)
        for name in ("own_prompt_tokens", "tool_s", "query_tokens", "expected_output_tokens"):
            if not bool(np.all(getattr(self, name) >= 0)):
                raise SpecError(f"'{name}' must not be negative", where=self._where)
        for name in ("query_ids", "query_texts"):
            if len(getattr(self, name)) not in (0, self.queries):
                raise SpecError(f"'{name}' must be empty or have one entry per query", where=self._where)

    @property
    def _where(self) -> str:
        return f"outcome table of '{self.workflow}'"

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "Q": self.queries,
            "N": len(self.nodes),
            "M": len(self.models),
            "C": self.configurations,
            "D": self.query_features.shape[-1],
        }

    @property
    def queries(self) -> int:
        """Number of queries, Q."""
        return int(self.query_tokens.shape[0])

    @property
    def configurations(self) -> int:
        """Number of configurations, C."""
        return int(len(self.models) ** len(self.llm_nodes))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Mean accuracy of each configuration over the data set, (C,)."""
        return np.asarray(self.p_correct.mean(axis=0, dtype=np.float64))

    @property
    def query_set(self) -> QuerySet:
        """What of the queries may be known before they are answered."""
        return QuerySet(self.query_ids, self.query_texts, self.query_features, self.query_tokens)

    def match_largest(self, draws: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Return which configurations answer a query as well as the largest one does, (Q, C).

        Aragog's viable configurations (section 2): right, or as wrong as the most expensive one. An answer is right where its
        draw is below its probability.

        Args:
            draws: in [0, 1), (Q,) where one number decides about all configurations of a query, as in an episode; or (Q, C)
                where every configuration was run for itself, as when a router's training data are made.
        """
        right = (draws[:, None] if draws.ndim == 1 else draws) < self.p_correct
        return np.asarray(right | ~right[:, -1:])

    def almost_as_likely(self, tolerance: float = 0.02) -> NDArray[np.bool_]:
        """Return which configurations are right with at most `tolerance` less probability than the largest, (Q, C)."""
        return np.asarray(self.p_correct >= self.p_correct[:, -1:] - np.float32(tolerance))

    def uniform_configuration(self, model: int) -> int:
        """Return the configuration in which `model` serves every call."""
        size = len(self.models)
        return sum(model * size**k for k in range(len(self.llm_nodes)))

    def save(self, path: str | Path) -> None:
        """Write the table as npz, whole or not at all.

        The file holds the arrays under their names, and one text `meta`, a JSON object with `schema`,
        `workflow`, `kind`, `models`, `nodes`, `llm_nodes`, `query_ids`, `query_texts`, `source` and `notes`.
        Equal tables give equal bytes. Nothing in it is pickled.
        """
        meta = {"schema": SCHEMA, **{name: getattr(self, name) for name in _META}}
        text = json.dumps(meta, sort_keys=True, ensure_ascii=False, allow_nan=False)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, meta=np.array(text), **arrays)
        write_atomically(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> OutcomeTable:
        """Read a table written by `save`.

        Raises:
            SpecError: the file is missing or damaged, or is no outcome table of this schema.
        """
        where = str(path)
        try:
            # opened here, since np.load leaves files it opened itself open when they are damaged
            with Path(path).open("rb") as raw:
                if not zipfile.is_zipfile(raw):
                    raise zipfile.BadZipFile("no zip archive, or cut short")
                raw.seek(0)
                with np.load(raw, allow_pickle=False) as file:
                    content = {name: file[name] for name in file.files}
        except FileNotFoundError as error:
            raise SpecError("there is no such outcome table", where=where) from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise SpecError(f"this is not a complete npz file ({error})", where=where) from error
        missing = [name for name in ("meta", *_ARRAYS) if name not in content]
        if missing:
            raise SpecError(f"this npz file is no outcome table: it lacks '{missing[0]}'", where=where)
        meta = _parse_meta(str(content["meta"]), where)
        try:
            return cls(**meta, **{name: content[name] for name in _ARRAYS})
        except SpecError as error:
            raise SpecError(error.message, where=where) from error


_META: Final = (
    "workflow",
    "kind",
    "models",
    "nodes",
    "llm_nodes",
    "query_ids",
    "query_texts",
    "source",
    "notes",
)


def _parse_meta(text: str, where: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"the 'meta' entry is not JSON ({error})", where=where) from error
    if not isinstance(meta, dict) or meta.pop("schema", None) != SCHEMA:
        raise SpecError(f"the table has another schema than {SCHEMA}; make it again with this version", where=where)
    if set(meta) != set(_META):
        odd = sorted(set(meta) ^ set(_META))
        raise SpecError(f"the 'meta' entry has missing or unknown keys: {', '.join(odd)}", where=where)
    if meta["kind"] not in ("synthetic", "measured"):
        raise SpecError(f"the kind must be 'synthetic' or 'measured', got '{meta['kind']}'", where=where)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in meta.items()}


def configuration_digits(models: int, n_llm: int) -> NDArray[np.int64]:
    """Return the model of every LLM node in every configuration, (models ** n_llm, n_llm)."""
    index = np.arange(models**n_llm, dtype=np.int64)
    place = models ** np.arange(n_llm - 1, -1, -1, dtype=np.int64)
    return index[:, None] // place[None, :] % models


def outcome_table(
    graph: WorkflowGraph, models: Sequence[ModelSpec], file: Path | None, where: str | None = None
) -> OutcomeTable:
    """Return the outcomes of a workflow: the table in `file`, or one that the generator draws where that is None.

    Raises:
        SpecError: the file is no outcome table, or one of another workflow, other models or longer calls.
    """
    if file is None:
        return synthetic_table(graph.workflow, graph, models)
    table = OutcomeTable.load(file)
    try:
        _check_fit(table, graph, tuple(model.name for model in models))
    except SpecError as error:
        raise SpecError(f"the outcome table '{file}' {error.message}", where=where) from error
    return table


def synthetic_table(
    workflow: WorkflowSpec, graph: WorkflowGraph, models: Sequence[ModelSpec], seed: int = 0
) -> OutcomeTable:
    """Return the table that the generative model of `aragog_env.synthetic` draws."""
    from .synthetic import draw_table

    return draw_table(workflow, graph, models, seed)


def _check_fit(table: OutcomeTable, graph: WorkflowGraph, models: tuple[str, ...]) -> None:
    """Refuse a table that is not one of this workflow on these models; the messages go on after its name."""
    nodes = tuple(node.name for node in graph.nodes)
    if table.workflow != graph.workflow.name:
        raise SpecError(f"is one of the workflow '{table.workflow}', not of '{graph.workflow.name}'")
    if table.models != models:
        wanted, given = ", ".join(models), ", ".join(table.models)
        raise SpecError(f"was made with the models {given}; this cluster needs exactly {wanted}, in this order")
    if table.nodes != nodes:
        raise SpecError(f"has the calls {', '.join(table.nodes)}; the workflow has {', '.join(nodes)}")
    if table.llm_nodes != tuple(k for k, node in enumerate(graph.nodes) if node.kind == "llm"):
        raise SpecError("does not agree with the workflow on which calls are LLM calls")
    if not table.queries:
        raise SpecError("has no queries")
    query = graph.workflow.query_tokens.maximum
    for k, (node, stage) in enumerate(zip(graph.nodes, graph.stage_of, strict=True)):
        # the scenario was validated (context lengths, KV memory) with the bounds that the workflow states
        limit = (
            stage.output.max_tokens if stage.output else max(stage.tool_output.maximum if stage.tool_output else 1, 1)
        )
        _check_bound(table.output_tokens[:, k], 1, limit, f"output tokens of '{node.name}'")
        if stage.prompt is not None:
            low = stage.prompt.template_tokens
            high = low + (query if stage.prompt.query else 0)
            _check_bound(table.own_prompt_tokens[:, k], low, high, f"prompt tokens of '{node.name}'")
        if node.skip_on < 0 and stage.fan_out is None and table.skipped[:, k].any():
            raise SpecError(f"skips '{node.name}', which the workflow never skips")


def _check_bound(values: NDArray[np.int32], low: int, high: int, what: str) -> None:
    if values.min() < low or values.max() > high:
        raise SpecError(f"has {what} from {values.min()} to {values.max()}; the workflow allows {low} to {high}")
