"""Recordings of live runs: one SQLite file per run, written as things happen, readable while it is written."""

from .reader import Recording
from .schema import SCHEMA
from .writer import RecordingWriter

__all__ = ["SCHEMA", "Recording", "RecordingWriter"]
