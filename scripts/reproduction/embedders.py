"""Outcome tables of which an embedding tells as much as a given text embedder tells of real questions.

Synthetic queries have features instead of texts. `python -m scripts.measure_embedder` finds how much an embedder tells of real
questions; here the same outcome table is drawn with features that tell as much.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.errors import SpecError
from aragog_env.specs.load import load_workflow
from aragog_env.specs.outcome_files import generator_digest
from aragog_env.specs.scenario import Scenario
from aragog_env.synthetic import draw_table, load_parameters
from policies.aragog.store import cache_folder

SHARES: Final = Path(__file__).with_name("embedders.json")


@lru_cache(maxsize=32)
def told_by(embedder: str, scenario: Scenario) -> Path:
    """Return the file of a one-workflow scenario's outcome table with features as telling as `embedder`.

    Raises:
        SpecError: nobody measured this embedder.
    """
    known = json.loads(SHARES.read_text()) if SHARES.exists() else {}
    if embedder not in known:
        raise SpecError(f"it is not known what '{embedder}' tells; run: python -m scripts.measure_embedder {embedder}")
    (entry,) = scenario.workload.mix
    workflow = load_workflow(entry.workflow)
    shares = known[embedder]["workflows"].get(workflow.name, known[embedder]["all"])
    compiled = compile_scenario(scenario)
    names = [model.name for model in compiled.models]
    key = hashlib.sha256(json.dumps([generator_digest(), workflow.name, names, shares]).encode()).hexdigest()[:16]
    path = cache_folder() / f"outcomes-{workflow.name}-{key}.npz"
    if not path.exists():
        parameters = replace(load_parameters(workflow.name), **shares)
        draw_table(workflow, compiled.graphs[0], compiled.models, parameters=parameters).save(path)
    return path
