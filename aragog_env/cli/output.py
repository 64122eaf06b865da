"""Tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..harness.summary import Summary, format_interval, format_value, heading

if TYPE_CHECKING:
    from ..harness.capacity import PolicyCapacity

_WIDTH_WITHOUT_TERMINAL = 200


def console() -> Console:
    """Return a console on standard output; wide when it is a file or a pipe, which have no width."""
    made = Console()
    return made if made.is_terminal else Console(width=_WIDTH_WITHOUT_TERMINAL)


def print_summary(table: Summary, metrics: Sequence[str]) -> None:
    """Print policies x metrics with 95% intervals."""
    shown = [name for name in metrics if name in table.metrics]
    drawn = _table(f"Scenario {table.scenario}" if table.scenario else "All scenarios")
    drawn.add_column("Policy", style="bold", overflow="fold")
    for name in shown:
        drawn.add_column(heading(name), justify="right")
    for row in table.rows:
        label = Text(row.policy)
        if row.failed:
            label.append(f"\n{row.failed} of {row.failed + row.seeds} runs failed", style="red")
        cells = []
        for name in shown:
            estimate = row.cells[name].estimate
            interval = format_interval(name, estimate)
            cells.append(
                Text(format_value(name, estimate.value)) + Text(f"\n{interval}" if interval else "", style="dim")
            )
        drawn.add_row(label, *cells)
    seeds = max((row.seeds for row in table.rows), default=0)
    drawn.caption = f"mean over {seeds} seeds, {table.requests:,} requests in all; 95% bootstrap intervals"
    console().print(drawn)


def print_capacities(found: Sequence[PolicyCapacity], scenario: str) -> None:
    """Print ceilings and capacities."""
    drawn = _table(f"Rate sweep of {scenario}")
    drawn.add_column("Policy", style="bold", overflow="fold")
    for name in ("Ceiling (req/s)", "at rate (req/s)", "Capacity under SLO (req/s)", "Rates tried"):
        drawn.add_column(name, justify="right")
    for p in found:
        if p.error is not None:
            drawn.add_row(escape(p.policy), Text("failed", style="red"), "", "", "")
            continue
        interval = format_interval("throughput_rps", p.ceiling_rps)
        above = f"below {p.infeasible_rps:.3g}" if math.isfinite(p.infeasible_rps) else "not reached"
        drawn.add_row(
            escape(p.policy),
            Text(f"{p.ceiling_rps.value:.3f}") + Text(f"\n{interval}" if interval else "", style="dim"),
            f"{p.ceiling_rate_rps:.3g}",
            Text(f"{p.capacity_rps:.3g}") + Text(f"\n{above}", style="dim"),
            str(len(p.rates_rps)),
        )
    console().print(drawn)


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table; the last column takes what width is left."""
    drawn = _table(title)
    for i, name in enumerate(header):
        drawn.add_column(name, no_wrap=i == 0, style="bold" if i == 0 else "", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(cell) for cell in row))
    console().print(drawn)


def _table(title: str) -> Table:
    from rich import box

    return Table(
        title=escape(title), title_justify="left", title_style="bold", caption_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
