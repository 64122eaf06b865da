"""Runs during which the hypervisor took the processor away are done again; the best try counts."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aragog_env.errors import AragogError
from aragog_env.recording import RecordingWriter
from scripts.measure_fidelity import quiet_run
from tests.recording.test_recording import RUN


class Runs:
    """Stands for `aragog evaluate`: leaves a recording during which a given share was stolen."""

    def __init__(self, stolen: Iterator[float | None]) -> None:
        self.stolen, self.count = stolen, 0

    def main(self, words: Sequence[str]) -> int:
        out = Path(words[words.index("--out") + 1])
        self.count += 1
        if not (out / "manifest.json").exists():
            writer = RecordingWriter(out / "recordings" / "run.db", RUN)
            writer.begin_session(0.0, versions={}, machine={}, isolation=[], servers=[])
            writer.end_session(1.0, "drained")
            writer.close()
            with sqlite3.connect(out / "recordings" / "run.db") as connection:
                connection.execute("UPDATE sessions SET cpu_stolen = ?", (next(self.stolen),))
            (out / "manifest.json").write_text("{}")
        return 0


@pytest.mark.parametrize(
    ("stolen", "best"), [((0.01,), 1), ((0.5, 0.02), 2), ((0.5, 0.2, 0.3), 2), ((None,), 1)], ids=str
)
def test_the_quietest_try_counts(
    stolen: tuple[float | None, ...], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(iter(stolen))
    monkeypatch.setattr("scripts.measure_fidelity.cli", runs)
    options = argparse.Namespace(cluster="c", requests=5, tries=3, most_stolen=0.03)
    for _ in range(2):
        path = quiet_run("fixed:largest", 0.5, 0, tmp_path, options)
        assert path == tmp_path / "fixed-largest-0.5rps" / f"try-{best}" / "recordings" / "run.db"
        assert runs.count == len(stolen), "what is there is not run again"


def test_a_run_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.measure_fidelity.cli.main", lambda words: 1)
    with pytest.raises(AragogError, match=r"the run of aragog at 1\.5 req/s failed; see .*try-1"):
        quiet_run("aragog", 1.5, 0, tmp_path, argparse.Namespace(cluster="c", requests=5, tries=3, most_stolen=0.03))
