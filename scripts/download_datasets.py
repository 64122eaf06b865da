"""Fetch question sets for live runs (needs network access): `python -m scripts.download_datasets humaneval squad`.

Files go to `datasets` of the repository, where they are found, unless --to names another folder (then set ARAGOG_DATASETS).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aragog_env.datasets import load_dataset
from aragog_env.datasets.hub import SOURCES, fetch
from aragog_env.errors import AragogError
from aragog_env.specs.load import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Fetch question sets.")
    parser.add_argument("names", nargs="*", default=list(SOURCES), help=f"default: {' '.join(SOURCES)}")
    parser.add_argument("--to", type=Path, default=ROOT / "datasets", help="folder (default: datasets)")
    options = parser.parse_args(arguments)
    failed = 0
    for name in options.names:
        try:
            path = fetch(name, options.to)
            records = load_dataset(name, path)
        except AragogError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
            continue
        print(f"{name}: {len(records)} questions in {path} ({SOURCES[name].licence})")
    return failed


if __name__ == "__main__":
    sys.exit(main())
