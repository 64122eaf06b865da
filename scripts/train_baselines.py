"""Train the learned schedulers that are shipped, and compare them with Aragog and all other policies.

    python -m scripts.train_baselines [--quick] [--out results/baselines]

For each of the five Qwen pairs: Aragog's throughput ceiling is measured; a price of accuracy is found at which the rule
`shortest_work` is right as often as Aragog; a network learns to imitate that rule; PPO goes on from there; all policies are
compared on traffic that no training saw, at three loads, on another cluster and with real Azure arrivals. Everything lands in
the results folder as it comes, and the same command goes on where it was interrupted.
Writes baselines.md, figures/*.png, models/*.safetensors; `--ship` copies the models into the repository.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from aragog_env.errors import AragogError
from aragog_env.files import write_atomically
from aragog_env.harness.jobs import Job
from aragog_env.harness.pool import usable_cores
from aragog_env.harness.results import Results, read
from baselines.learned import SHIPPED

from .learning import decisions, limits, plots, prices, tables
from .learning.plan import (
    FULL,
    OTHER_CLUSTER,
    QUICK,
    Ceilings,
    Size,
    cases,
    ceiling_job,
    ceiling_rps,
    table_jobs,
    unseen_jobs,
)
from .learning.train import train_pair
from .pages import write_part
from .running import run_missing

COMMAND = "python -m scripts.train_baselines --page docs/learned_results.md"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair, one load, hardly any training: minutes")
    parser.add_argument("--out", type=Path, help="results folder (default: results/baselines, or -quick)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with azure_llm_2023 (docs/datasets.md)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: one per core)")
    parser.add_argument("--shipped", action="store_true", help="train nothing, compare the models in the repository")
    parser.add_argument("--ship", action="store_true", help="copy the trained models into the repository")
    parser.add_argument("--plot", action="store_true", help="only draw the learning curves of what is on disk")
    parser.add_argument("--report-only", action="store_true", help="only write the report from what is on disk")
    parser.add_argument("--page", type=Path, help="also write the report into this page, e.g. docs/learned_results.md")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    out: Path = options.out or Path("results") / ("baselines-quick" if options.quick else "baselines")
    models = SHIPPED if options.shipped else out / "models"
    try:
        if not (options.plot or options.report_only):
            run(size, out, models, options.data, options.workers, train=not options.shipped)
        if not options.plot:
            ceilings = _ceilings(read(out / "ceilings"), size)
            size = _priced(size, out)
            text = tables.report(read(out / "table"), size, options.data, ceilings, out, models)
            write_atomically(out / "baselines.md", text.encode())
            if options.page:
                write_part(options.page, COMMAND, text.partition("\n")[2])
            print(text)
        print(*plots.learning_curves(out / "runs", out / "figures"), sep="\n")
        if options.ship:
            SHIPPED.mkdir(exist_ok=True)
            for file in sorted(models.glob("*.safetensors")):
                shutil.copyfile(file, SHIPPED / file.name)
    except AragogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {out}", file=sys.stderr)
        return 130
    return 0


def run(size: Size, out: Path, models: Path, data: Path, workers: int, *, train: bool) -> None:
    """Measure the ceilings, find the prices, train, measure the time of decisions, and compare."""
    begin = time.perf_counter()
    ceilings = _ceilings(execute(_ceiling_jobs(size, out / "ceilings"), size, out / "ceilings", workers), size)
    if not (out / "prices.json").exists():
        trials = execute(list(prices.jobs(size, ceilings, out / "prices")), size, out / "prices", workers)
        found = prices.choose(trials, size, ceilings, out / "prices")
        write_atomically(out / "prices.json", json.dumps(found, indent=1).encode() + b"\n")
    size = _priced(size, out)
    if train:
        train_all(size, ceilings, out / "runs", models, workers)
        print(f"ceilings, prices and training: {time.perf_counter() - begin:.0f} s")
    if not (out / "decisions.json").exists():
        measured = {str(case): decisions.measure(case, size, ceilings, models) for case in cases(size)}
        write_atomically(out / "decisions.json", json.dumps(measured, indent=1).encode() + b"\n")
    if not (out / "limits.json").exists():
        write_atomically(out / "limits.json", json.dumps(limits.measure(size, ceilings), indent=1).encode() + b"\n")
    times: dict[str, decisions.Times] = json.loads((out / "decisions.json").read_text())
    table = out / "table"
    jobs = [*table_jobs(size, ceilings, table, models), *unseen_jobs(size, ceilings, table, models, data)]
    execute([*jobs, *decisions.charged_jobs(size, ceilings, table, models, times)], size, table, workers)


def train_all(size: Size, ceilings: Ceilings, runs: Path, models: Path, workers: int) -> None:
    """Train a model per pair, with the first of the sources of viable sets, one per process."""
    wanted = [case for case in cases(size) if case.sets == size.sets[0]]
    if workers == 1:
        for case in wanted:
            train_pair(case, size, ceilings, runs, models)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(train_pair, case, size, ceilings, runs, models) for case in wanted]:
            future.result()


def execute(jobs: list[Job], size: Size, out: Path, workers: int) -> Results:
    """Run the episodes that are not on disk yet."""
    return run_missing(jobs, (job.scenario for job in jobs), {"size": size.name}, out, workers)


def _priced(size: Size, out: Path) -> Size:
    """Return the size with the prices that were found."""
    return replace(size, prices=json.loads((out / "prices.json").read_text()))


def _ceiling_jobs(size: Size, out: Path) -> list[Job]:
    return [ceiling_job(case, size, out, cluster) for case in cases(size) for cluster in ("", OTHER_CLUSTER)]


def _ceilings(results: Results, size: Size) -> Ceilings:
    """Return Aragog's ceilings."""
    return {
        (case, cluster): ceiling_rps(results, ceiling_job(case, size, results.folder, cluster))
        for case in cases(size)
        for cluster in ("", OTHER_CLUSTER)
    }


if __name__ == "__main__":
    sys.exit(main())
