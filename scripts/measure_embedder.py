"""What another text embedding tells about who answers a question right: `python -m scripts.measure_embedder minilm`.

The generator's features tell as much of a query as hashed n-grams tell of real questions (`scripts.fit_outcomes`). Here
the same predictor is run on the same public results with another embedding, and the shares `text_difficulty` and
`text_strength` are found at which synthetic features tell as much as that one. Writes them beside the reproduction, whose
ablation "another embedder" uses them, and a table into docs/router.md. Takes some minutes, most of them for embedding
17,000 questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aragog_env.errors import AragogError
from aragog_env.queries import QuerySet
from aragog_env.synthetic import load_parameters
from policies.aragog.embedders import make_embedder

from .outcome_fit import estimates
from .outcome_fit.data import DATA, NEEDED
from .outcome_fit.fit import LIKE, Public, Size, TextFit, fit_text, of_dataset, read
from .outcome_fit.text import Floats
from .pages import write_part
from .reproduction.embedders import SHARES
from .reproduction.tables import table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "router.md"
COMMAND = "python -m scripts.measure_embedder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure an embedder; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "embedder", help="as for `aragog train-router --embedder`: minilm, sentence-transformers:NAME, ..."
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the public results (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=SHARES, help="add the shares to this file (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="write the table into this page (default: %(default)s)")
    options = parser.parse_args(arguments)
    missing = [name for name in NEEDED if not (options.data / name).is_dir()]
    if missing:
        print(f"error: the public results are not in '{options.data}' (missing: {', '.join(missing)})", file=sys.stderr)
        return 2
    try:
        found = measure(options.embedder, read(options.data), Size())
    except AragogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    known[options.embedder] = found
    options.out.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    write_part(options.page, COMMAND, markdown(known))
    print(markdown(known))
    return 0


def measure(name: str, source: Public, size: Size) -> dict[str, Any]:
    """Return the generator's shares for an embedder: by workflow, and what they rest on.

    Raises:
        AragogError: no such embedder, or its package is not installed.
    """
    embedder, parameters = make_embedder(name), load_parameters()
    _, siblings = estimates.fit_siblings([p for a in source.answers.values() for p in estimates.sibling_pairs(a)])
    fits: dict[str, TextFit] = {}
    for dataset, answers in source.texts.items():
        texts = answers.texts
        tokens = np.array([len(text) for text in texts], np.int32)
        vectors = embedder.embed(QuerySet((), texts, np.zeros((len(texts), 0), np.float32), tokens))
        features = with_length(vectors.astype(np.float64), texts)
        fits[dataset] = fit_text(answers, features, of_dataset(parameters, dataset, siblings), size)
        print(f"{dataset}: {fits[dataset]}", file=sys.stderr)

    def shares(datasets: Sequence[str]) -> dict[str, float]:
        chosen = [fits[dataset] for dataset in datasets]
        return {
            "text_difficulty": round(float(np.mean([fit.text_difficulty for fit in chosen])), 3),
            "text_strength": round(float(np.mean([fit.text_strength for fit in chosen])), 3),
        }

    return {
        "all": shares(list(fits)),
        "workflows": {workflow: shares([text]) for workflow, (_, text) in LIKE.items()},
        "datasets": {dataset: asdict(fit) for dataset, fit in fits.items()},
    }


def with_length(vectors: Floats, texts: Sequence[str]) -> Floats:
    """Return an embedding with the log length beside it, as n-grams have it."""
    return np.column_stack([vectors, np.log([len(text) + 1 for text in texts])])


def markdown(known: dict[str, Any]) -> str:
    """Return what is known of all embedders as a table."""
    rows = [
        [
            f"{name}, {dataset}",
            str(fit["queries"]),
            str(fit["models"]),
            *(f"{value:.3f}" for value in (fit["real"]["right_auc"], fit["text_difficulty"])),
            *(f"{value:.3f}" for value in (fit["real"]["which_auc"], fit["text_strength"])),
        ]
        for name, found in sorted(known.items())
        for dataset, fit in found["datasets"].items()
    ]
    header = (
        "embedder, data set",
        "questions",
        "models",
        "right: AUC",
        "share of difficulty",
        "which: AUC",
        "of strength",
    )
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
