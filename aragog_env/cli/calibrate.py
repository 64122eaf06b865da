"""Fit a cluster to recorded live runs: iteration times, overheads, and how servers on one machine slow each other down.

aragog calibrate recordings/*.db --out my-cluster.yaml
aragog evaluate --backend replay --recording other.db --cluster my-cluster.yaml
"""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help="recordings of live runs on one cluster")
    parser.add_argument("--out", "-o", required=True, metavar="CLUSTER.yaml", help="the cluster file to write")
    parser.add_argument(
        "--cluster", metavar="NAME|PATH", help="cluster that gets the numbers (default: the recorded one)"
    )
    parser.add_argument("--json", action="store_true", help="print the fit as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from dataclasses import asdict

    from ..calibration import calibrate, write_cluster
    from ..calibration.preset import summary
    from ..specs.load import load_cluster

    cluster = load_cluster(options.cluster) if options.cluster else None
    found = calibrate(options.recordings, cluster)
    path = write_cluster(found, options.out)
    if options.json:
        data = {k: v for k, v in asdict(found).items() if k != "cluster"}
        for fit, plain in zip(found.servers, data["servers"], strict=True):
            plain["latency"] = fit.latency
        print(json.dumps({"cluster": str(path), **data}, indent=2))
        return 0
    print("\n".join(summary(found)).strip())
    print(f"cluster: {path}")
    return 0
