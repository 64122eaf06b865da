"""A trained router on disk: one npz per workflow, with a manifest that says what it was trained on and how well it does."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.files import write_atomically
from aragog_env.outcomes import OutcomeTable

from .heads import HIDDEN_LAYERS, Floats, HeadStack
from .pruning import ScorePrior

SCHEMA: Final = 2


@dataclass(frozen=True, eq=False)
class FoldRouter:
    """What was trained without the questions of one fold."""

    heads: HeadStack
    threshold: float
    """Of all heads: they say minus the expected loss in points, see `policies.aragog.calibration`."""
    margin: float
    certain: float
    prior: ScorePrior
    """Of what heads say; `prior.shifted(threshold)` is that of scores above the threshold."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The router of one workflow: K folds, Q questions of the table it was trained on, C configurations."""

    manifest: dict[str, Any]
    """`workflow`, `models`, `nodes`, `llm_nodes`, `kind`, `source`, `embedder`, `settings`, and the held-out `report`."""
    fold_of: NDArray[np.int16]  # (Q,) which fold has not seen a question
    probe_configurations: Floats  # (C,) mean accuracy, and
    probe_queries: Floats  # (Q,) mean over configurations: what tells the table apart from others
    probe_vectors: Floats  # (D,) mean embedding
    folds: tuple[FoldRouter, ...]

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"router of '{self.manifest['workflow']}'"

    def matches(self, table: OutcomeTable, vectors: Floats) -> bool:
        """Return whether it was trained on this very table, embedded as `vectors` (Q, D).

        Names must be equal, numbers nearly so: another processor may round the last digit of a synthetic table differently.
        """
        if any(self.manifest[name] != value for name, value in identity(table).items()):
            return False
        pairs = [
            (self.probe_configurations, table.p_correct.mean(axis=0)),
            (self.probe_queries, table.p_correct.mean(axis=1)),
            (self.probe_vectors, vectors.mean(axis=0)),
        ]
        return all(a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-3) for a, b in pairs)

    def save(self, path: str | Path) -> None:
        """Write it as npz, whole or not at all; weights in float16. Equal checkpoints give equal bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "fold_of": self.fold_of,
            "probe_configurations": self.probe_configurations,
            "probe_queries": self.probe_queries,
            "probe_vectors": self.probe_vectors,
            "input_mean": np.stack([f.heads.mean for f in self.folds]),
            "input_scale": np.stack([f.heads.scale for f in self.folds]),
            "threshold": np.array([f.threshold for f in self.folds]),
            "margin": np.array([f.margin for f in self.folds]),
            "certain": np.array([f.certain for f in self.folds]),
            "prior_mean": np.stack([f.prior.mean for f in self.folds]),
            "prior_factors": np.stack([f.prior.factors for f in self.folds]),
            "prior_noise": np.stack([f.prior.noise for f in self.folds]),
        }
        for layer in range(HIDDEN_LAYERS + 1):
            arrays[f"weight_{layer}"] = np.stack([f.heads.weights[layer] for f in self.folds]).astype(np.float16)
            arrays[f"bias_{layer}"] = np.stack([f.heads.biases[layer] for f in self.folds]).astype(np.float16)
        text = json.dumps({"schema": SCHEMA, **self.manifest}, sort_keys=True, ensure_ascii=False, allow_nan=False)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, manifest=np.array(text), **arrays)  # type: ignore[arg-type]
        write_atomically(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint written by `save`.

        Raises:
            SpecError: the file is missing, damaged, or no checkpoint of this schema.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
            manifest = json.loads(str(content["manifest"]))
            if manifest.pop("schema") != SCHEMA:
                raise SpecError(f"this checkpoint has another schema than {SCHEMA}; train it again", where=str(path))
            return cls._from(manifest, content)
        except FileNotFoundError as error:
            raise SpecError("there is no such checkpoint", where=str(path)) from error
        except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise SpecError("this is not a complete checkpoint of a router", where=str(path)) from error

    @classmethod
    def _from(cls, manifest: dict[str, Any], content: dict[str, NDArray[Any]]) -> Checkpoint:
        layers = range(HIDDEN_LAYERS + 1)
        weights = [content[f"weight_{layer}"].astype(np.float32) for layer in layers]
        biases = [content[f"bias_{layer}"].astype(np.float32) for layer in layers]
        folds = tuple(
            FoldRouter(
                HeadStack(
                    content["input_mean"][k],
                    content["input_scale"][k],
                    tuple(w[k] for w in weights),
                    tuple(b[k] for b in biases),
                ),
                float(content["threshold"][k]),
                float(content["margin"][k]),
                float(content["certain"][k]),
                ScorePrior(content["prior_mean"][k], content["prior_factors"][k], content["prior_noise"][k]),
            )
            for k in range(len(content["threshold"]))
        )
        return cls(
            manifest,
            content["fold_of"],
            content["probe_configurations"],
            content["probe_queries"],
            content["probe_vectors"],
            folds,
        )


def identity(table: OutcomeTable) -> dict[str, Any]:
    """Return the names that a router's table must share, as JSON holds them."""
    return {
        "workflow": table.workflow,
        "kind": table.kind,
        "models": list(table.models),
        "nodes": list(table.nodes),
        "llm_nodes": list(table.llm_nodes),
    }
