"""A live cluster as a backend: real time, real servers, real outputs, graded for real.

A policy sees a cluster that stands still while it thinks, and the time it takes is simply time that passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...compiled_scenario import CompiledScenario, compile_scenario
from ...episode import EpisodeLog
from ...errors import SpecError
from ...grading.runtime import WorkflowRuntime
from ...outcomes import OutcomeTable
from ...policy import Dispatch, Wait
from ...servers.endpoints import Endpoint, in_route_order
from ...specs.scenario import Scenario
from ...view import DispatchView
from .episode import LiveEpisode
from .log import live_log
from .options import LiveOptions
from .progress import LiveCall
from .queries import live_queries
from .record import begin_session, open_recording, restore
from .tape import draw_live_tape
from .view import build_view


class LiveBackend:
    """Real servers in real time (see `backends.base.Backend`).

    The clock starts when the first decision is asked for, so that what a policy does in `reset` (training a router, compiling)
    delays no request. Every run is recorded. Use as a context manager, or call `close`.

    Args:
        scenario: what is run; its cluster names replicas, models and limits.
        endpoints: where each replica answers.
        recording: a file (``.db``) that does not exist yet, or a folder for one file per episode.
        policy: the policy's name, for the recording.
        datasets: file or folder of a workflow's data set, by workflow; default: the usual places.
        runtimes: one per workflow of the mix; default: loaded by name.
        options: how the run behaves.
        resume: go on with the run in the file `recording`: what is finished is not done again.

    Attributes:
        recording: the file of the present episode; None before the first.

    Raises:
        SpecError: the scenario, its data or the endpoints do not fit together.
    """

    def __init__(
        self,
        scenario: Scenario,
        endpoints: Sequence[Endpoint],
        *,
        recording: str | Path = "recordings",
        policy: str = "",
        datasets: Mapping[str, str | Path] | None = None,
        runtimes: Sequence[WorkflowRuntime] | None = None,
        options: LiveOptions | None = None,
        resume: bool = False,
    ) -> None:
        self.scenario = scenario
        self.compiled: CompiledScenario = compile_scenario(scenario)
        replicas = self.compiled.replicas
        self.endpoints = in_route_order(endpoints, [r.name for r in replicas], [r.model for r in replicas])
        self.queries = live_queries(self.compiled, datasets=datasets, runtimes=runtimes)
        self.info = self.queries.info(self.compiled)
        self.options = options or LiveOptions()
        self.policy = policy
        self.recording: Path | None = None
        self._recording, self._resume = Path(recording), resume
        self._episode: LiveEpisode | None = None
        self._view: DispatchView | None = None
        self._seen = 0

    @property
    def episode(self) -> LiveEpisode:
        """The present episode.

        Raises:
            ValueError: there is none yet.
        """
        if self._episode is None:
            raise ValueError("no episode has begun; call reset first")
        return self._episode

    def reset(self, seed: int) -> None:
        """Begin an episode with the traffic of `seed`; returns when the servers answer.

        Raises:
            AragogError: no server of some model answers.
            SpecError: the recording cannot be written, or not gone on with.
        """
        from ...harness.provenance import machine, versions

        self.close()
        tape = draw_live_tape(self.scenario, self.queries.counts, seed)
        path = self._file(seed)
        record = open_recording(path, self.compiled, self.info, self.policy, seed, self.options, resume=self._resume)
        self.recording, self._view = path, None
        try:
            episode = LiveEpisode(self.compiled, self.queries, self.info, self.endpoints, tape, record, self.options)
        except BaseException:
            record.close()
            raise
        self._episode = episode
        if self._resume:
            self._guarded(lambda: restore(episode, path))
        begin_session(episode, versions(), machine())
        self._guarded(episode.connect)

    def _file(self, seed: int) -> Path:
        if self._recording.suffix in (".db", ".sqlite"):
            return self._recording
        if self._resume:
            raise SpecError("to resume a run, name the file of its recording, not a folder", where=str(self._recording))
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        return self._recording / f"{self.scenario.name}-seed{seed}-{stamp}.db"

    @property
    def now_s(self) -> float:
        """Seconds since the first decision was asked for; a resumed run goes on where it stood."""
        return self.episode.now_s

    @property
    def done(self) -> bool:
        """Whether the episode is over. Asked for the first time, it starts the clock and waits for the first decision."""
        episode = self.episode
        if not episode.clock.begun and not episode.done:
            self._guarded(episode.start)
        return episode.done

    @property
    def truncated(self) -> bool:
        """Whether the horizon cut it."""
        return self.episode.truncated

    @property
    def outcomes(self) -> tuple[OutcomeTable, ...]:
        """The outcome table of each workflow."""
        return self.compiled.outcomes

    @property
    def draws(self) -> tuple[NDArray[np.float64], ...]:
        """Nothing: real servers answer as they do, no luck of grading is drawn."""
        return ()

    def view(self) -> DispatchView:
        """Return the current decision."""
        if self.done:
            raise ValueError("the episode is over")
        if self._view is None:
            self._seen = self.episode.changes
            self._view = self._look(self.episode.now_s, self.episode.choice)
        return self._view

    def final_view(self) -> DispatchView:
        """Return what there is to see when the episode is over: the servers, and no call."""
        if not self.done:
            raise ValueError("the episode is not over")
        return self._look(self.episode.duration_s, [])

    def _look(self, now_s: float, calls: Sequence[LiveCall]) -> DispatchView:
        episode = self.episode
        return build_view(
            self.compiled,
            self.info,
            now_s,
            calls,
            episode.routing,
            episode.states,
            episode.sent,
            episode.pool.started,
            episode.in_flight,
        )

    def step(self, action: Dispatch | Wait) -> None:
        """Carry out a decision and go on to the next one."""
        view, episode = self.view(), self.episode
        if isinstance(action, Dispatch):
            self._check(view, action)
        else:
            self._check_wait(view, action)
        decision = self._note(view, action)
        self._view = None
        if isinstance(action, Dispatch):
            call = self.episode.choice[action.call]
            self._guarded(lambda: episode.dispatch(call, action, decision))
            self._guarded(episode.to_decision)
        else:
            self._guarded(lambda: episode.wait(action.until_s, self._seen))

    def _check(self, view: DispatchView, action: Dispatch) -> None:
        calls, routes = view.allowed.shape
        if not 0 <= action.call < calls:
            raise ValueError(f"call {action.call} is not ready (0..{calls - 1} are)")
        if not 0 <= action.route < routes:
            raise ValueError(f"route {action.route} does not exist (0..{routes - 1} do)")
        if not view.allowed[action.call, action.route]:
            name = self.info.routes[action.route]
            raise ValueError(
                f"route {action.route} ({name}) is down, or serves no candidate model of call {action.call}"
            )

    def _check_wait(self, view: DispatchView, action: Wait) -> None:
        if action.until_s <= view.now_s:
            raise ValueError(f"it is {view.now_s:.6f} s already, so one cannot wait until {action.until_s:.6f} s")
        episode = self.episode
        if action.until_s == math.inf and not episode.expects and episode.changes == self._seen:
            raise ValueError("nothing is running and no request is to come, so waiting would never end")

    def _note(self, view: DispatchView, action: Dispatch | Wait) -> int:
        """Record a decision and what it was made on; it took all the time that passed since the view was taken."""
        values: dict[str, Any] = {"action": "wait"}
        if isinstance(action, Dispatch):
            call = self.episode.choice[action.call]
            values = {"action": "dispatch", "request": call.request.rank, "node": call.node}
            values |= {"route": action.route, "priority": action.priority}
        elif action.until_s < math.inf:
            values["until_s"] = action.until_s
        return self.episode.record.decision(
            time_s=view.now_s,
            wall_s=self.now_s - view.now_s,
            in_flight=view.in_flight,
            ready=len(view.calls),
            calls=view.calls,
            routes=view.routes,
            allowed=view.allowed,
            served_by=view.served_by,
            **values,
        )

    def log(self) -> EpisodeLog:
        """Return the log of the episode so far."""
        return live_log(self.episode)

    def _guarded(self, what: Callable[[], None]) -> None:
        """Do something; whatever goes wrong, Ctrl-C included, leaves a recording that says so and can be resumed."""
        try:
            what()
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        """Close with the reason."""
        self.close(
            "interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {type(error).__name__}: {error}"
        )

    def close(self, ending: str = "closed before the end") -> None:
        """Stop the episode where it stands, if it still runs, with a reason for its recording, which can be resumed."""
        if self._episode is not None:
            self._episode.end(ending)

    def __enter__(self) -> LiveBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._end(error)
        self.close()

    def __copy__(self) -> NoReturn:
        raise TypeError("a live cluster cannot be copied: its servers go on in real time; replay a recording instead")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a live cluster cannot be pickled: it holds connections and threads; resume from its recording")
