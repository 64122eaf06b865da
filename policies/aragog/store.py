"""Where trained routers are found: shipped with the project, in the user's cache, or trained now and put there."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable

from .checkpoint import SCHEMA, Checkpoint
from .embedders import default_embedder, make_embedder
from .training import TrainSettings, train_router

SHIPPED: Final = Path(__file__).resolve().parent / "checkpoints"
RECIPE: Final = 2
"""Raised when training changes: routers in caches are then made again."""


def file_name(table: OutcomeTable) -> str:
    """Return the name of a shipped checkpoint: workflow and models."""
    return f"{table.workflow}--{'--'.join(table.models)}.npz"


def cache_folder() -> Path:
    """Return where routers are kept: $ARAGOG_CACHE, else $XDG_CACHE_HOME/aragog, else ~/.cache/aragog, else temporary."""
    named = os.environ.get("ARAGOG_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aragog"
    for folder in (base / "routers", Path(tempfile.gettempdir()) / f"aragog-{os.getuid()}" / "routers"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise SpecError("no folder for trained routers can be written; set ARAGOG_CACHE to one that can")


def table_key(table: OutcomeTable, settings: TrainSettings) -> str:
    """Return the hash of everything that a router trained on `table` depends on."""
    names = [table.workflow, table.kind, table.models, table.nodes, table.llm_nodes]
    digest = hashlib.sha256(json.dumps([SCHEMA, RECIPE, names, asdict(settings)], sort_keys=True).encode())
    for array in (table.p_correct, table.expected_output_tokens, table.query_features, table.query_tokens):
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    for text in table.query_texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:20]


def shipped_checkpoint(table: OutcomeTable, folder: Path = SHIPPED) -> Checkpoint | None:
    """Return the checkpoint in `folder` that was trained on this very table, or None."""
    path = folder / file_name(table)
    if not path.exists():
        return None
    checkpoint = Checkpoint.load(path)
    vectors = make_embedder(checkpoint.manifest["embedder"]).embed(table.query_set)
    return checkpoint if checkpoint.matches(table, vectors) else None


def find_or_train(table: OutcomeTable, settings: TrainSettings | None = None) -> Checkpoint:
    """Return the router of a table: shipped, else cached, else trained now (a line on standard error says so).

    Several processes may ask at once: one trains, the others wait for it and read the file.

    Raises:
        SpecError: it would have to be trained, and torch is not installed or the table is too small.
    """
    if settings is None and (found := shipped_checkpoint(table)) is not None:
        return found
    settings = settings or TrainSettings()
    path = cache_folder() / f"{table.workflow}-{table_key(table, settings)}.npz"
    if (cached := _read(path)) is not None:
        return cached
    with _locked(path.with_suffix(".lock")):
        if (cached := _read(path)) is not None:
            return cached
        name = settings.embedder or default_embedder(table.query_set)
        print(
            f"training a router for '{table.workflow}' ({table.queries} questions, {table.configurations} configurations, "
            f"embedder {name}); kept in {path.parent}",
            file=sys.stderr,
        )
        checkpoint = train_router(table, settings)
        checkpoint.save(path)
    return checkpoint


def _read(path: Path) -> Checkpoint | None:
    """Return a cached checkpoint; a damaged one counts as none, since it can be made again."""
    try:
        return Checkpoint.load(path) if path.exists() else None
    except SpecError:
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases when a process dies; without such locks the last writer wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
