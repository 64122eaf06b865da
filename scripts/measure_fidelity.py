"""How far replays are from live runs on the arithmetic cluster: `python -m scripts.measure_fidelity` (docs/replay.md).

Needs the servers: `aragog cluster up arithmetic-cpu`. Runs four simple policies to calibrate on, then four others on other
traffic, each at two rates; calibrates on the former and compares the latter with their replay. About twenty minutes on a
machine that does nothing else. On a virtual machine a busy host shows up as stolen processor time: a run during which more
than --most-stolen of it was taken is done again, up to --tries times, and the best try counts. Runs are on disk as they come:
the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Final

from aragog_env import cli
from aragog_env.errors import AragogError
from aragog_env.recording import Recording
from aragog_env.recording.run import ENDED, last_session

from .pages import write_part

CALIBRATION: Final = ("least_loaded", "random", "fixed:largest", "fixed:smallest")
HELD_OUT: Final = ("aragog", "per_input", "fixed:largest", "least_loaded")
COMMAND: Final = "python -m scripts.measure_fidelity --page docs/replay.md"
SEEDS: Final = {"calibration": 100, "held-out": 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit status of `aragog fidelity`: 0 when all targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", default="arithmetic-cpu", help="that runs (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, action="append", help="requests per second, repeatable (default: 0.5 and 1.5)"
    )
    parser.add_argument("--requests", type=int, default=40, help="per run (default: %(default)s)")
    parser.add_argument("--most-stolen", type=float, default=0.03, metavar="SHARE", help="default: %(default)s")
    parser.add_argument("--tries", type=int, default=3, help="per run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/fidelity"), help="folder (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="also write the report into this page, e.g. docs/replay.md")
    options = parser.parse_args(arguments)
    rates = options.rate or [0.5, 1.5]
    chosen: dict[str, list[str]] = {}
    try:
        for use, policies in (("calibration", CALIBRATION), ("held-out", HELD_OUT)):
            runs = product(policies, rates)
            chosen[use] = [
                str(quiet_run(policy, rate, SEEDS[use], options.out / use, options)) for policy, rate in runs
            ]
    except AragogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {options.out}", file=sys.stderr)
        return 130
    cluster = str(options.out / "calibrated.yaml")
    if status := cli.main(["calibrate", *chosen["calibration"], "--out", cluster]):
        return status
    words = ["fidelity", *chosen["held-out"], "--calibration", cluster, "--decide-again", "--out", str(options.out)]
    status = cli.main(words)
    if options.page and (report := options.out / "fidelity.md").exists():
        # Without its title, and one level below the section that it becomes a part of.
        text = report.read_text(encoding="utf-8").partition("\n")[2].replace("\n## ", "\n### ")
        write_part(options.page, COMMAND, text)
    return status


def quiet_run(policy: str, rate_rps: float, seed: int, folder: Path, options: argparse.Namespace) -> Path:
    """Return the recording of the run during which least was stolen, of up to `options.tries`.

    Raises:
        AragogError: a run failed.
    """
    tries: dict[Path, float] = {}
    for number in range(options.tries):
        out = folder / f"{policy.replace(':', '-')}-{rate_rps:g}rps" / f"try-{number + 1}"
        if ended(out) is None:
            words = ["evaluate", "--scenario", "arithmetic", "--backend", "live", "--cluster", options.cluster]
            words += ["--policy", policy, "--rate", f"{rate_rps:g}", "--requests", str(options.requests)]
            words += ["--seed", str(seed), "--out", str(out), "--no-report", "--quiet"]
            if cli.main([*words, *(["--resume"] if (out / "manifest.json").exists() else [])]):
                raise AragogError(f"the run of {policy} at {rate_rps:g} req/s failed; see {out}")
        found = ended(out)
        if found is None:
            raise AragogError(f"the run of {policy} at {rate_rps:g} req/s did not end; see {out}")
        path, stolen = found
        tries[path] = stolen
        print(
            f"{policy} at {rate_rps:g} req/s, try {number + 1}: {tries[path]:.1%} stolen", file=sys.stderr, flush=True
        )
        if tries[path] <= options.most_stolen:
            break
    return min(tries, key=lambda path: tries[path])


def ended(out: Path) -> tuple[Path, float] | None:
    """Return the recording of a results folder and the share of the processor that was stolen; None unless it is complete."""
    path = next((out / "recordings").glob("*.db"), None)
    if path is None:
        return None
    with Recording(path) as recording:
        session = last_session(recording)
    return (path, float(session.get("cpu_stolen") or 0.0)) if session["ending"] in ENDED else None


if __name__ == "__main__":
    sys.exit(main())
