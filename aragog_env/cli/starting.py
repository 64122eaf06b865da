"""What `aragog cluster up` shows while servers start: a table that is redrawn on a terminal, a line per change elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final, Self

from ..servers.process import tail

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..servers.launcher import Phase

_STILL_S: Final = 30.0
"""Elsewhere than on a terminal, a server that starts says so this often: it may take minutes."""
_LOG_WIDTH: Final = 72


@dataclass
class _Row:
    phase: Phase = "waiting"
    seconds: float = 0.0
    said_s: float = 0.0


class Starting:
    """Shows servers that start; a `launcher.Report`. Use as a context manager.

    Args:
        servers: their names, in order.
        folder: the run folder, with a log per server.
        console: where to write; default: standard error.
    """

    def __init__(self, servers: Sequence[str], folder: Path, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console(stderr=True, highlight=False)
        self._rows = {name: _Row() for name in servers}
        self._folder = folder
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, name: str, phase: Phase, seconds: float) -> None:
        """Take note; `seconds` since the server was started."""
        row = self._rows.setdefault(name, _Row())
        changed, row.seconds = phase != row.phase, seconds
        row.phase = phase
        if changed or (phase == "starting" and not self._console.is_terminal and monotonic() - row.said_s >= _STILL_S):
            row.said_s = monotonic()
            took = f" after {seconds:.0f} s" if phase == "healthy" else f", {seconds:.0f} s" if seconds >= 1 else ""
            self._console.print(f"{name}: {phase}{took}", markup=False)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table("server", "state", "seconds", "its log", box=None, pad_edge=False)
        table.columns[2].justify = "right"
        for name, row in self._rows.items():
            line = tail(self._folder / f"{name}.log", 1) if row.phase == "starting" else ""
            seconds = f"{row.seconds:.0f}" if row.phase in ("starting", "healthy") else ""
            table.add_row(
                name, row.phase, seconds, Text(line[-_LOG_WIDTH:], style="dim", no_wrap=True, overflow="crop")
            )
        return table
