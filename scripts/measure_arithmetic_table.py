"""Measure the outcome table of the arithmetic workflow on running servers.

    aragog cluster up ...                      # or any servers of the three models with the OpenAI completions API
    python -m scripts.measure_arithmetic_table --server arithmetic-s=http://127.0.0.1:8101 \
        --server arithmetic-m=http://127.0.0.1:8102 --server arithmetic-l=http://127.0.0.1:8103

Every configuration (a model for each call) is run on `--queries` test expressions, greedily; each distinct call is made
once and remembered in `--cache`, so a measurement that was stopped goes on where it was. The table goes to the workflow's
`outcomes` folder, where runs find it by themselves. An API key is taken from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aragog_env.errors import AragogError, SpecError
from aragog_env.grading.runtime import load_runtime
from aragog_env.specs.catalogue import model

from .arithmetic.measuring import Measured, measure, outcome_table, summary
from .arithmetic.servers import Cache, Servers

WORKFLOW: Final = "arithmetic"
FOLDER: Final = Path(__file__).resolve().parents[1] / "workflows" / WORKFLOW


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.measure_arithmetic_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--server", action="append", required=True, metavar="NAME=URL", help="a model and where it is served; once each"
    )
    parser.add_argument("--queries", type=int, default=400, help="test expressions (default: 400)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight at one server (default: 16)")
    parser.add_argument("--cache", type=Path, default=Path("runs/arithmetic/calls.jsonl"), help="calls made so far")
    parser.add_argument("--out", type=Path, default=FOLDER / "outcomes" / "measured.npz", help="the table")
    parser.add_argument("--data", type=Path, help="other expressions (.jsonl with id, query, gold)")
    options = parser.parse_args(arguments)
    try:
        urls = _servers(options.server)
        _run(urls, options)
    except AragogError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BaseExceptionGroup as group:
        known, rest = group.split(AragogError)
        if known is None or rest is not None:
            raise
        print(_first(known), file=sys.stderr)
        return 2
    return 0


def _run(urls: dict[str, str], options: argparse.Namespace) -> None:
    runtime = load_runtime(WORKFLOW)
    records = runtime.records(options.data, count=options.queries)
    if len(records) < options.queries:
        raise SpecError(f"there are {len(records)} expressions, not {options.queries}", where="--queries")
    cache = Cache(options.cache)
    servers = Servers(urls, cache, concurrency=options.concurrency, api_key=os.environ.get("OPENAI_API_KEY"))
    begun = time.monotonic()
    try:
        measured: Measured = measure(
            runtime, records, len(urls), servers.complete, log=lambda line: print(line, flush=True)
        )
    finally:
        cache.close()
    seconds = time.monotonic() - begun
    result = summary(tuple(urls), measured.correct)
    notes: dict[str, Any] = {"weights_sha256": _weights(tuple(urls)), "summary": result}
    source = (
        f"measured: every configuration of {', '.join(urls)} on {len(records)} test expressions, greedy decoding by servers "
        "with the OpenAI completions API (scripts/measure_arithmetic_table.py)"
    )
    table = outcome_table(runtime, records, tuple(urls), measured, source=source, notes=notes)
    table.save(options.out)
    print(json.dumps(result, indent=1))
    for name, (share, low, high) in table.notes["one_model_95"].items():
        print(f"{name} alone: {share:.1%} right (95%: {low:.1%} to {high:.1%})")
    print(
        f"wrote {options.out}: {table.queries} queries, {table.configurations} configurations, {measured.calls} distinct "
        f"calls, {servers.made} of them made now in {seconds:.0f} s"
    )


def _first(error: BaseException) -> BaseException:
    """Return one of the errors of a group: the first says enough."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _servers(given: Sequence[str]) -> dict[str, str]:
    """Return URL by model, smallest model first.

    Raises:
        SpecError: not NAME=URL, a model that is not in the catalogue, or one named twice.
    """
    urls: dict[str, str] = {}
    for text in given:
        name, equals, url = text.partition("=")
        if not equals or not url.startswith(("http://", "https://")):
            raise SpecError(f"'{text}' must look like arithmetic-s=http://127.0.0.1:8101", where="--server")
        if name in urls:
            raise SpecError(f"'{name}' is named twice; give each model once", where="--server")
        urls[name] = url
    return dict(sorted(urls.items(), key=lambda item: model(item[0], where="--server").size_b))


def _weights(names: Sequence[str]) -> dict[str, str]:
    """Return a hash of the weights in the repository that the servers are expected to serve."""
    files = {name: FOLDER / "models" / name / "model.safetensors" for name in names}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.exists()}


if __name__ == "__main__":
    sys.exit(main())
