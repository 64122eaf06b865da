"""What is told to Weights & Biases, by evaluations, training runs and comparisons alike. Nothing is read back.

The files of a run stay the source of truth; W&B holds a copy of them. Offline, everything is written below the run's folder
and sent later with ``wandb sync``. Runs have ids derived from what they mirror: mirroring twice updates them instead of adding
copies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import SpecError

MODES: Final = ("off", "offline", "online")
PROJECT: Final = "aragog"
"""Unless the environment variable WANDB_PROJECT says otherwise."""
_LONGEST_TAG: Final = 64


def check_mode(mode: str) -> bool:
    """Return whether anything is to be told.

    Raises:
        SpecError: unknown mode, wandb is not installed, or `online` without an account: nobody is asked for one.
    """
    if mode not in MODES:
        raise SpecError(f"unknown W&B mode '{mode}'; it is one of {', '.join(MODES)}", where="--wandb")
    if mode == "off":
        return False
    wandb = client()
    if mode == "online" and wandb.run is None and not wandb.login(prompt=False, verify=False):
        raise SpecError(
            "no W&B account is set up on this machine; run 'wandb login', or use --wandb offline and 'wandb sync' later",
            where="--wandb",
        )
    return True


def client() -> Any:
    """Return the module `wandb`.

    Raises:
        SpecError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise SpecError("wandb is not installed; run pip install wandb, or leave out --wandb") from error
    return wandb


def run_id(*what: object) -> str:
    """Return the id of the run that mirrors `what`."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def start(
    folder: Path,
    *,
    mode: str,
    key: Sequence[object],
    name: str,
    group: str,
    job_type: str,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    project: str | None = None,
    resume: bool = False,
) -> Any:
    """Begin a W&B run and return it; it is a context manager.

    Within a sweep (`aragog train --print-sweep`) the run's id is the sweep's.

    Args:
        folder: ``wandb/`` is made in it.
        mode: ``offline`` or ``online``.
        key: what the run mirrors; the same again is the same run.
        name: that people see.
        group: what it belongs to.
        job_type: what kind of run it is.
        tags: what people find it by; cut where W&B would refuse them.
        config: what people filter and compare by.
        project: W&B project; None: that of the environment, else `PROJECT`.
        resume: go on with a run of this key that is there, rather than replace it.

    Raises:
        SpecError: see `check_mode`.
    """
    check_mode(mode)
    wandb = client()
    of_sweep = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    return wandb.init(
        id=of_sweep or run_id(*key),
        name=name,
        project=project or os.environ.get("WANDB_PROJECT", PROJECT),
        group=group,
        job_type=job_type,
        tags=[tag[:_LONGEST_TAG] for tag in dict.fromkeys(tags) if tag],
        config=dict(config or {}),
        mode=mode,
        dir=str(folder),
        resume="allow" if resume else None,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
    )


def log_files(
    run: Any, name: str, kind: str, files: Mapping[str, Path], *, aliases: Sequence[str] = (), **metadata: Any
) -> None:
    """Add files to a run as an artifact, a new version where they have changed.

    Args:
        run: of `start`.
        name: of the artifact.
        kind: its type, e.g. ``model``.
        files: by name within the artifact.
        aliases: names of this version, beside ``latest``.
        **metadata: what is known about it.
    """
    artifact = client().Artifact(name, type=kind, metadata=metadata)
    for inside, path in files.items():
        artifact.add_file(str(path), name=inside)
    run.log_artifact(artifact, aliases=["latest", *aliases])


def directory(run: Any) -> Path:
    """Return where a run's files are on this machine: what ``wandb sync`` is given."""
    return Path(run.dir).parent
