"""A policy's view as the observation of the Gymnasium environment, and an action number as a decision.

What `aragog_env.observation` computes from the compiled state of a simulation, this computes from a `DispatchView` alone, so
that a network trained in the environment decides over any backend: simulated, replayed or live. Both give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .action import resolve
from .observation import CallFeature, GlobalFeature, Observation, PairFeature, RouteFeature
from .policy import WAIT, Dispatch, Wait
from .view import DispatchView

if TYPE_CHECKING:
    from .compiled_scenario import CompiledScenario


class ViewEncoder:
    """Encodes the decisions of a scenario; one encoder per episode under way, since it counts arrivals.

    The mask allows to wait only where something is sure to happen. The environment knows that; a view shows it but for two
    corners, in which this encoder masks the waiting that the environment would allow: no server is busy, every request in
    flight has a ready call, and either a tool runs beside one of them, or all that is left of a closed loop could belong to
    the very users who have a request in flight. A backend that knows says so with `can_wait`.

    Args:
        compiled: the scenario.
    """

    def __init__(self, compiled: CompiledScenario) -> None:
        scenario, table = compiled.scenario, compiled.workflow
        arrivals, requests = scenario.workload.arrivals, scenario.horizon.requests
        self.slots = scenario.observation.ready_slots
        self.routes = len(compiled.replicas)
        self._expected_output = table.expected_output
        self._workflows, self._nodes, self._models = table.expected_output.shape
        gpus = compiled.engine.spec["gpus"].astype(np.float64)
        self._gpus = gpus / (gpus + 4.0)
        self._requests = requests
        # Requests that a user of a closed loop may have left after the first; 0 where arrivals come by themselves.
        self._later = -(-requests // max(arrivals.users, 1)) - 1 if arrivals.kind == "closed" else 0
        self._arrived, self._last_s = 0, 0.0

    def encode(self, view: DispatchView, *, can_wait: bool | None = None) -> Observation:
        """Return the observation of a decision (shapes: `aragog_env.observation.Observation`, pairs (K * R, P)).

        Args:
            view: the decision; of ready calls beyond the K slots the first K are shown.
            can_wait: whether anything will happen without a dispatch; None: what the view says of it.
        """
        expected = self._can_wait(view)
        slots, routes = self.slots, self.routes
        shown = min(len(view.calls), slots)
        mask = np.zeros(slots * routes + 1, np.int8)
        mask[: shown * routes] = view.allowed[:shown].ravel()
        mask[-1] = expected if can_wait is None else can_wait
        calls = np.zeros((slots, len(CallFeature)), np.float32)
        pairs = np.zeros((slots, routes, len(PairFeature)), np.float32)
        if shown:
            self._encode_calls(view, calls[:shown])
            self._encode_pairs(view, pairs[:shown])
        ready = len(view.calls)
        amounts = np.array([view.in_flight, ready, max(0, ready - slots)], np.float64)  # in the order of GlobalFeature
        return {
            "calls": calls,
            "routes": self._encode_routes(view),
            "pairs": pairs.reshape(-1, len(PairFeature)),
            "globals": (amounts / (amounts + _GLOBAL_SCALES)).astype(np.float32),
            "action_mask": mask,
        }

    def _encode_calls(self, view: DispatchView, rows: NDArray[np.float32]) -> None:
        shown = view.calls[: len(rows)]
        rows[:, CallFeature.VALID] = 1.0
        rows[:, CallFeature.AGE] = _squash(view.now_s - shown["arrival_s"], 10.0)
        rows[:, CallFeature.WAITED] = _squash(view.now_s - shown["ready_s"], 1.0)
        rows[:, CallFeature.DEPTH] = _squash(shown["depth"], 4.0)
        rows[:, CallFeature.DONE] = shown["nodes_done"] / shown["nodes"]
        rows[:, CallFeature.PROMPT] = _squash(shown["prompt_tokens"], 1024.0)
        rows[:, CallFeature.WORKFLOW] = (shown["workflow"] + 1) / self._workflows
        rows[:, CallFeature.NODE] = (shown["node"] + 1) / self._nodes

    def _encode_pairs(self, view: DispatchView, pairs: NDArray[np.float32]) -> None:
        n = len(pairs)
        calls, allowed = view.calls[:n], view.allowed[:n]
        shown = DispatchView(view.info, view.now_s, calls, view.routes, allowed, view.in_flight, view.served_by[:n])
        latency_s = shown.predicted_latency_s()  # inf where not allowed
        best_s = latency_s.min(axis=1, keepdims=True)
        best_s[~allowed.any(axis=1)] = 0.0
        output = self._expected_output[calls["workflow"], calls["node"]][:, view.routes["model"]]
        pairs[:, :, PairFeature.ALLOWED] = allowed
        pairs[:, :, PairFeature.RELATIVE] = (1.0 / latency_s).astype(np.float32) * best_s.astype(np.float32)
        np.minimum(pairs[:, :, PairFeature.RELATIVE], 1.0, out=pairs[:, :, PairFeature.RELATIVE])
        pairs[:, :, PairFeature.LATENCY] = _squash(np.where(allowed, latency_s, 0.0), 5.0)
        pairs[:, :, PairFeature.OUTPUT] = np.where(allowed, _squash(output, 256.0), 0.0)

    def _encode_routes(self, view: DispatchView) -> NDArray[np.float32]:
        routes = view.routes
        rows = np.empty((self.routes, len(RouteFeature)), np.float32)
        rows[:, RouteFeature.UP] = routes["up"]
        rows[:, RouteFeature.RUNNING] = _squash(routes["running"], 16.0)
        rows[:, RouteFeature.WAITING] = _squash(routes["waiting"], 4.0)
        rows[:, RouteFeature.WAITING_TOKENS] = _squash(routes["waiting_tokens"], 4096.0)
        rows[:, RouteFeature.KV_USED] = routes["kv_blocks_used"] / routes["kv_blocks"]
        rows[:, RouteFeature.SEQUENCES_USED] = routes["running"] / routes["max_seqs"]
        rows[:, RouteFeature.MODEL] = (routes["model"] + 1) / self._models
        rows[:, RouteFeature.GPUS] = self._gpus
        return rows

    def _can_wait(self, view: DispatchView) -> bool:
        """Return whether something is sure to happen without a dispatch, as far as views tell."""
        if view.now_s < self._last_s:
            self._arrived = 0  # another episode
        self._last_s = view.now_s
        requests = view.calls["request"]  # ascending
        if len(requests):
            self._arrived = max(self._arrived, int(requests[-1]) + 1)
        if view.routes["running"].any() or view.routes["waiting"].any():
            return True
        with_ready_calls = np.count_nonzero(np.diff(requests)) + min(1, len(requests))
        if view.in_flight > with_ready_calls:
            return True  # the calls of such a request are on no server, so one of its tools runs
        # Every request shows a ready call before it is over, so none has arrived that was not seen.
        return bool(self._requests - self._arrived > with_ready_calls * self._later)


_GLOBAL_SCALES = np.array([{GlobalFeature.IN_FLIGHT: 32.0}.get(feature, 8.0) for feature in GlobalFeature])


def _squash(x: NDArray[np.generic], scale: float) -> NDArray[np.float64]:
    """Map [0, inf) to [0, 1) as `observation.squash`, in double precision; assignment to the arrays rounds."""
    result: NDArray[np.float64] = x / (x + scale)  # type: ignore[operator]
    return result


def resolve_action(mask: NDArray[np.int8], action: int) -> tuple[int, bool]:
    """Return (action to carry out, whether it was invalid), by the rule of the environment (`aragog_env.action.resolve`).

    Args:
        mask: (K * R + 1,) of an observation.
        action: any number; a masked one waits, or where waiting would never end does the first valid thing.
    """
    chosen, invalid = resolve.py_func(mask, action)
    return int(chosen), bool(invalid)


def to_action(observation: Observation, action: int) -> Dispatch | Wait:
    """Return the decision that an action of `Discrete(K * R + 1)` stands for.

    Args:
        observation: what the action was chosen on.
        action: any number; masked ones are replaced as the environment does (`resolve_action`).
    """
    chosen, _ = resolve_action(observation["action_mask"], action)
    routes = len(observation["routes"])
    if chosen == len(observation["action_mask"]) - 1:
        return WAIT
    return Dispatch(chosen // routes, chosen % routes)
