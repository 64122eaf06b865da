"""Finding specs by name or path: shipped presets, workflows next to the package, and a user's own files.

A *name* (`qwen-8xh100`) is looked up among the presets; what has a slash or ends in .yaml or .yml is a path.
Relative paths inside a file start from that file's folder. A scenario may name its cluster, or
hold it inline, and may write a workflow of its mix as a bare name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

from ..errors import SpecError, did_you_mean
from .catalogue import PRESETS, cluster_models, gpu, load_gpus, load_models
from .cluster import ClusterSpec
from .outcome_files import SYNTHETIC, generator_digest, own_table
from .scenario import Scenario
from .strict import Reference, load_file, location, spec_hash
from .workflow import WorkflowSpec
from .workload import ArrivalSpec, MixEntry

Kind = Literal["scenarios", "clusters", "arrivals", "workflows", "models", "gpus"]
T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder that holds `aragog_env`, and beside it `workflows`."""


def load_scenario(name_or_path: str | Path) -> Scenario:
    """Return a scenario by preset name or file. Does not check it: see `aragog_env.specs.validate`."""
    path = _find("scenarios", name_or_path)
    folder = path.parent
    references: dict[type, Reference] = {
        ClusterSpec: partial(_reference, load_cluster, folder),
        ArrivalSpec: partial(_reference, load_arrivals, folder),
        MixEntry: lambda name, _: MixEntry(name),
    }
    return _anchor(load_file(Scenario, path, references), folder)


def load_cluster(name_or_path: str | Path, *, where: str | None = None) -> ClusterSpec:
    """Return a cluster by preset name or file."""
    path = _find("clusters", name_or_path, where)
    return _anchor_cluster(load_file(ClusterSpec, path), path.parent)


def load_arrivals(name_or_path: str | Path, *, where: str | None = None) -> ArrivalSpec:
    """Return an arrival process by preset name or file."""
    path = _find("arrivals", name_or_path, where)
    arrivals = load_file(ArrivalSpec, path)
    return replace(arrivals, path=_absolute(arrivals.path, path.parent)) if arrivals.path else arrivals


def load_workflow(name_or_path: str | Path, *, where: str | None = None) -> WorkflowSpec:
    """Return a workflow by name (`<folder>/<name>/workflow.yaml`), or by path of that file or its folder.

    Names are looked up in the folders of the environment variable ARAGOG_WORKFLOWS, then in `workflows`
    beside the package.
    """
    return load_file(WorkflowSpec, workflow_file(name_or_path, where=where))


def workflow_file(name_or_path: str | Path, *, where: str | None = None) -> Path:
    """Return the file that `load_workflow` reads."""
    if _is_path(name_or_path):
        path = Path(name_or_path).expanduser()
        return path / "workflow.yaml" if path.is_dir() else path
    found = _workflow_files(where)
    if str(name_or_path) not in found:
        hint = did_you_mean(str(name_or_path), found)
        raise SpecError(f"unknown workflow '{name_or_path}'.{hint}", where=where)
    return found[str(name_or_path)]


def outcome_file(scenario: Scenario, i: int) -> Path | None:
    """Return the file with the outcome table of entry `i` of the mix; None where the generator answers."""
    entry = scenario.workload.mix[i]
    if entry.outcomes == SYNTHETIC:
        return None
    if entry.outcomes is not None:
        return Path(entry.outcomes).expanduser()
    workflow = workflow_file(entry.workflow, where=location(scenario, f"workload.mix[{i}].workflow"))
    models = [entry.name for entry in cluster_models(scenario.cluster)]
    return own_table(workflow.parent, load_file(WorkflowSpec, workflow).name, models)


def scenario_workflows(scenario: Scenario) -> tuple[WorkflowSpec, ...]:
    """Return the workflows of a scenario's mix, in its order."""
    return tuple(
        load_workflow(entry.workflow, where=location(scenario, f"workload.mix[{i}].workflow"))
        for i, entry in enumerate(scenario.workload.mix)
    )


def scenario_hash(scenario: Scenario) -> str:
    """Return a hash of all that determines a scenario's results, on any machine.

    It covers what the scenario names (workflows, models, GPUs, the content of files), but no paths and no
    descriptions.
    """
    workflows = scenario_workflows(scenario)
    mix = tuple(
        replace(entry, workflow=workflow.name, outcomes=_outcome_digest(scenario, i))
        for i, (entry, workflow) in enumerate(zip(scenario.workload.mix, workflows, strict=True))
    )
    arrivals = scenario.workload.arrivals
    if arrivals.path:
        arrivals = replace(arrivals, path=_digest(arrivals.path, location(scenario, "workload.arrivals.path")))
    replicas = []
    for i, replica in enumerate(scenario.cluster.replicas):
        if replica.latency.endswith(".npz"):
            where = location(scenario.cluster, f"replicas[{i}].latency")
            replica = replace(replica, latency=_digest(replica.latency, where))
        replicas.append(replica)
    cluster = replace(scenario.cluster, replicas=tuple(replicas), models=(), gpus=())
    gpus = {replica.gpu for replica in cluster.replicas}
    return spec_hash(
        replace(scenario, cluster=cluster, workload=replace(scenario.workload, arrivals=arrivals, mix=mix)),
        *workflows,
        *cluster_models(scenario.cluster),
        *(gpu(name, scenario.cluster) for name in sorted(gpus)),
    )


def _outcome_digest(scenario: Scenario, i: int) -> str:
    path = outcome_file(scenario, i)
    if path is None:
        return generator_digest()
    return _digest(str(path), location(scenario, f"workload.mix[{i}].outcomes"))


def _digest(path: str, where: str) -> str:
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise SpecError(f"cannot read the file '{path}' ({error.strerror})", where=where) from error


def list_presets(kind: Kind) -> tuple[str, ...]:
    """Return the names that can be loaded without a path, sorted."""
    if kind == "workflows":
        return tuple(sorted(_workflow_files(None)))
    if kind in ("models", "gpus"):
        return tuple(load_models() if kind == "models" else load_gpus())
    return tuple(sorted(path.stem for path in (PRESETS / kind).glob("*.yaml")))


def anchored(name: str, folder: Path) -> str:
    """Return a name as it is, and a path as seen from the folder of the file that holds it."""
    return _absolute(name, folder) if _is_path(name) else name


def _reference(load: Callable[..., T], folder: Path, name: str, where: str) -> T:
    return load(anchored(name, folder), where=where)


def _is_path(name: str | Path) -> bool:
    text = str(name)
    return isinstance(name, Path) or "/" in text or os.sep in text or text.endswith((".yaml", ".yml"))


def _absolute(path: str, folder: Path) -> str:
    """Return `path` as seen from `folder` when it exists there; else as given."""
    seen = folder / Path(path).expanduser()
    return str(seen.resolve()) if seen.exists() else path


def _find(kind: Literal["scenarios", "clusters", "arrivals"], name: str | Path, where: str | None = None) -> Path:
    if _is_path(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise SpecError(f"there is no file '{name}' (a {kind[:-1]} was expected)", where=where)
        return path
    path = PRESETS / kind / f"{name}.yaml"
    if not path.is_file():
        kind_name = {"scenarios": "scenario", "clusters": "cluster", "arrivals": "arrival process"}[kind]
        hint = did_you_mean(str(name), list_presets(kind))
        raise SpecError(f"unknown {kind_name} '{name}'.{hint}", where=where)
    return path


def _workflow_files(where: str | None) -> dict[str, Path]:
    """Return the file of every workflow that has a name; earlier folders win."""
    extra = [Path(part).expanduser() for part in os.environ.get("ARAGOG_WORKFLOWS", "").split(os.pathsep) if part]
    shipped = ROOT / "workflows"
    if not extra and not shipped.is_dir():
        raise SpecError(
            f"the folder 'workflows' is missing beside aragog_env (looked in {ROOT}); install with "
            "'pip install -e .' from a checkout of the repository, or name other folders in ARAGOG_WORKFLOWS",
            where=where,
        )
    found: dict[str, Path] = {}
    for folder in (*extra, shipped):
        for path in sorted(folder.glob("*/workflow.yaml")):
            found.setdefault(path.parent.name, path)
    return found


def _anchor(scenario: Scenario, folder: Path) -> Scenario:
    """Make the relative paths of a scenario file independent of the working directory."""
    cluster = _anchor_cluster(scenario.cluster, folder)
    workload = scenario.workload
    mix = tuple(
        replace(
            entry,
            workflow=_absolute(entry.workflow, folder) if _is_path(entry.workflow) else entry.workflow,
            outcomes=_absolute(entry.outcomes, folder) if entry.outcomes not in (None, SYNTHETIC) else entry.outcomes,
        )
        for entry in workload.mix
    )
    arrivals = _with_preset(scenario, folder)
    if arrivals.path:
        arrivals = replace(arrivals, path=_absolute(arrivals.path, folder))
    return replace(scenario, cluster=cluster, workload=replace(workload, mix=mix, arrivals=arrivals))


def _with_preset(scenario: Scenario, folder: Path) -> ArrivalSpec:
    """Return the arrivals of a scenario: its preset, under the keys that the scenario's own file gives."""
    own = scenario.workload.arrivals
    if own.preset is None:
        return own
    key = "workload.arrivals"
    name = _absolute(own.preset, folder) if _is_path(own.preset) else own.preset
    base = load_arrivals(name, where=location(scenario, f"{key}.preset"))
    given = [f.name for f in fields(own) if f"{key}.{f.name}" in scenario.locations and f.name != "preset"]
    return replace(base, **{name: getattr(own, name) for name in given})


def _anchor_cluster(cluster: ClusterSpec, folder: Path) -> ClusterSpec:
    """Make the paths of latency tables independent of the working directory."""
    replicas = tuple(
        replace(replica, latency=_absolute(replica.latency, folder)) if replica.latency.endswith(".npz") else replica
        for replica in cluster.replicas
    )
    return replace(cluster, replicas=replicas)
