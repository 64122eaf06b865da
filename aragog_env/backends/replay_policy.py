"""The policy that does again what was done: it sees the recorded decision beside the view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PolicyError
from ..policy import Dispatch, Wait
from ..view import ClusterInfo, DispatchView

if TYPE_CHECKING:
    from ..specs.scenario import Scenario
    from .replay import ReplayBackend


class ReplayView(DispatchView):
    """A decision of a replay."""

    __slots__ = ("_backend",)

    def __init__(self, backend: ReplayBackend, view: DispatchView) -> None:
        self._backend = backend
        fields = (view.now_s, view.calls, view.routes, view.allowed, view.in_flight, view.served_by)
        super().__init__(view.info, *fields)

    @property
    def info(self) -> ClusterInfo:
        """What never changes during an episode; found out when a policy first asks, for the recorded one needs none."""
        return self._backend.info

    @info.setter
    def info(self, value: ClusterInfo) -> None:
        """It is the backend's."""

    @property
    def recorded(self) -> Dispatch | Wait:
        """What the recorded policy did; for `RecordedPolicy` alone."""
        return self._backend.recorded_action(self)


class RecordedPolicy:
    """Does what the recorded policy did; needs a replay."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Nothing to forget."""

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Return the recorded decision."""
        if not isinstance(view, ReplayView):
            raise PolicyError(
                "recorded", "it repeats the decisions of a recording, so it runs only with --backend replay"
            )
        return view.recorded
