"""Measure throughput against load, and the saturation point, of every replica of a scenario's cluster.

On the simulated engines, or with --live on real servers: one after the other, a minute each unless --seconds says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import options as shared

if TYPE_CHECKING:
    from ..harness.profile import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("scenario", nargs="?", default="default", help="scenario name or path (default: default)")
    parser.add_argument(
        "--out", "-o", metavar="PATH", help="write the profile as JSON, for policies: aragog:profile=PATH"
    )
    parser.add_argument("--json", action="store_true", help="print the profile as JSON")
    parser.add_argument("--fresh", action="store_true", help="measure again instead of reading the cache")
    group = parser.add_argument_group("real servers")
    group.add_argument(
        "--live", action="store_true", help="measure servers that run; --cluster names them as in 'aragog evaluate'"
    )
    group.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="for each server, over all loads (default: 60)"
    )
    group.add_argument(
        "--recording",
        metavar="FILE.db",
        help="write every call, for 'aragog calibrate'; then also loads several servers at once, S seconds in all",
    )
    shared.add_scenario_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from dataclasses import asdict

    from ..harness.profile import SATURATION_SHARE, profile_scenario, show

    if options.live:
        profile = _live(options)
    elif options.recording:
        from ..errors import SpecError

        raise SpecError("only calls to real servers are recorded; add --live", where="--recording")
    else:
        profile = profile_scenario(shared.scenario_from(options.scenario, options), cached=not options.fresh)
    if options.out:
        profile.save(options.out)
    if options.json:
        saturation = {name: p.saturation() for p in profile.replicas for name in p.names}
        print(json.dumps({**asdict(profile), "saturation": saturation}, indent=2))
        return 0
    from .output import print_rows

    print_rows(f"Profile: {profile.scenario}", *show(profile))
    print(f"saturation: the smallest load at which throughput reaches {SATURATION_SHARE:.0%} of its maximum")
    if options.out:
        print(f"profile: {options.out}")
    return 0


def _live(options: argparse.Namespace) -> Profile:
    from dataclasses import replace

    from ..harness.profile_live import LiveProfiler
    from ..servers.find import find_servers

    options.backend = "live"  # the servers bring their cluster along
    scenario = shared.scenario_from(options.scenario, options)
    served = find_servers(options.cluster or scenario.cluster.name)
    profiler = LiveProfiler(
        replace(scenario, cluster=served.cluster),
        served.endpoints,
        seconds=options.seconds,
        recording=Path(options.recording) if options.recording else None,
        progress=lambda what: print(what, file=sys.stderr),
    )
    return profiler.run()
