"""Which file holds a workflow's outcome table: its label is read here, its content in `aragog_env.outcomes`."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from ..errors import SpecError
from .catalogue import PRESETS

FOLDER: Final = "outcomes"
"""Folder beside `workflow.yaml` whose tables are used without being named."""
SYNTHETIC: Final = "synthetic"
"""What a mix entry writes to get the generator even where a table fits."""


def table_label(path: Path, where: str | None = None) -> dict[str, Any]:
    """Return the `meta` entry of an outcome table file, without reading its arrays.

    Raises:
        SpecError: there is no such file, or it is no outcome table.
    """
    where = where or str(path)
    try:
        with path.open("rb") as raw:
            if not zipfile.is_zipfile(raw):
                raise zipfile.BadZipFile("no zip archive, or cut short")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                label = json.loads(str(file["meta"]))
    except FileNotFoundError as error:
        raise SpecError(f"there is no outcome table '{path}'", where=where) from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise SpecError(f"'{path}' is no outcome table ({error})", where=where) from error
    if not isinstance(label, dict) or not {"workflow", "kind", "models"} <= set(label):
        raise SpecError(f"'{path}' is no outcome table: its 'meta' entry lacks keys", where=where)
    return label


def own_table(folder: Path, workflow: str, models: Collection[str]) -> Path | None:
    """Return the table in a workflow's folder that was made with exactly these models; None without one.

    Of several, a measured one goes before a synthetic one, then the first by name.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("*.npz")):
        label = table_label(path)
        if label["workflow"] == workflow and set(label["models"]) == set(models):
            found.append((label["kind"] != "measured", path.name, path))
    return min(found)[2] if found else None


def generator_digest() -> str:
    """Return a hash of the parameters of the synthetic generator: another fit is another scenario."""
    content = yaml.safe_load((PRESETS / "outcome_generator.yaml").read_text(encoding="utf-8"))
    text = json.dumps([content["parameters"], content["workflows"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
