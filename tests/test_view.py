"""A policy sees what a client of a live cluster could know, and nothing of the future."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rollouts import BUSY

from aragog_env.backends.sim import SimBackend
from aragog_env.policy import Dispatch
from aragog_env.view import VIEW_CALL, VIEW_ROUTE, DispatchView

SECRET_TABLES = ("output", "skipped", "p_correct", "tool_ps", "own_prompt")
SECRET_REQUEST_FIELDS = ("uniform", "correct", "arrival_ps", "delay_ps", "successor")


def parts(thing: Any, path: str = "view", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield everything that can be reached from `thing` by attributes, items, bases of arrays and closures."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type | str | bytes | int | float | bool | None.__class__):
        return
    seen.add(id(thing))
    yield path, thing
    inner: list[tuple[str, Any]] = []
    if isinstance(thing, np.ndarray):
        inner.append((f"{path}.base", thing.base))
    elif isinstance(thing, dict):
        inner += [(f"{path}[{key!r}]", value) for key, value in thing.items()]
    elif isinstance(thing, tuple | list):
        inner += [(f"{path}[{i}]", value) for i, value in enumerate(thing)]
    elif type(thing).__module__.startswith("aragog_env") or dataclasses.is_dataclass(thing):
        names = [name for name in dir(thing) if not name.startswith("__")]
        inner += [(f"{path}.{name}", getattr(thing, name)) for name in names]
        inner.append((f"{path}.__dict__", getattr(thing, "__dict__", None)))
    elif callable(thing):
        owner = getattr(thing, "__self__", None)
        cells = getattr(getattr(thing, "__func__", thing), "__closure__", None) or ()
        inner += [(f"{path}.__self__", owner), *((f"{path}.__closure__", c.cell_contents) for c in cells)]
    for name, value in inner:
        yield from parts(value, name, seen)


@pytest.fixture(scope="module")
def decisions() -> Iterator[tuple[SimBackend, list[DispatchView]]]:
    """A backend in the middle of an episode, and the views so far."""
    backend = SimBackend(BUSY["scenario"])
    backend.reset(3)
    views = []
    for step in range(45):
        view = backend.view()
        views.append(view)
        backend.step(Dispatch(0, int(np.flatnonzero(view.allowed[0])[step % view.allowed[0].sum()])))
    return backend, [*views, backend.view()]


def secrets(backend: SimBackend) -> dict[str, np.ndarray]:
    """Return the arrays that no policy may get hold of."""
    sim, compiled = backend.simulation, backend.compiled
    found = {f"table {name}": getattr(compiled.workflow, name) for name in SECRET_TABLES}
    found["standalone"] = compiled.standalone_ps
    found |= {f"request {name}": sim.progress.request[0][name] for name in SECRET_REQUEST_FIELDS}
    found["call output"] = sim.state.call[0]["output"]
    found["all requests"], found["all calls"] = sim.progress.request, sim.state.call
    tape = sim.tapes[0]
    found |= {f"tape {f.name}": getattr(tape, f.name) for f in dataclasses.fields(tape) if f.name != "draws"}
    found |= {f"tape draws {k}": draws for k, draws in enumerate(tape.draws)}
    for k, table in enumerate(compiled.outcomes):
        for name in ("p_correct", "output_tokens", "skipped", "tool_s", "own_prompt_tokens"):
            found[f"outcomes {k} {name}"] = getattr(table, name)
    return {name: array for name, array in found.items() if array is not None}


def test_nothing_of_the_future_is_within_reach(decisions: Any) -> None:
    backend, views = decisions
    hidden = secrets(backend)
    assert len(hidden) > 25
    objects = {id(x) for x in (backend, backend.simulation, backend.compiled, backend.scenario)}
    objects |= {id(backend.compiled.workflow), id(backend.simulation.tapes[0]), *map(id, backend.compiled.outcomes)}
    arrays = 0
    for path, part in parts(views[-1]):
        assert id(part) not in objects, path
        if not isinstance(part, np.ndarray):
            continue
        arrays += 1
        columns = [part[name] for name in part.dtype.names] if part.dtype.names else [part]
        for name, secret in hidden.items():
            assert not np.shares_memory(part, secret), f"{path} shares memory with {name}"
            for column in columns:
                if secret.dtype.names is None and column.size > 1 and column.shape == secret.shape:
                    assert not np.array_equal(column, secret), f"{path} equals {name}"
    assert arrays > 12  # the walk got somewhere


def test_the_walk_would_find_a_leak(decisions: Any) -> None:
    backend, views = decisions
    honest = views[-1]
    leaky = DispatchView(
        dataclasses.replace(honest.info, radix=backend.compiled.workflow.output[:, :, 0]),
        honest.now_s,
        honest.calls,
        honest.routes,
        honest.allowed,
        honest.in_flight,
        honest.served_by,
    )
    table = backend.compiled.workflow.output
    assert any(isinstance(part, np.ndarray) and np.shares_memory(part, table) for _, part in parts(leaky))
    assert any(part is table or getattr(part, "base", None) is table for _, part in parts(leaky))


def test_views_are_copies(decisions: Any) -> None:
    """A policy that writes into its view, or keeps it, neither changes the cluster nor learns what comes later."""
    backend = SimBackend(BUSY["scenario"])
    backend.reset(3)
    kept = backend.view()
    before = kept.calls.tobytes(), kept.routes.tobytes()
    vandal = backend.view()
    for array in (vandal.calls, vandal.routes, vandal.allowed, vandal.served_by):
        array[...] = np.zeros((), array.dtype)
    assert backend.view().calls.tobytes() == before[0] and backend.view().routes.tobytes() == before[1]
    backend.step(Dispatch(0, 0))
    assert (kept.calls.tobytes(), kept.routes.tobytes()) == before
    with pytest.raises(TypeError, match="window on one decision"):
        pickle.dumps(kept)


def test_only_what_has_happened_is_shown(decisions: Any) -> None:
    _, views = decisions
    for view in views:
        assert (view.calls["arrival_s"] <= view.now_s + 1e-12).all()
        assert (view.calls["ready_s"] <= view.now_s + 1e-12).all()
        assert (view.calls["arrival_s"] <= view.calls["ready_s"] + 1e-12).all()
        assert view.calls["request"].max() < 20
        assert (np.diff(view.calls["request"]) >= 0).all()  # oldest first
        assert view.in_flight >= len(set(view.calls["request"]))
        for slot, call in enumerate(view.calls):
            assert (view.served_by[slot] >= 0).sum() < call["nodes"]
            assert view.served_by[slot, call["node"]] == -1


def test_expected_lengths_come_from_the_length_model_not_from_the_query(decisions: Any) -> None:
    _, views = decisions
    seen: dict[tuple[int, int], set[bytes]] = {}
    for view in views:
        for call, expected in zip(view.calls, view.expected_output_tokens, strict=True):
            seen.setdefault((int(call["workflow"]), int(call["node"])), set()).add(expected.tobytes())
    assert len(seen) > 5 and all(len(values) == 1 for values in seen.values())


def test_fields_are_documented_ones() -> None:
    """A new field is a decision about what policies may know: make it here too."""
    assert set(VIEW_CALL.names or ()) == {
        "request", "workflow", "query", "node", "depth", "nodes_done", "nodes", "prompt_tokens", "arrival_s", "ready_s",
    }  # fmt: skip
    assert set(VIEW_ROUTE.names or ()) == {
        "model", "up", "running", "waiting", "max_seqs", "kv_blocks", "kv_blocks_used", "waiting_tokens",
    }  # fmt: skip
    assert set(DispatchView.__slots__) == {
        "allowed", "calls", "in_flight", "info", "now_s", "routes", "served_by",
    }  # fmt: skip
