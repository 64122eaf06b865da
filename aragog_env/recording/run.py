"""What a recording says of its run as a whole: the scenario, whether it still fits the workflows here, how the run ended."""

from __future__ import annotations

import json
from typing import Any

from ..compiled_scenario import CompiledScenario, compile_scenario
from ..errors import SpecError
from ..specs.scenario import Scenario
from ..specs.strict import Source, loads
from .reader import Recording

ENDED = ("drained", "horizon")
"""Endings of a run that went as far as its scenario says."""


def recorded_scenario(recording: Recording) -> Scenario:
    """Return the scenario of a recorded run, its cluster included."""
    return loads(Scenario, recording.run["scenario_yaml"], Source(f"{recording.path}, its scenario"))


def compiled_scenario(recording: Recording) -> CompiledScenario:
    """Return the recorded scenario, ready to be used.

    Raises:
        SpecError: its workflows have other stages by now, or cannot be found.
    """
    compiled = compile_scenario(recorded_scenario(recording))
    check_nodes(recording, compiled)
    return compiled


def check_nodes(recording: Recording, compiled: CompiledScenario) -> None:
    """Refuse a recording whose workflows are not those of a scenario.

    Raises:
        SpecError: other workflows, or the same with other stages.
    """
    workflows: list[str] = json.loads(recording.run["workflows"])
    nodes: list[list[str]] = json.loads(recording.run["nodes"])
    known = {graph.workflow.name: [node.name for node in graph.nodes] for graph in compiled.graphs}
    for name, stages in zip(workflows, nodes, strict=True):
        if name not in known:
            there = ", ".join(known)
            raise SpecError(f"it records the workflow '{name}', the scenario has {there}", where=str(recording.path))
        if known[name] != stages:
            message = f"workflow '{name}' had other stages when this was recorded ({', '.join(stages)})"
            raise SpecError(message, where=str(recording.path))


def last_session(recording: Recording) -> dict[str, Any]:
    """Return the row of the last process that worked on the run.

    Raises:
        SpecError: nobody did.
    """
    sessions = list(recording.rows("sessions"))
    if not sessions:
        raise SpecError("this recording is empty: no run was begun", where=str(recording.path))
    return sessions[-1]


def check_ended(recording: Recording) -> None:
    """Refuse a run that stopped in the middle, or in which nothing happened.

    Raises:
        SpecError: with how it ended.
    """
    ending = last_session(recording)["ending"]
    if ending == "profile":
        raise SpecError("this recording is of a profile: it has calls, but no requests", where=str(recording.path))
    if ending not in ENDED:
        how = f"it ended with '{ending}'" if ending else "its process was killed, or still runs"
        raise SpecError(f"this run is not finished ({how}); resume it first", where=str(recording.path))
    if next(recording.rows("calls", "status = 'ok'"), None) is None:
        raise SpecError("this recording is empty: no call was finished", where=str(recording.path))
