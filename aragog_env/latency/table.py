"""The latency table of one (model, GPU, tensor parallelism): how long one engine iteration takes.

    iteration = overhead + G(tokens) + sum over prefill chunks of A_ctx(new, cached)
                + A_dec(decodes, mean context of the decodes) + L(sampled)

G is everything that depends on the token count only (projections, MLP, norms, all-reduce), A_ctx the
attention of one prefill chunk, A_dec the attention of the generating requests, L the logits. Between grid
points the functions are (bi)linear; below the grid they are clamped (a chunk of fewer tokens than the
smallest costs its share of that point), above it they go on with the last slope, which is never taken as
negative.

`LatencyTable.iteration_ms` is that sentence in floating point, to be read; `LatencyTable.compile` turns the
table into the integer picoseconds that every engine adds up (see `compiled.py`). A test holds the two
together.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from .compiled import PS_PER_MS, CompiledLatency

FloatArray = NDArray[np.float64]

KINDS: Final = ("kernel-table", "roofline", "linear")
_ARRAYS: Final = (
    "tokens",
    "gemm_ms",
    "chunk_new",
    "chunk_cached",
    "chunk_ms",
    "decode_batch",
    "decode_context",
    "decode_ms",
    "logits_batch",
    "logits_ms",
)
_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Iteration times of one model on one GPU type at one tensor parallelism.

    Times are in ms, grids strictly increasing.

    Raises:
        SpecError: if a shape, a grid or a value is impossible; the sentence names the array.
    """

    tokens: FloatArray  # (T,) tokens scheduled in the iteration
    gemm_ms: FloatArray  # (T,) all that depends on the token count only
    chunk_new: FloatArray  # (N,) new tokens of a prefill chunk
    chunk_cached: FloatArray  # (C,) tokens computed before it
    chunk_ms: FloatArray  # (N, C) attention of one chunk
    decode_batch: FloatArray  # (D,) generating requests
    decode_context: FloatArray  # (X,) their mean context, the new token included
    decode_ms: FloatArray  # (D, X) attention of all of them
    logits_batch: FloatArray  # (S,) requests that sample a token
    logits_ms: FloatArray  # (S,) logits and sampling
    overhead_ms: float
    """Paid once per iteration. May be negative after a calibration; an iteration still takes time."""
    kind: str
    """``kernel-table`` (sums of measured kernels), ``roofline`` (arithmetic, uncalibrated) or ``linear``."""
    source: str
    """Where the numbers come from, versions included, and which calibration was applied."""

    def __post_init__(self) -> None:
        """Check shapes, grids and values."""
        for name in _ARRAYS:
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
            if not np.isfinite(array).all() or (array < 0).any():
                self._refuse(f"{name} must hold finite numbers that are not negative")
        if not np.isfinite(self.overhead_ms):
            self._refuse("overhead_ms must be a finite number")
        if self.kind not in KINDS:
            self._refuse(f"kind must be one of {', '.join(KINDS)}, not '{self.kind}'")
        self._check_grid("tokens", ("gemm_ms", 0), least=1)
        self._check_grid("chunk_new", ("chunk_ms", 0), least=2)
        self._check_grid("chunk_cached", ("chunk_ms", 1), least=2)
        self._check_grid("decode_batch", ("decode_ms", 0), least=1)
        self._check_grid("decode_context", ("decode_ms", 1), least=2)
        self._check_grid("logits_batch", ("logits_ms", 0), least=1)
        for name in ("chunk_new", "chunk_cached", "decode_context"):
            if (getattr(self, name) != np.round(getattr(self, name))).any():
                self._refuse(f"{name} must be whole numbers of tokens")
        if self.chunk_new[0] < 1 or self.decode_batch[0] < 1:
            self._refuse("chunk_new and decode_batch must start at 1 or more")
        if self.chunk_cached[0] != 0:
            self._refuse("chunk_cached must start at 0")

    def _refuse(self, message: str) -> None:
        raise SpecError(message, where=f"latency table ({self.source})")

    def _check_grid(self, grid_name: str, values: tuple[str, int], *, least: int) -> None:
        grid: FloatArray = getattr(self, grid_name)
        name, axis = values
        array: FloatArray = getattr(self, name)
        if grid.ndim != 1 or grid.size < least or (np.diff(grid) <= 0).any():
            self._refuse(f"{grid_name} must be a strictly increasing list of at least {least} numbers")
        if array.ndim <= axis or array.shape[axis] != grid.size:
            self._refuse(f"{name} has shape {array.shape}, which does not fit the {grid.size} points of {grid_name}")

    def scaled(self, scale: float, offset_ms: float = 0.0, *, note: str = "") -> LatencyTable:
        """Return this table with every iteration time t replaced by ``scale * t + offset_ms``.

        Args:
            scale: factor on every part, positive.
            offset_ms: added to every iteration, by way of the overhead.
            note: appended to `source`.

        Raises:
            SpecError: if `scale` is not positive or either number is not finite.
        """
        if not (np.isfinite(scale) and scale > 0 and np.isfinite(offset_ms)):
            raise SpecError(
                f"a calibration needs a positive finite scale and a finite offset, not {scale} and {offset_ms} ms"
            )
        times = {name: getattr(self, name) * scale for name in _ARRAYS if name.endswith("_ms")}
        return replace(
            self,
            **times,
            overhead_ms=self.overhead_ms * scale + offset_ms,
            source=f"{self.source}; {note}" if note else self.source,
        )

    def with_prompt_cost(self, prompt_ms: float, *, note: str = "") -> LatencyTable:
        """Return this table with `prompt_ms` more for every prefill chunk; one below the grid pays its share."""
        source = f"{self.source}; {note}" if note else self.source
        return replace(self, chunk_ms=self.chunk_ms + prompt_ms, source=source)

    def iteration_ms(self, chunks: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, sampled: int) -> float:
        """Return the duration of one iteration in milliseconds.

        Args:
            chunks: (new tokens, tokens computed before) of every prefill chunk.
            decodes: how many requests generate one token.
            kv_tokens: the sum of their contexts, the new tokens included.
            sampled: how many requests sample a token (decodes and finished prompts).
        """
        tokens = decodes + sum(new for new, _ in chunks)
        step = self.overhead_ms + float(_interpolate(self.tokens, self.gemm_ms, np.array([float(tokens)]))[0])
        total = max(step, 1.0 / PS_PER_MS)
        total += float(_interpolate(self.logits_batch, self.logits_ms, np.array([float(sampled)]))[0])
        chunk_ms = self._guarded_chunk_ms()
        for new, cached in chunks:
            total += _bilinear(self.chunk_new, self.chunk_cached, chunk_ms, float(new), float(cached))
        if decodes:
            row = self._decode_rows(np.array([float(decodes)]))[0]
            context = np.array([kv_tokens / decodes])
            total += float(_interpolate(self.decode_context, row, context)[0])
        return total

    def compile(self, max_num_seqs: int, max_num_batched_tokens: int) -> CompiledLatency:
        """Return the integer tables for a server that schedules at most this many sequences and tokens.

        Each look-up differs from `iteration_ms` by rounding only: half a picosecond per entry, and half a
        picosecond per KV token on the decode slope.
        """
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise SpecError(
                f"max_num_seqs and max_num_batched_tokens must be at least 1, not {max_num_seqs} and "
                f"{max_num_batched_tokens}"
            )
        tokens = np.arange(max_num_batched_tokens + 1, dtype=np.float64)
        seqs = np.arange(max_num_seqs + 1, dtype=np.float64)
        step = _picoseconds(self.overhead_ms + _interpolate(self.tokens, self.gemm_ms, tokens))
        base, slope = self._compile_decode(seqs)
        return CompiledLatency(
            step_ps=np.maximum(step, 1),
            sample_ps=_picoseconds(_interpolate(self.logits_batch, self.logits_ms, seqs)),
            decode_base_ps=base,
            decode_slope_ps=slope,
            decode_context=self.decode_context.astype(np.int64),
            chunk_new=self.chunk_new.astype(np.int64),
            chunk_cached=self.chunk_cached.astype(np.int64),
            chunk_table_ps=self._guarded_chunk_ms() * PS_PER_MS,
        )

    def save(self, path: Path | str) -> None:
        """Write an npz file whose bytes depend on nothing but the table: no time stamps, no compression."""
        members: dict[str, NDArray[np.generic]] = {name: getattr(self, name) for name in _ARRAYS}
        members["overhead_ms"] = np.array(self.overhead_ms, dtype=np.float64)
        members["kind"] = np.array(self.kind)
        members["source"] = np.array(self.source)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, array in members.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH), "w") as stream:
                    np.lib.format.write_array(stream, np.asarray(array), version=(1, 0), allow_pickle=False)

    @classmethod
    def load(cls, path: Path | str) -> LatencyTable:
        """Read a table that `save` wrote.

        Raises:
            SpecError: if there is no such file, or it is no latency table.
        """
        if not Path(path).is_file():
            raise SpecError("no such latency table; give the path of an npz file", where=str(path))
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in _ARRAYS}
                overhead_ms, kind, source = float(data["overhead_ms"]), str(data["kind"]), str(data["source"])
        except (KeyError, ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise SpecError(f"not a latency table: {error}", where=str(path)) from error
        return cls(**arrays, overhead_ms=overhead_ms, kind=kind, source=source)

    def _guarded_chunk_ms(self) -> FloatArray:
        """Return A_ctx, never decreasing along either axis, nor beyond its upper corner."""
        guarded: FloatArray = np.maximum.accumulate(np.maximum.accumulate(self.chunk_ms, axis=0), axis=1)
        corner = guarded[-1, -2] + guarded[-2, -1] - guarded[-2, -2]
        guarded[-1, -1] = max(guarded[-1, -1], corner)
        return guarded

    def _decode_rows(self, batches: FloatArray) -> FloatArray:
        """Return A_dec on the context grid for every batch size: (len(batches), X), rows never falling."""
        # More context cannot be faster; a dip in the measurements would give the compiled curve a negative
        # slope.
        grid = np.maximum.accumulate(self.decode_ms, axis=1)
        rows = np.stack([_interpolate(self.decode_batch, grid[:, j], batches) for j in range(grid.shape[1])], axis=1)
        return np.maximum.accumulate(rows, axis=1)

    def _compile_decode(self, batches: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return base and slope (ps, ps per KV token) of every (batch, segment); row 0 is zero.

        The bases chain from segment to segment, so that the integer curve is continuous to the picosecond
        and rounding can never make a longer context faster.
        """
        rows = self._decode_rows(batches)
        points = self.decode_context.astype(np.int64)
        base = np.zeros(rows.shape, dtype=np.int64)
        slope = np.zeros(rows.shape, dtype=np.int64)
        base[:, 0] = _picoseconds(rows[:, 0])
        for j in range(1, points.size):
            rise = (rows[:, j] - rows[:, j - 1]) / (self.decode_context[j] - self.decode_context[j - 1])
            slope[1:, j] = _picoseconds(rise[1:] / batches[1:])
            corner = batches.astype(np.int64) * points[j - 1]
            base[:, j] = base[:, j - 1] + (slope[:, j - 1] - slope[:, j]) * corner
        base[0] = 0
        return base, slope


def _picoseconds(milliseconds: FloatArray) -> NDArray[np.int64]:
    return np.rint(milliseconds * PS_PER_MS).astype(np.int64)


def _interpolate(grid: FloatArray, values: FloatArray, at: FloatArray) -> FloatArray:
    """Interpolate linearly; clamped below the grid, above it on with the last slope unless that falls."""
    result = np.interp(at, grid, values)
    if grid.size >= 2:
        slope = max(0.0, float((values[-1] - values[-2]) / (grid[-1] - grid[-2])))
        result = result + slope * np.maximum(at - grid[-1], 0.0)
    return result


def _bilinear(x_grid: FloatArray, y_grid: FloatArray, values: FloatArray, x: float, y: float) -> float:
    """Evaluate the chunk table; a chunk below the smallest one costs its share of that point."""
    share = min(1.0, x / float(x_grid[0]))
    x = max(x, float(x_grid[0]))
    i = int(np.clip(np.searchsorted(x_grid, x, side="right") - 1, 0, x_grid.size - 2))
    j = int(np.clip(np.searchsorted(y_grid, y, side="right") - 1, 0, y_grid.size - 2))
    u = (x - x_grid[i]) / (x_grid[i + 1] - x_grid[i])
    v = (y - y_grid[j]) / (y_grid[j + 1] - y_grid[j])
    low = values[i, j] + (values[i, j + 1] - values[i, j]) * v
    high = values[i + 1, j] + (values[i + 1, j + 1] - values[i + 1, j]) * v
    return float((low + (high - low) * u) * share)
