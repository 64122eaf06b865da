"""What `aragog cluster up` shows while servers start."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from aragog_env.cli import starting
from aragog_env.cli.starting import Starting


def test_a_line_per_change_where_nobody_redraws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    clock = [0.0]
    monkeypatch.setattr(starting, "monotonic", lambda: clock[0])
    with Starting(["small", "large"], tmp_path, Console(file=text, width=200)) as report:
        report("small", "running already", 0.0)
        for second in range(0, 75):
            clock[0] = float(second)
            report("large", "starting", float(second))
        report("large", "healthy", 75.2)
    assert text.getvalue().splitlines() == [
        "small: running already",
        "large: starting",
        "large: starting, 30 s",
        "large: starting, 60 s",
        "large: healthy after 75 s",
    ]


def test_a_table_with_the_last_line_of_the_log_on_a_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    (tmp_path / "large.log").write_text("INFO begins\nINFO loading [weights]\n")
    console = Console(file=text, force_terminal=True, width=200, highlight=False)
    with Starting(["small", "large"], tmp_path, console) as report:
        report("large", "starting", 12.0)
        console.print(report._table())
    shown = text.getvalue()
    assert "small" in shown and "waiting" in shown and "12" in shown
    assert "INFO loading [weights]" in shown and "INFO begins" not in shown
