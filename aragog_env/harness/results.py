"""Results on disk: the only source of truth for reports, resuming, validation and trackers.

A folder holds ``manifest.json`` (scenarios with text and hash, and one entry per session that wrote here),
``results.jsonl`` (one line per finished run, appended and synced before the next run is started),
``episodes/*.npz`` (the log of every run) and, for live runs, ``recordings/*.db``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

from ..episode import EpisodeLog
from ..errors import SpecError
from ..files import write_atomically
from ..specs.load import scenario_workflows
from ..specs.plain import spec_hash
from ..specs.scenario import Scenario
from ..specs.strict import dump_yaml
from .episodes import load_episode
from .provenance import session_record

SCHEMA_VERSION: Final = 1
Kind = Literal["evaluate", "capacity"]
Key = tuple[str, str, int, float | None]


@dataclass(frozen=True)
class RunResult:
    """One line of results.jsonl: a (policy, scenario, seed) at one arrival rate."""

    policy: str
    scenario: str
    seed: int
    rate_rps: float | None = None
    """Set in rate sweeps only: the arrival rate that replaced the scenario's own."""
    status: Literal["ok", "failed"] = "ok"
    metrics: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    episode: str | None = None
    """Path of the episode log, relative to the folder."""
    digest: str | None = None
    recording: str | None = None
    """Path of the recording of a live run, relative to the folder."""
    details: dict[str, Any] = field(default_factory=dict)
    """What only this kind of backend has to say."""
    wall_s: float = 0.0
    session: int = 0
    """Index into the manifest's sessions: which command on which machine computed this."""
    error: str | None = None
    traceback: str | None = None

    @property
    def key(self) -> Key:
        """What identifies the run within its folder."""
        return (self.policy, self.scenario, self.seed, self.rate_rps)


class Results:
    """A results folder, open for reading; `append` needs `open_for_writing` first."""

    def __init__(self, folder: Path, manifest: dict[str, Any], runs: Iterable[RunResult]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._runs: dict[Key, RunResult] = {run.key: run for run in runs}
        self._file: IO[bytes] | None = None

    @property
    def runs(self) -> list[RunResult]:
        """All runs, the last line of each key, in the order in which policies and scenarios were given."""
        sessions = self.manifest["sessions"]
        policies = [name for session in sessions for name in session["settings"].get("policies", ())]
        rank = {name: i for i, name in enumerate(dict.fromkeys(policies))}
        scenarios = {name: i for i, name in enumerate(self.manifest["scenarios"])}

        def order(run: RunResult) -> tuple[int, int, float, int]:
            policy = rank.get(run.policy, len(rank))
            return scenarios.get(run.scenario, 0), policy, run.rate_rps or 0.0, run.seed

        return sorted(self._runs.values(), key=order)

    @property
    def ok(self) -> list[RunResult]:
        """The runs that finished."""
        return [run for run in self.runs if run.status == "ok"]

    @property
    def failed(self) -> list[RunResult]:
        """The runs whose policy failed."""
        return [run for run in self.runs if run.status == "failed"]

    @property
    def kind(self) -> Kind:
        """What wrote this folder."""
        kind: Kind = self.manifest["kind"]
        return kind

    @property
    def session(self) -> int:
        """Index of the latest session."""
        return len(self.manifest["sessions"]) - 1

    def get(self, key: Key) -> RunResult | None:
        """Return the run with this key, if it is there and finished."""
        run = self._runs.get(key)
        return run if run is not None and run.status == "ok" else None

    def scenario(self, name: str) -> Scenario:
        """Rebuild a scenario from the manifest's text."""
        from ..specs.strict import Source, loads

        text = self.manifest["scenarios"][name]["yaml"]
        return loads(Scenario, text, Source(f"{self.folder / 'manifest.json'}, scenario '{name}'"))

    def log(self, run: RunResult) -> EpisodeLog:
        """Read the episode log of a run."""
        if run.episode is None:
            raise SpecError(f"run {run.key} has no episode log", where=str(self.folder))
        return load_episode(self.folder / run.episode)

    def append(self, run: RunResult) -> None:
        """Add a run; it is on disk when this returns."""
        if self._file is None:
            raise RuntimeError("this results folder is open for reading only")
        self._file.write(_encode(asdict(run)) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._runs[run.key] = run

    def discard_if_empty(self) -> None:
        """Remove a folder that bad input left without a single run."""
        if self._file is not None and not self._runs:
            for name in ("manifest.json", "results.jsonl"):
                (self.folder / name).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def close(self) -> None:
        """Release the file and its lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_for_writing(
    folder: str | Path,
    scenarios: Sequence[Scenario],
    *,
    kind: Kind = "evaluate",
    resume: bool = False,
    command: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Results:
    """Create a results folder, or go on with one.

    Args:
        folder: where; made if it is missing.
        scenarios: what will be run; a resumed folder must hold the same ones.
        kind: the command that writes here.
        resume: go on with what is there; without it a folder that holds results is refused.
        command: for the manifest.
        settings: plain data for the manifest (policies, seeds, workers).

    Raises:
        SpecError: the folder holds results and `resume` is off, or they are of another scenario.
    """
    folder = Path(folder)
    described = {s.name: describe_scenario(s) for s in scenarios}
    if len(described) != len(scenarios):
        raise SpecError("two scenarios have the same name; results could not be told apart")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"cannot make this results folder ({error.strerror})", where=str(folder)) from error
    if (folder / "manifest.json").exists():
        if not resume:
            message = "this folder already holds results; add --resume, or choose another --out"
            raise SpecError(message, where=str(folder))
        results = read(folder)
        _check_same(results, described, kind)
    else:
        results = Results(folder, {"schema": SCHEMA_VERSION, "kind": kind, "scenarios": described, "sessions": []}, [])
    results._file = _lock_and_repair(folder / "results.jsonl")
    results.manifest["sessions"].append({**session_record(command), "settings": dict(settings or {})})
    write_atomically(folder / "manifest.json", _encode(results.manifest, indent=2) + b"\n")
    return results


def read(folder: str | Path) -> Results:
    """Open a results folder for reading.

    Raises:
        SpecError: it is no results folder, or a line other than an unfinished last one is damaged.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        schema = manifest["schema"]
    except FileNotFoundError as error:
        raise SpecError("this is no results folder: it has no manifest.json", where=str(folder)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"cannot read this manifest ({error})", where=str(path)) from error
    if schema != SCHEMA_VERSION:
        raise SpecError(f"results of schema {schema}, but this version reads schema {SCHEMA_VERSION}", where=str(path))
    return Results(folder, manifest, _read_lines(folder / "results.jsonl"))


def episode_path(key: Key) -> str:
    """Return the path, relative to the folder, of the log of a run."""
    return f"episodes/{run_name(key)}.npz"


def recording_path(key: Key) -> str:
    """Return the path, relative to the folder, of the recording of a live run."""
    return f"recordings/{run_name(key)}.db"


def run_name(key: Key) -> str:
    """Return a name for the files of a run; unique and safe on any file system."""
    policy, scenario, seed, rate = key
    words = [policy, scenario, f"seed{seed}"] + ([] if rate is None else [f"rate{rate:g}"])
    readable = "__".join(re.sub(r"[^A-Za-z0-9.=,-]+", "-", word) for word in words)
    unique = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    return f"{readable[:120]}-{unique}"


def describe_scenario(scenario: Scenario) -> dict[str, Any]:
    """Describe all that determines an episode: the scenario, and what it names but does not hold."""
    workflows = scenario_workflows(scenario)
    described: dict[str, Any] = {
        "hash": spec_hash(scenario, *workflows),
        "yaml": dump_yaml(scenario),
        "workflows": {w.name: spec_hash(w) for w in workflows},
    }
    trace = scenario.workload.arrivals.path
    if trace is not None and Path(trace).is_file():
        described["trace_sha256"] = hashlib.sha256(Path(trace).read_bytes()).hexdigest()
    return described


def _check_same(results: Results, described: Mapping[str, Mapping[str, Any]], kind: Kind) -> None:
    where = str(results.folder)
    if results.kind != kind:
        raise SpecError(f"this folder was written by 'aragog {results.kind}', not 'aragog {kind}'", where=where)
    there = results.manifest["scenarios"]
    if set(there) != set(described):
        was, wanted = ", ".join(sorted(there)), ", ".join(sorted(described))
        raise SpecError(f"this folder holds results of scenario {was}, not of {wanted}; use another --out", where=where)
    for name, new in described.items():
        for part in ("hash", "trace_sha256"):
            if there[name].get(part) != new.get(part):
                what = "definition" if part == "hash" else "trace file"
                was, now = (str(d.get(part))[:12] for d in (there[name], new))
                raise SpecError(
                    f"this folder holds results of another scenario: the {what} of '{name}' has changed "
                    f"({was} there, {now} now); use another --out",
                    where=where,
                )


def _lock_and_repair(path: Path) -> IO[bytes]:
    """Open for appending, alone; a last line that a killed writer left without newline is cut off."""
    file = open(path, "a+b")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise SpecError("another process is writing to this results folder", where=str(path.parent)) from error
    except (ImportError, OSError):
        pass  # no locks on this system or file system; two writers are then the user's to avoid
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def _read_lines(path: Path) -> list[RunResult]:
    if not path.exists():
        return []
    *lines, unfinished = path.read_bytes().split(b"\n")
    del unfinished  # empty, or a line that a killed writer did not finish
    return [_decode(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _decode(line: bytes, where: str) -> RunResult:
    try:
        data = json.loads(line)
        data["metrics"] = {k: math.nan if v is None else float(v) for k, v in data["metrics"].items()}
        return RunResult(**data)
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"this line is no result ({error})", where=where) from error


def _encode(data: Mapping[str, Any], indent: int | None = None) -> bytes:
    return json.dumps(finite(data), allow_nan=False, indent=indent, ensure_ascii=False).encode()


def finite(data: Any) -> Any:
    """Return plain data with nan and infinities as None, which is what JSON can hold."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data
