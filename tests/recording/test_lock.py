"""Two processes never write one recording; a process that dies leaves it to the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aragog_env.errors import SpecError
from aragog_env.recording import Recording, RecordingWriter
from aragog_env.recording.lock import WriterLock
from tests.recording.test_recording import RUN

HOLD = """\
import sys, time
from pathlib import Path
from aragog_env.recording import RecordingWriter
from tests.recording.test_recording import RUN
writer = RecordingWriter(Path(sys.argv[1]), RUN, resume=True)
print("held", flush=True)
time.sleep(60)
"""
ROOT = Path(__file__).resolve().parents[2]


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(SpecError, match=f"another process is writing this recording .process {other.pid} on "):
            RecordingWriter(path, RUN, resume=True)
        with Recording(path) as recording:  # readers are welcome
            assert recording.run["policy"] == RUN["policy"]
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        writer = RecordingWriter(path, RUN, resume=True)
        writer.close()
    finally:
        other.kill()
        other.wait(10)
        if other.stdout is not None:
            other.stdout.close()
    assert not (tmp_path / "r.db.lock").exists(), "one file is left"


def test_the_lock_is_released_whatever_goes_wrong(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    first = RecordingWriter(path, RUN)
    with pytest.raises(SpecError, match=f"process {os.getpid()}"):
        RecordingWriter(path, RUN, resume=True)
    first.close()
    for arguments in ({"resume": False}, {"resume": True}):
        with pytest.raises(SpecError, match=r"exists already|another run"):
            RecordingWriter(path, {**RUN, "policy": "other"}, **arguments)
    assert not (tmp_path / "r.db.lock").exists()
    RecordingWriter(path, RUN, resume=True).close()


def test_a_lock_file_that_went_away_in_the_same_moment(tmp_path: Path) -> None:
    """Whoever waits on the file of a writer that ends must not hold a lock that nobody else can see."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from aragog_env.errors import SpecError
        from aragog_env.recording.lock import WriterLock
        target, count = Path(sys.argv[1]), 0
        while count < 200:
            try:
                lock = WriterLock(target)
            except SpecError:
                continue
            with open(target, "r+") as file:
                value = int(file.read())
                file.seek(0)
                file.write(str(value + 1))
            count += 1
            lock.release()
        """
    )
    target = tmp_path / "counter"
    target.write_text("0")
    others = [subprocess.Popen([sys.executable, "-c", program, str(target)], cwd=ROOT) for _ in range(2)]
    assert [other.wait(60) for other in others] == [0, 0]
    assert target.read_text() == "400", "no two held it at once"
    WriterLock(target).release()


def test_a_file_that_was_never_finished_is_begun_anew(tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "r.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")  # as far as a process came that was killed in the first moment
    connection.close()
    assert (tmp_path / "r.db").stat().st_size > 0
    writer = RecordingWriter(tmp_path / "r.db", RUN, resume=True)
    assert writer.session == 0
    writer.close()
