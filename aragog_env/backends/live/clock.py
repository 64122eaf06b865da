"""The clock of a live run: seconds since the first decision was asked for, over all sessions of the run."""

from __future__ import annotations

import math
import time


class Clock:
    """Stands at `offset_s` until it is started.

    Attributes:
        offset_s: where it begins: a resumed run goes on where it stood, so that the pause is in nobody's latency.
    """

    def __init__(self) -> None:
        self.offset_s = 0.0
        self._zero_s = math.nan

    @property
    def begun(self) -> bool:
        """Whether it runs."""
        return not math.isnan(self._zero_s)

    def start(self) -> None:
        """Let it run."""
        self._zero_s = time.perf_counter()

    def at(self, raw_s: float) -> float:
        """Return a moment of the performance counter as seconds of this clock."""
        return raw_s - self._zero_s + self.offset_s

    @property
    def now_s(self) -> float:
        """Seconds since it was started."""
        return self.at(time.perf_counter()) if self.begun else self.offset_s
