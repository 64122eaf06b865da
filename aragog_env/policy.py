"""The policy side of the contract: a view goes in, a dispatch (or `WAIT`) comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from .specs.scenario import Scenario
    from .view import DispatchView


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send one ready call to one route.

    Attributes:
        call: index into the view's ready calls (`view.calls`), 0 = oldest request first.
        route: index into the view's routes.
        priority: passed to servers that run vLLM's priority scheduling (lower first); others ignore it.
    """

    call: int
    route: int
    priority: int = 0


class Wait:
    """The type of `WAIT`."""

    _instance: Wait | None = None

    def __new__(cls) -> Wait:
        """Return the one instance."""
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "WAIT"

    def __reduce__(self) -> str:
        return "WAIT"


WAIT: Final = Wait()
"""Do nothing until the next event (an arrival or a completion)."""


@runtime_checkable
class Policy(Protocol):
    """Chooses a ready call and a route, or waits. See `aragog_env.registry` for how policies are named."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode; all randomness of the next one comes from `seed`."""

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Decide; called whenever at least one call is ready, again after each dispatch while calls remain."""
