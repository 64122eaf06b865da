"""Fit the synthetic outcome generator to public per-query results: `python -m scripts.fit_outcomes`.

Reads `../shared/data` (or --data), writes the parameters that `aragog_env.synthetic` uses and a report of targets against
what the generator gives. Takes about two minutes; equal data give equal files. The data are not part of the repository.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aragog_env.synthetic.parameters import PRESET

from .outcome_fit.data import DATA, NEEDED
from .outcome_fit.fit import Size, fit_all, read
from .outcome_fit.report import write_preset, write_report

REPORT = Path(__file__).resolve().parents[1] / "docs" / "outcome_fit.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fit; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the public results (default: %(default)s)")
    parser.add_argument("--preset", type=Path, default=PRESET, help="write the parameters here")
    parser.add_argument("--report", type=Path, default=REPORT, help="write the report here")
    parser.add_argument("--quick", action="store_true", help="fewer models and steps, for a look")
    options = parser.parse_args(arguments)
    missing = [name for name in NEEDED if not (options.data / name).is_dir()]
    if missing:
        print(
            f"The public results are not in '{options.data}' (missing: {', '.join(missing)}). The fitted parameters are "
            "committed, so nothing but this script needs them; --data names another folder.",
            file=sys.stderr,
        )
        return 2
    source = read(options.data)
    fit = fit_all(
        source, Size(models=8, pairs=10, replicates=1, steps=5, chain_queries=2048) if options.quick else Size()
    )
    write_preset(fit, options.preset)
    write_report(fit, source, options.data, options.report)
    print(f"wrote {options.preset} and {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
