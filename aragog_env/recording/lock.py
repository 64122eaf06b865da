"""One writer per recording: a second process that would go on with the same run is refused, with the first one's name."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from ..errors import SpecError


class WriterLock:
    """A lock file beside a recording, held as long as this process lives or until `release`.

    It is a file of its own because SQLite's locks cannot tell a writer that pauses from one that is gone, and because closing
    any handle of the database would drop them. The operating system lets go of the lock when its process dies, however.

    Args:
        recording: the file that is to be written.

    Raises:
        SpecError: another process writes it.
    """

    def __init__(self, recording: Path) -> None:
        self._path = recording.with_name(f"{recording.name}.lock")
        self._file: IO[str] | None = None
        while self._file is None:
            self._file = self._take(recording)

    def _take(self, recording: Path) -> IO[str] | None:
        """Take the lock; None if its file was removed in the same moment, by a writer that has just ended."""
        file = open(self._path, "a+", encoding="utf-8")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            who = file.read().strip()
            file.close()
            message = f"another process is writing this recording ({who or 'it has not said who'}); wait for its end"
            raise SpecError(message, where=str(recording)) from error
        except (ImportError, OSError):
            return file  # no locks on this system or file system; two writers are then the user's to avoid
        try:
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            same = False
        if not same:
            file.close()
            return None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        return file

    def release(self) -> None:
        """Let others write; the lock file goes."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
