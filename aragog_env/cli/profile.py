"""Measure throughput against load, and the saturation point, of every replica of a scenario's cluster."""

from __future__ import annotations

import argparse
import json

from . import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("scenario", nargs="?", default="default", help="scenario name or path (default: default)")
    parser.add_argument(
        "--out", "-o", metavar="PATH", help="write the profile as JSON, for policies: aragog:profile=PATH"
    )
    parser.add_argument("--json", action="store_true", help="print the profile as JSON")
    parser.add_argument("--fresh", action="store_true", help="measure again instead of reading the cache")
    shared.add_scenario_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from dataclasses import asdict

    from ..harness.profile import SATURATION_SHARE, profile_scenario, show

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
