"""How much of this machine's processor time others got: a virtual machine whose host is busy measures its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_STAT: Final = Path("/proc/stat")
_STEAL: Final = 7
"""Place of the stolen time among the times of all processors (`man 5 proc_stat`); guest times after it are in others."""


class StolenTime:
    """Since it was made: the share of the processors' time that the hypervisor gave to others."""

    def __init__(self) -> None:
        self._begin = _ticks()

    def share(self) -> float | None:
        """Return the share, 0 to 1; None where nobody says (no Linux)."""
        now = _ticks()
        if self._begin is None or now is None:
            return None
        stolen, total = (b - a for a, b in zip(self._begin, now, strict=True))
        return stolen / total if total > 0 else 0.0


def _ticks() -> tuple[int, int] | None:
    """Return (stolen, all) clock ticks of all processors since the machine was started."""
    try:
        name, *values = _STAT.read_text(encoding="ascii").splitlines()[0].split()
    except (OSError, IndexError, ValueError):
        return None
    times = [int(value) for value in values[: _STEAL + 1]]
    return (times[_STEAL], sum(times)) if name == "cpu" and len(times) > _STEAL else None
