"""How a live run behaves, whatever it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...servers.client import Timeouts
from ...servers.pool import PoolOptions


@dataclass(frozen=True)
class LiveOptions:
    """How a live run behaves."""

    max_attempts: int = 4
    """Times a call is sent before its request fails."""
    unservable_s: float = 60.0
    """How long a call waits for a server that could take it before its request fails."""
    ready_s: float = 20.0
    """How long servers may take to answer at the start; without one for every model the run does not begin."""
    temperature: float = 0.0
    ignore_eos: bool = False
    """Let every call write as many tokens as its stage allows (for profiles, not for answers)."""
    workers: int = 4
    """Threads for tools, and as many for graders."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    pool: PoolOptions = field(default_factory=PoolOptions)
