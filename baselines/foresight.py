"""What the critic of a learner is told beside the observation, and no policy ever: training knows the traffic to come.

How long requests wait depends on traffic more than on any one decision. A critic that knows arrivals to come, the true lengths
of the calls in the servers and what requests still need takes this noise out of the advantages, and biases nothing: a baseline
may depend on all that the decision does not change (arXiv 1807.02264).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import CompiledScenario
from aragog_env.engine.state import NOT_DECODING, STRETCH
from aragog_env.jit import njit
from aragog_env.simulation import Simulation

from .features import SlotSets, first_of

# mypy: disable-error-code="no-untyped-def"

WINDOWS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of foreseen arrivals, in latencies of the SLO."""


class Foresight(IntEnum):
    """Columns of `requests` (E, S). Amounts without bounds, of the order of one."""

    LEFT = 0  # requests still to arrive, per 64
    IN_FLIGHT = 1  # requests, per 64
    READY = 2  # ready calls, per 64
    STAGES = 3  # stages that requests in flight still have to go through, per 256
    WORK = 4  # seconds of calls that are not in a server yet, by the cheapest remaining configuration, per 256
    ARRIVALS = 5  # and the following: arrivals within each of `WINDOWS`, per 16


class ServerForesight(IntEnum):
    """Columns of `servers` (E, R, V)."""

    CALLS = 0  # running and waiting, per 32
    TOKENS = 1  # that they will still write, per 8192
    LONGEST = 2  # the most that one of them will, per 256
    PROMPTS = 3  # tokens of waiting prompts, per 4096


REQUESTS_WIDTH: Final = Foresight.ARRIVALS + len(WINDOWS)


class Foreseer:
    """Writes foresight of all environments of a simulation.

    Attributes:
        requests: (E, S) of `Foresight`.
        servers: (E, R, V) of `ServerForesight`.
    """

    def __init__(self, compiled: CompiledScenario, environments: int, words: int, reference_s: float) -> None:
        requests = compiled.scenario.horizon.requests
        self.requests = np.zeros((environments, REQUESTS_WIDTH), np.float32)
        self.servers = np.zeros((environments, len(compiled.replicas), len(ServerForesight)), np.float32)
        self.windows_ps = np.round(np.array(WINDOWS) * reference_s * 1e12).astype(np.int64)
        self._nodes = compiled.workflow.nodes
        self._work_s = np.zeros((environments, requests))  # of each request, what is not in a server yet
        self._left = np.zeros(words, np.uint64)
        self._oldest: NDArray[np.int64] = np.zeros(environments, np.int64)  # rank before which all requests are served
        self._sent: NDArray[np.int64] = np.full(environments, -1)

    def begin(self, e: int, simulation: Simulation, sets: SlotSets, bits: NDArray[np.uint64]) -> None:
        """Note what the requests of an episode need; `bits`: (n, W) their viable sets."""
        cheapest = np.array([first_of(row) for row in bits])
        self._work_s[e] = sets.tables.cost_s[simulation.progress.request[e]["workflow"], cheapest]
        self._sent[e], self._oldest[e] = -1, 0

    def note_actions(
        self, simulation: Simulation, calls: NDArray[np.void], actions: NDArray[np.int64], routes: int
    ) -> None:
        """Note, before a step, which requests have a call sent."""
        slot = actions // routes
        sent = slot < calls.shape[1]
        everywhere = np.arange(len(actions))
        rank = calls["request"][everywhere, np.where(sent, slot, 0)]
        self._sent[:] = np.where(sent, simulation.progress.by_rank[everywhere, rank], -1)

    def write(self, simulation: Simulation, sets: SlotSets, bits: NDArray[np.uint64]) -> None:
        """Renew `requests` and `servers`; `bits`: (E, n, W)."""
        progress, state = simulation.progress, simulation.state
        request, call, replica = progress.request, state.call, state.replica
        _update_work(
            self._sent, sets.tables.masks, sets.tables.node_s, sets.tables.cost_s, bits, request["workflow"], call["model"],
            self._left, self._work_s,
        )  # fmt: skip
        env = progress.env
        _foresee_requests(
            env["now_ps"], env["arrived"], env["ready"], request["arrival_ps"], request["finish_ps"], request["done"],
            request["workflow"], progress.by_rank, self._nodes, self._work_s, self.windows_ps, self._oldest,
            self.requests,
        )  # fmt: skip
        _foresee_servers(
            env["now_ps"], replica["running"], replica["waiting"], replica["waiting_tokens"], replica["head"],
            replica["step"], replica["mode"], replica["begin_ps"], replica["end_ps"], replica["planned"], state.run_call,
            state.run_finish, call["output"], call["next"], self.servers,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _update_work(sent, masks, node_s, cost_s, bits, workflow, call_model, left, work_s):
    """Renew what the requests need that had a call sent."""
    words, width = bits.shape[2], call_model.shape[1] // bits.shape[1]
    for e in range(sent.shape[0]):
        q = sent[e]
        if q < 0:
            continue
        w, spent_s = workflow[e, q], 0.0
        for word in range(words):
            left[word] = bits[e, q, word]
        for k in range(width):
            m = call_model[e, q * width + k]
            if m >= 0:
                spent_s += node_s[w * width + k, m]
                for word in range(words):
                    left[word] &= masks[w * width + k, m, word]
        cheapest = first_of(left)
        work_s[e, q] = max(0.0, cost_s[w, cheapest] - spent_s) if cheapest >= 0 else 0.0


@njit(cache=True, nogil=True)
def _foresee_requests(
    now_ps, arrived, ready, arrival_ps, finish_ps, done, workflow, by_rank, nodes, work_s, windows_ps, oldest, out
):
    """Write `Foresight` of every environment. In a closed loop no arrival is known before it happens."""
    requests = arrival_ps.shape[1]
    for e in range(out.shape[0]):
        flying, stages, work = 0, 0, 0.0
        while oldest[e] < arrived[e] and finish_ps[e, by_rank[e, oldest[e]]] >= 0:
            oldest[e] += 1
        for rank in range(oldest[e], arrived[e]):
            q = by_rank[e, rank]
            if finish_ps[e, q] >= 0:
                continue
            flying += 1
            work += work_s[e, q]
            for node in range(nodes[workflow[e, q]]):
                stages += done[e, q] >> node & 1 == 0
        out[e, 0] = (requests - arrived[e]) / 64.0
        out[e, 1] = flying / 64.0
        out[e, 2] = ready[e] / 64.0
        out[e, 3] = stages / 256.0
        out[e, 4] = work / 256.0
        q = arrived[e]
        for k in range(windows_ps.shape[0]):
            while q < requests and 0 <= arrival_ps[e, q] <= now_ps[e] + windows_ps[k]:
                q += 1
            out[e, 5 + k] = (q - arrived[e]) / 16.0


@njit(cache=True, nogil=True)
def _foresee_servers(
    now_ps, running, waiting, waiting_tokens, head, step, mode, begin_ps, end_ps, planned, run_call, run_finish, output,
    following, out,
):  # fmt: skip
    """Write `ServerForesight` of every environment."""
    for e in range(out.shape[0]):
        for r in range(out.shape[1]):
            steps = float(step[e, r])
            if mode[e, r] == STRETCH and end_ps[e, r] > begin_ps[e, r]:
                steps += planned[e, r] * (now_ps[e] - begin_ps[e, r]) / (end_ps[e, r] - begin_ps[e, r])
            tokens, longest = 0.0, 0.0
            for i in range(running[e, r]):
                left = float(run_finish[e, r, i])
                left = output[e, run_call[e, r, i]] if left == NOT_DECODING else max(0.0, left - steps)
                tokens += left
                longest = max(longest, left)
            c = head[e, r]
            for _ in range(waiting[e, r]):
                tokens += output[e, c]
                longest = max(longest, float(output[e, c]))
                c = following[e, c]
            out[e, r, 0] = (running[e, r] + waiting[e, r]) / 32.0
            out[e, r, 1] = tokens / 8192.0
            out[e, r, 2] = longest / 256.0
            out[e, r, 3] = waiting_tokens[e, r] / 4096.0
