"""A trained network on disk: one safetensors file, whose header says what it was trained for.

Reading it needs numpy alone, so that learned policies run where neither torch nor safetensors is installed.
Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, raw little-endian arrays).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.files import write_atomically

SCHEMA: Final = 2
"""Raised when the network's layers or its inputs change their meaning."""
FILE_NAME: Final = "model.safetensors"
BEST_NAME: Final = "best.safetensors"
Kind = Literal["ppo", "dqn", "imitation"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_KEY: Final = "aragog"


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A network's weights, and what a policy must know to use them."""

    kind: Kind
    weights: dict[str, NDArray[np.float32]] = field(repr=False)
    """By the names of `Network.state_dict`."""
    width: int
    rules: dict[str, Any]
    """Which actions were open in training: the fields of `features.Rules`."""
    ready_slots: int
    """K in training; a policy shows the network as many calls."""
    scenario: str
    """Name of the scenario it was trained on."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Anything that JSON can hold: settings, steps, versions, results of its evaluation."""

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; equal contents give equal bytes."""
        header: dict[str, Any] = {}
        chunks, offset = [], 0
        for name, array in sorted(self.weights.items()):
            raw = np.ascontiguousarray(array, "<f4").tobytes()
            header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + len(raw)]}
            chunks.append(raw)
            offset += len(raw)
        about = {key: value for key, value in asdict(self).items() if key != "weights"}
        text = json.dumps({"schema": SCHEMA, **about}, sort_keys=True, allow_nan=False)
        head = json.dumps({"__metadata__": {_KEY: text}, **header}, sort_keys=True).encode()
        head += b" " * (-len(head) % 8)
        write_atomically(path, len(head).to_bytes(8, "little") + head + b"".join(chunks))

    @classmethod
    def load(cls, path: str | Path, kind: Kind | None = None) -> ModelFile:
        """Read a file that `save` wrote.

        Args:
            path: the file, or a training run's folder, whose `best.safetensors` is taken before its `model.safetensors`.
            kind: what it must be a model of; None: anything.

        Raises:
            SpecError: it is missing, damaged, of another kind or of another schema.
        """
        file = Path(path)
        if file.is_dir():
            file = next((file / name for name in (BEST_NAME, FILE_NAME) if (file / name).is_file()), file / FILE_NAME)
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise SpecError(
                "there is no such model; give the file or the folder of a training run", where=str(file)
            ) from error
        about, weights = _parse(raw, str(file))
        if about.pop("schema", None) != SCHEMA:
            raise SpecError(f"this model has another schema than {SCHEMA}; train it again", where=str(file))
        if kind is not None and about.get("kind") != kind:
            raise SpecError(f"this is a model of '{about.get('kind')}', not of '{kind}'", where=str(file))
        try:
            return cls(weights=weights, **about)
        except TypeError as error:
            raise SpecError("this is no model of a learned scheduler", where=str(file)) from error


def _parse(raw: bytes, where: str) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return what the header tells, and the arrays."""
    try:
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end]) if 8 < end <= len(raw) else {}
        about = json.loads(header.pop("__metadata__")[_KEY])
        weights = {}
        for name, entry in header.items():
            begin, stop = entry["data_offsets"]
            if entry["dtype"] != "F32" or end + stop > len(raw):
                raise ValueError(name)
            weights[name] = (
                np.frombuffer(raw[end + begin : end + stop], "<f4").reshape(entry["shape"]).astype(np.float32)
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError("this is not a complete model of a learned scheduler", where=where) from error
    return about, weights
