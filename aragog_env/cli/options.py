"""Options that several commands share: which scenario, changed how, with which policies and seeds."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..harness.defaults import DEFAULT_SEEDS

if TYPE_CHECKING:
    from ..harness.backends import Target
    from ..harness.executor import Executor
    from ..specs.scenario import Scenario

TRACE_FORMATS = ("auto", "azure2023", "azure2024", "burstgpt", "mooncake")


def add_scenario_options(parser: argparse.ArgumentParser, *, several_rates: bool = False) -> None:
    """Add the options that change a scenario.

    Args:
        parser: gets them.
        several_rates: `--rate` may be given more than once (see `scenarios_from`).
    """
    group = parser.add_argument_group("changes to the scenario")
    group.add_argument("--requests", type=int, metavar="N", help="requests per episode")
    group.add_argument("--warmup", type=int, metavar="N", help="first requests that count for no metric")
    group.add_argument("--duration", type=float, metavar="S", help="cut the episode after this many seconds")
    group.add_argument(
        "--rate",
        type=float,
        action="append" if several_rates else "store",
        metavar="RPS",
        help="mean arrival rate in requests per second" + (", repeatable" if several_rates else ""),
    )
    group.add_argument("--users", type=int, metavar="N", help="users of a closed loop")
    group.add_argument("--trace", metavar="PATH", help="take arrivals from a public trace, at the scenario's rate")
    group.add_argument("--trace-format", choices=TRACE_FORMATS, default="auto", help="format of the trace")
    group.add_argument("--native-rate", action="store_true", help="keep the rate at which the trace was recorded")
    group.add_argument("--workflow", metavar="NAME[,NAME]", help="run only these workflows, in equal shares")
    group.add_argument(
        "--outcomes",
        action="append",
        metavar="FILE",
        help="outcome table (npz) of one workflow, repeatable; or 'synthetic'",
    )
    group.add_argument("--cluster", metavar="NAME|PATH", help="another cluster")
    group.add_argument("--slo", type=float, metavar="S", help="absolute latency limit of a request")
    group.add_argument("--slo-scale", type=float, metavar="X", help="latency limit / standalone latency")


def add_run_options(parser: argparse.ArgumentParser, *, seeds: int) -> None:
    """Add policies, seeds, output and processes."""
    from ..harness.defaults import DEFAULT_POLICIES

    names = ", ".join(DEFAULT_POLICIES)
    parser.add_argument(
        "--policy", "-p", action="append", metavar="NAME",
        help=f"policy, repeatable: NAME[:ARGUMENTS] or module:Class\n(default: {names})",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=positive, default=seeds, metavar="N", help=f"seeds 0..N-1 (default: {seeds})")
    which.add_argument("--seed", type=int, action="append", metavar="SEED", help="this seed, repeatable")
    parser.add_argument(
        "--out", "-o", metavar="FOLDER", help="results folder (default: results/<scenario>-<date-time>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with --out: run only what is missing or failed")
    add_executor_options(parser)
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    parser.add_argument("--no-report", action="store_true", help="do not write report.html, report.md and figures")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress bars, no table")


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Add the choice of where runs are executed."""
    parser.add_argument(
        "--executor", choices=("local", "ray"), default="local",
        help="processes of this machine, or a Ray cluster (docs/scale.md)",
    )  # fmt: skip
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="of the cluster (default: RAY_ADDRESS, else one is started here)"
    )
    parser.add_argument(
        "--workers",
        "-j",
        type=positive,
        metavar="N",
        help="runs at a time (default: one per core, or CPU of the cluster)",
    )


def chosen_executor(options: argparse.Namespace) -> Executor:
    """Return where runs are to be executed."""
    from ..harness.executor import Executor

    return Executor(options.executor, options.workers, options.ray_address)


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Add the choice of what policies run on."""
    from ..harness.backends import BACKENDS

    group = parser.add_argument_group("what policies run on")
    group.add_argument(
        "--backend", choices=BACKENDS, default="sim",
        help="sim: the simulator (default)\n"
        "replay: recorded live runs, on a calibrated cluster\n"
        "live: real servers, started by 'aragog cluster up' or attached: --cluster names them",
    )  # fmt: skip
    group.add_argument(
        "--recording",
        action="append",
        metavar="FILE.db",
        help="replay: recording of a live run, repeatable; --cluster names what 'aragog calibrate' made\n"
        "(default: calibrated on these recordings). The policy 'recorded' repeats their decisions.",
    )
    group.add_argument(
        "--dataset",
        action="append",
        metavar="WORKFLOW=PATH",
        help="live: file or folder of a workflow's data set, repeatable (default: the usual places)",
    )


def chosen_target(options: argparse.Namespace, scenarios: list[Scenario]) -> Target:
    """Return what was chosen to run on.

    Args:
        options: of the command line.
        scenarios: where no cluster is named, the one that they name is meant.
    """
    from ..errors import SpecError

    if options.dataset and options.backend != "live":
        raise SpecError("only live runs read data sets; add --backend live", where="--dataset")
    if options.recording and options.backend != "replay":
        raise SpecError("only replays read recordings; add --backend replay", where="--recording")
    return _TARGETS[options.backend](options, scenarios)


def _simulated(options: argparse.Namespace, scenarios: list[Scenario]) -> Target:
    from ..harness.backends import Simulated

    return Simulated()


def _live(options: argparse.Namespace, scenarios: list[Scenario]) -> Target:
    from ..errors import SpecError
    from ..harness.live import Live
    from ..servers.find import find_servers

    names = {scenario.cluster.name for scenario in scenarios}
    if options.cluster is None and len(names) > 1:
        raise SpecError(
            f"the scenarios have several clusters ({', '.join(sorted(names))}); name the one that is served"
        )
    datasets = {}
    for text in options.dataset or ():
        workflow, separator, path = text.partition("=")
        if not separator or not Path(path).exists():
            raise SpecError(f"expected WORKFLOW=PATH with a path that exists, got '{text}'", where="--dataset")
        datasets[workflow] = os.path.abspath(path)
    return Live(find_servers(options.cluster or names.pop()), datasets=datasets)


_OF_THE_RECORDING = (
    "scenario", "requests", "duration", "rate", "users", "trace", "native_rate", "workflow", "outcomes",
)  # fmt: skip


def _replayed(options: argparse.Namespace, scenarios: list[Scenario]) -> Target:
    """Return recorded runs as the target; without --cluster, calibrated on themselves."""
    from ..calibration import calibrate
    from ..errors import SpecError
    from ..harness.replay import Replayed
    from ..specs.load import load_cluster

    if not options.recording:
        raise SpecError("a replay needs at least one recording; name it with --recording FILE.db", where="--backend")
    for name in _OF_THE_RECORDING:
        if getattr(options, name):
            raise SpecError("a replay takes this from the recording; leave the option out", where=f"--{name}")
    recordings = tuple(os.path.abspath(path) for path in options.recording)
    if options.cluster:
        cluster = load_cluster(options.cluster)
    else:
        cluster = calibrate(recordings).cluster
        print("no --cluster: calibrated on these recordings themselves (see 'aragog calibrate')", file=sys.stderr)
    target = Replayed(recordings, cluster, not options.cluster, options.slo, options.slo_scale, options.warmup)
    if options.seed is None and options.seeds == DEFAULT_SEEDS:
        options.seed = target.seeds
    return target


_TARGETS = {"sim": _simulated, "live": _live, "replay": _replayed}


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return value


def scenario_from(name: str, options: argparse.Namespace) -> Scenario:
    """Load a scenario and change it as the options say."""
    from ..errors import SpecError
    from ..specs.load import load_scenario
    from ..specs.override import override

    if options.trace is not None and not Path(options.trace).is_file():
        raise SpecError(f"there is no trace file '{options.trace}'", where="--trace")
    return override(
        load_scenario(name),
        rate_rps=options.rate,
        users=options.users,
        trace=os.path.abspath(options.trace) if options.trace else None,
        trace_format=options.trace_format,
        native_rate=options.native_rate,
        requests=options.requests,
        warmup_requests=options.warmup,
        duration_s=options.duration,
        workflow=options.workflow,
        outcomes=[name if name == "synthetic" else os.path.abspath(name) for name in options.outcomes or ()],
        # A live cluster is not a preset: its servers bring it along.
        cluster=options.cluster if getattr(options, "backend", "sim") == "sim" else None,
        slo_s=options.slo,
        slo_scale=options.slo_scale,
    )


def scenarios_from(names: list[str], options: argparse.Namespace) -> list[Scenario]:
    """Load scenarios, changed as the options say; with several rates one of each at every rate, ``NAME@RATE``."""
    rates = list(dict.fromkeys(options.rate or [None]))
    found = []
    for name in names:
        for rate in rates:
            scenario = scenario_from(name, argparse.Namespace(**{**vars(options), "rate": rate}))
            found.append(replace(scenario, name=f"{scenario.name}@{rate:g}rps") if len(rates) > 1 else scenario)
    return found


def chosen_policies(options: argparse.Namespace, scenarios: list[Scenario]) -> list[str]:
    """Return the policies that were asked for, else the default ones that can run; says which cannot."""
    if options.policy:
        return list(options.policy)
    from ..harness.choice import default_policies

    policies, note = default_policies(scenarios)
    if note:
        print(note, file=sys.stderr)
    return policies


def chosen_seeds(options: argparse.Namespace) -> list[int]:
    """Return the seeds that were asked for."""
    return list(options.seed) if options.seed else list(range(options.seeds))


def tell_sync(*places: str) -> None:
    """Say how to send what W&B was told offline, below these folders."""
    words = " ".join(f"{place}/offline-run-*" for place in dict.fromkeys(places))
    print(f"W&B, offline; send it with: wandb sync {words}", file=sys.stderr)


def command_line() -> list[str]:
    """Return the words of this command as one would type them again."""
    return ["aragog", *sys.argv[1:]]


def resume_command(folder: Path, words: list[str]) -> str:
    """Return the command that goes on with an interrupted one."""
    kept = [word for word in words if word != "--resume"]
    for i, word in enumerate(kept):
        if word in ("--out", "-o"):
            del kept[i : i + 2]
            break
        if word.startswith("--out="):
            del kept[i]
            break
    return shlex.join([*kept, "--out", str(folder), "--resume"])
