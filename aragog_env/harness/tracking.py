"""Mirror a results folder to Weights & Biases. The files stay the source of truth; nothing is read back.

One W&B run per (policy, scenario, seed) with job type `eval`, and one with job type `report` that holds the
table of all runs and the folder's files as an artifact; all in one group, which is the folder's name. Runs
have ids derived from what they mirror, so that mirroring twice (after --resume, say) updates them instead of
adding copies.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from ..errors import SpecError
from .metrics import METRICS
from .results import Results, RunResult

MODES: Final = ("off", "offline", "online")


def mirror(results: Results, *, mode: str, project: str = "aragog") -> list[Path]:
    """Copy results to W&B.

    Args:
        results: the folder.
        mode: ``offline`` writes below the folder, to be sent later with ``wandb sync``; ``online`` sends.
        project: W&B project.

    Returns:
        The directories of the W&B runs.

    Raises:
        SpecError: unknown mode, or wandb is not installed.
    """
    if mode not in MODES:
        raise SpecError(f"unknown W&B mode '{mode}'; it is one of {', '.join(MODES)}", where="--wandb")
    if mode == "off":
        return []
    wandb = _import()
    common: dict[str, Any] = {
        "project": project,
        "group": results.folder.resolve().name,
        "mode": mode,
        "dir": str(results.folder),
        "reinit": "finish_previous",
        "settings": wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
    }
    directories = [_mirror_run(wandb, results, run, common) for run in results.runs]
    directories.append(_mirror_report(wandb, results, common))
    return directories


def _import() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise SpecError("wandb is not installed; run pip install wandb, or leave out --wandb") from error
    return wandb


def _mirror_run(wandb: Any, results: Results, run: RunResult, common: dict[str, Any]) -> Path:
    scenario = results.manifest["scenarios"][run.scenario]
    rate = "" if run.rate_rps is None else f"-{run.rate_rps:g}rps"
    with wandb.init(
        id=_id(results, run.key),
        name=f"{run.policy}-{run.seed}{rate}",
        job_type="eval",
        tags=_tags(results, run),
        config={
            "policy": run.policy,
            "scenario": run.scenario,
            "scenario_hash": scenario["hash"],
            "seed": run.seed,
            **run.config,
            "versions": results.manifest["sessions"][run.session]["versions"],
        },
        **common,
    ) as tracked:
        tracked.summary.update({"status": run.status, "error": run.error, "wall_s": run.wall_s, **run.metrics})
        return Path(tracked.dir).parent


def _mirror_report(wandb: Any, results: Results, common: dict[str, Any]) -> Path:
    columns = ["policy", "scenario", "seed", "rate_rps", "status", *METRICS]
    rows = [
        [
            run.policy,
            run.scenario,
            run.seed,
            run.rate_rps,
            run.status,
            *(run.metrics.get(name) for name in METRICS),
        ]
        for run in results.runs
    ]
    with wandb.init(
        id=_id(results, "report"),
        name=f"report-{results.folder.resolve().name}",
        job_type="report",
        tags=sorted(results.manifest["scenarios"]),
        config={"sessions": results.manifest["sessions"]},
        **common,
    ) as tracked:
        tracked.log({"runs": wandb.Table(columns=columns, data=rows)})
        artifact = wandb.Artifact(f"results-{_id(results, 'artifact')}", type="results")
        for pattern in ("*.json*", "report.*", "episodes/*.npz", "figures/*.png"):
            for path in sorted(results.folder.glob(pattern)):
                artifact.add_file(str(path), name=str(path.relative_to(results.folder)))
        tracked.log_artifact(artifact)
        return Path(tracked.dir).parent


def _tags(results: Results, run: RunResult) -> list[str]:
    git = results.manifest["sessions"][run.session]["git"]
    commit = [f"git-{git['commit'][:8]}"] if git else []
    return [tag[:64] for tag in (run.policy, run.scenario, *commit)]


def _id(results: Results, what: object) -> str:
    """Return a run id: equal for equal scenarios, first start and key."""
    sessions = results.manifest["sessions"]
    hashes = sorted(described["hash"] for described in results.manifest["scenarios"].values())
    return hashlib.sha256(repr((hashes, sessions[0]["started"], what)).encode()).hexdigest()[:16]
