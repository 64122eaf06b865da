"""Train the routers that are shipped: the default scenario's workflows, and the toy's.

Run again after the outcome generator or the training recipe changed: python -m scripts.train_routers
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aragog_env.specs.load import load_scenario
from policies.aragog.command import train_scenario
from policies.aragog.report import RouterReport, markdown
from policies.aragog.store import SHIPPED

SCENARIOS = ("default", "toy")


def main() -> None:
    """Train and save; print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the checkpoints")
    out: Path = parser.parse_args().out
    reports: list[RouterReport] = []
    for name in SCENARIOS:
        found, files = train_scenario(load_scenario(name), out=out)
        reports += found
        print(*(f"{file} {file.stat().st_size / 1024:.0f} KiB" for file in files), sep="\n")
    # One report per call would only hold the last scenario's workflows.
    for left_over in ("report.json", "report.md"):
        (out / left_over).unlink(missing_ok=True)
    print(markdown(reports))


if __name__ == "__main__":
    main()
