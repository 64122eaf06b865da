"""Which questions a live run asks: records of data sets as queries, numbered as policies and outcome tables number them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...compiled_scenario import CompiledScenario
from ...datasets.record import Record
from ...errors import SpecError
from ...grading.runtime import WorkflowRuntime, load_runtime
from ...outcomes import OutcomeTable
from ...queries import QuerySet
from ...view import ClusterInfo


@dataclass(frozen=True, eq=False)
class LiveQueries:
    """The questions of each workflow of a scenario."""

    runtimes: tuple[WorkflowRuntime, ...]  # (W,)
    records: tuple[tuple[Record, ...], ...]  # records[workflow][query]
    measured: tuple[bool, ...]
    """Per workflow: query i is row i of a measured outcome table, so its probabilities are known."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of queries of each workflow."""
        return tuple(len(records) for records in self.records)

    def info(self, compiled: CompiledScenario) -> ClusterInfo:
        """Return what policies may know, with the texts of the real questions."""
        sets = []
        for records, measured, table in zip(self.records, self.measured, compiled.outcomes, strict=True):
            # The features of a synthetic table are those of invented queries; a real question has none yet.
            features = table.query_features if measured else np.zeros((len(records), 0), np.float32)
            tokens = np.array([record.tokens for record in records], np.int32)
            ids, texts = tuple(record.id for record in records), tuple(record.query for record in records)
            sets.append(QuerySet(ids, texts, features, tokens))
        return replace(compiled.info, queries=tuple(sets))


def live_queries(
    compiled: CompiledScenario,
    *,
    datasets: Mapping[str, str | Path] | None = None,
    runtimes: Sequence[WorkflowRuntime] | None = None,
) -> LiveQueries:
    """Load the questions of a scenario.

    Where a workflow has a measured outcome table, its queries are the questions, in its order; else the data set's.

    Args:
        compiled: the scenario.
        datasets: file or folder of a workflow's data set, by the workflow's name; default: the usual places.
        runtimes: one per workflow; default: loaded by name.

    Raises:
        SpecError: a workflow cannot be run live, or its data set is not there, or lacks questions of the table.
    """
    if runtimes is None:
        runtimes = [load_runtime(entry.workflow) for entry in compiled.scenario.workload.mix]
    known = [runtime.workflow.name for runtime in runtimes]
    for name in datasets or {}:
        if name not in known:
            raise SpecError(
                f"a data set was named for '{name}', which is no workflow of this scenario ({', '.join(known)})"
            )
    chosen, measured = [], []
    for runtime, table in zip(runtimes, compiled.outcomes, strict=True):
        path = (datasets or {}).get(runtime.workflow.name)
        is_measured = table.kind == "measured" and bool(table.query_ids)
        chosen.append(_of_table(runtime, table, path) if is_measured else runtime.records(path))
        measured.append(is_measured)
        if not chosen[-1]:
            raise SpecError(f"the data set of '{runtime.workflow.name}' is empty")
    return LiveQueries(tuple(runtimes), tuple(chosen), tuple(measured))


def _of_table(runtime: WorkflowRuntime, table: OutcomeTable, path: str | Path | None) -> tuple[Record, ...]:
    """Return the records that a measured table is about, in its order."""
    everything = 1 << 62  # the draw of the table was made when it was measured
    known = {record.id: record for record in runtime.records(path, count=everything)}
    missing = [name for name in table.query_ids if name not in known]
    if missing:
        what = f"{len(missing)} questions of its outcome table, e.g. '{missing[0]}'"
        raise SpecError(f"the data set of '{table.workflow}' lacks {what}")
    return tuple(known[name] for name in table.query_ids)
