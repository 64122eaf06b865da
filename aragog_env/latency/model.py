"""Which latency table a replica gets: a shipped kernel table, a roofline, a line, or the user's own file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from ..errors import SpecError, did_you_mean
from ..specs.hardware import GpuSpec, ModelSpec
from .memory import check_sequence_fits, check_tensor_parallel, kv_blocks
from .roofline import linear_table, roofline_table
from .table import LatencyTable

__all__ = [
    "Calibration",
    "available_tables",
    "check_sequence_fits",
    "kv_blocks",
    "latency_for",
    "shipped_calibrations",
    "table_name",
]

TABLES: Final = Path(__file__).parent / "tables"
CALIBRATIONS: Final = Path(__file__).parent / "calibration.yaml"
_LINEAR: Final = "linear:"
_LINEAR_COEFFICIENTS: Final = (
    "overhead_ms",
    "per_token_ms",
    "per_decode_ms",
    "per_kv_token_ms",
    "per_context_ms",
    "per_sampled_ms",
    "per_prompt_ms",
)
_TABLE_NAME: Final = re.compile(r"(?P<model>.+)\.(?P<gpu>[^.]+)\.tp(?P<tp>\d+)\.npz")


@dataclass(frozen=True)
class Calibration:
    """An affine correction of a kernel table, fitted to measured servers: ``scale * t + offset_ms``."""

    model: str
    gpu: str
    scale: float
    offset_ms: float
    tp: tuple[int, ...]
    """Tensor parallelisms among the measurements; it is applied to every one of this model and GPU."""
    rows: int
    """Measurements behind it."""
    source: str


def latency_for(
    model: ModelSpec,
    gpu: GpuSpec,
    tp: int,
    kind: str = "auto",
    scale: float = 1.0,
    offset_ms: float = 0.0,
    *,
    calibrated: bool = True,
    where: str | None = None,
) -> LatencyTable:
    """Return the latency table of a replica; its `kind` and `source` say what the numbers are worth.

    Args:
        model: the model served.
        gpu: the GPU type.
        tp: GPUs per replica.
        kind: ``auto`` (kernel table if one is shipped, else roofline), ``table``, ``roofline``, the path of
            an npz file that `LatencyTable.save` wrote, or ``linear:overhead_ms=5,per_token_ms=0.02,...``
            (see `linear_table`).
        scale: the user's own affine calibration: every iteration takes ``scale * t + offset_ms``.
        offset_ms: see `scale`. A user's calibration replaces the shipped one.
        calibrated: whether a kernel table gets the calibration shipped for this model and GPU, where there
            is one.
        where: location for error messages.

    Raises:
        SpecError: for an unknown kind, a missing table or file, or a model that `tp` cannot split.
    """
    check_tensor_parallel(model, tp, where=where)
    own = (scale, offset_ms) != (1.0, 0.0)
    table = _base_table(model, gpu, tp, kind, where)
    if own:
        return table.scaled(scale, offset_ms, note=f"times {scale:g} plus {offset_ms:g} ms (user's calibration)")
    fitted = shipped_calibrations().get((model.name, gpu.name)) if calibrated else None
    if fitted is None or table.kind != "kernel-table" or kind not in ("auto", "table"):
        return table
    note = f"times {fitted.scale:g} plus {fitted.offset_ms:g} ms (calibrated on {fitted.rows} measurements)"
    return table.scaled(fitted.scale, fitted.offset_ms, note=note)


def _base_table(model: ModelSpec, gpu: GpuSpec, tp: int, kind: str, where: str | None) -> LatencyTable:
    path = TABLES / table_name(model.name, gpu.name, tp)
    if kind in ("auto", "table") and path.is_file():
        return _load_shipped(path)
    if kind in ("auto", "roofline"):
        return roofline_table(model, gpu, tp)
    if kind == "table":
        raise SpecError(_no_table(model, gpu, tp), where=where)
    if kind.startswith(_LINEAR):
        return _parse_linear(kind, where)
    if kind.endswith(".npz"):
        return LatencyTable.load(kind)
    known = ("auto", "table", "roofline", "linear:overhead_ms=...", "a path that ends in .npz")
    raise SpecError(f"unknown latency '{kind}'.{did_you_mean(kind, known)}", where=where)


def table_name(model: str, gpu: str, tp: int) -> str:
    """Return the file name of the shipped table of (model, GPU, tp)."""
    return f"{model}.{gpu}.tp{tp}.npz"


@lru_cache(maxsize=1)
def available_tables() -> tuple[tuple[str, str, int], ...]:
    """Return (model, GPU, tp) of every shipped kernel table, sorted."""
    matches = (_TABLE_NAME.fullmatch(path.name) for path in TABLES.glob("*.npz"))
    return tuple(sorted((m["model"], m["gpu"], int(m["tp"])) for m in matches if m))


@lru_cache(maxsize=1)
def shipped_calibrations() -> dict[tuple[str, str], Calibration]:
    """Return the shipped calibrations by (model, GPU); `scripts/check_latency.py` fits them."""
    entries: list[dict[str, Any]] = yaml.safe_load(CALIBRATIONS.read_text(encoding="utf-8")) or []
    loaded = (Calibration(**{**entry, "tp": tuple(entry["tp"])}) for entry in entries)
    return {(entry.model, entry.gpu): entry for entry in loaded}


@lru_cache(maxsize=64)
def _load_shipped(path: Path) -> LatencyTable:
    return LatencyTable.load(path)


def _no_table(model: ModelSpec, gpu: GpuSpec, tp: int) -> str:
    """Return the sentence that says which tables there are instead."""
    shipped = available_tables()
    of_model = [f"{g} tp {n}" for m, g, n in shipped if m == model.name]
    of_gpu = sorted({m for m, g, _ in shipped if g == gpu.name})
    if of_model:
        known = f"for this model there are {', '.join(of_model)}"
    elif of_gpu:
        known = f"on this GPU there are tables of {', '.join(of_gpu)}"
    else:
        known = f"there are tables of {', '.join(sorted({m for m, _, _ in shipped}))}"
    wanted = f"'{model.name}' on {gpu.name} with tp {tp}"
    return f"no kernel table is shipped for {wanted}; {known}; or use 'roofline'"


def _parse_linear(text: str, where: str | None) -> LatencyTable:
    """Return the table of ``linear:name=value,...``."""
    coefficients: dict[str, float] = {}
    for part in text[len(_LINEAR) :].split(","):
        name, _, value = part.strip().partition("=")
        if name not in _LINEAR_COEFFICIENTS:
            hint = did_you_mean(name, _LINEAR_COEFFICIENTS)
            raise SpecError(f"unknown coefficient '{name}' in latency '{text}'.{hint}", where=where)
        if name in coefficients or (number := _number(value)) is None:
            raise SpecError(
                f"latency coefficient '{part.strip()}' must look like {name}=0.5 and be given once",
                where=where,
            )
        coefficients[name] = number
    overhead_ms = coefficients.pop("overhead_ms", 0.0)
    return linear_table(overhead_ms=overhead_ms, source=text, **coefficients)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
