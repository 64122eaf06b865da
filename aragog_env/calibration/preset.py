"""A calibration as a cluster file: YAML that scenarios name, with what it rests on written above it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

from ..errors import SpecError
from ..files import write_atomically
from ..specs.load import load_cluster
from ..specs.strict import dump_yaml
from .fit import TERMS, Calibration


def cluster_text(calibration: Calibration) -> str:
    """Return the file's text."""
    made = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [f"Written by `aragog calibrate`, {made}.", *summary(calibration)]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + dump_yaml(calibration.cluster)


def write_cluster(calibration: Calibration, path: str | Path) -> Path:
    """Write the file and read it back.

    Raises:
        SpecError: the name does not end in .yaml or .yml, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        raise SpecError("a cluster file must end in .yaml or .yml, or it could not be named as one", where=str(path))
    try:
        write_atomically(path, cluster_text(calibration).encode())
    except OSError as error:
        raise SpecError(f"cannot write this file ({error.strerror})", where=str(path)) from error
    load_cluster(path)
    return path


def summary(calibration: Calibration) -> list[str]:
    """Return the fit in words: residuals, slowdowns, sources."""
    lines = [
        "",
        "server: iterations (ms); submit + close (ms); calls fitted; errors: latency (median, all), TPOT, TTFT (median)",
    ]
    for fit in calibration.servers:
        terms = ", ".join(f"{n.removesuffix('_ms')} {v:.4g}" for n, v in zip(TERMS, fit.terms, strict=True) if v)
        outliers = f" (+ {fit.outliers} left out)" if fit.outliers else ""
        tpot = f"{fit.tpot_error:.1%}" if math.isfinite(fit.tpot_error) else "-"
        amount = f"{fit.calls}{outliers} of {fit.iterations} iterations"
        errors = f"{fit.latency_error:.1%}, {fit.latency_bias:+.1%}, {tpot}, {fit.ttft_error:.1%}"
        lines.append(f"{fit.name}: {terms}; {fit.submit_ms:g} + {fit.close_ms:g}; {amount}; {errors}")
    lines.append(f"client: {calibration.decision_ms:g} ms per dispatch ({calibration.decisions} dispatches)")
    if calibration.sharing is not None:
        sharing = calibration.sharing
        outside = sharing.outside or (1.0,) * len(sharing.slowdown)
        levels = enumerate(zip(sharing.slowdown, outside, calibration.shares, strict=False))
        factors = ", ".join(
            f"{k} others x{inside:.3g} and x{around:.3g} ({share:.0%} of the time)"
            for k, (inside, around, share) in levels
        )
        means = f"mean x{sharing.typical:.3g} and x{sharing.typical_outside:.3g}"
        lines.append(f"servers slow each other down, in iterations and outside the engines: {factors}; {means}")
    else:
        lines.append("servers do not slow each other down noticeably, or the recordings do not show it")
    for source, busy in zip(calibration.sources, calibration.busy_servers, strict=True):
        lines.append(f"from {source}, {busy:.2f} servers busy on average")
    return [*lines, *(f"note: {note}" for note in calibration.notes), ""]
