"""Time and quality of the scheduler's search on rounds recorded from live queues (Fig. 10), by `scripts.beam_quality`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from aragog_env.files import write_atomically

from ..beam_quality import POLLS_S, compare, snapshots

_OURS: Final = {"greedy": "greedy", "beam, B = 4": "beam, B = 4", "brute force": "exhaustive"}
"""The paper's names of searches, and ours."""


def searches(count: int, out: Path) -> list[dict[str, Any]]:
    """Return time, utilisation and flexibility of every search, once per polling period; kept in `out`.

    Args:
        count: rounds per polling period; 0 skips this.
        out: results folder.
    """
    path = out / "search.json"
    if count and path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        if known["count"] == count:
            return list(known["periods"])
    periods = [_period(count, poll_s) for poll_s in (POLLS_S if count else ())]
    if count:
        write_atomically(path, json.dumps({"count": count, "periods": periods}, indent=1).encode() + b"\n")
    return periods


def _period(count: int, poll_s: float) -> dict[str, Any]:
    rounds = snapshots(count, poll_s)
    found = compare(rounds)
    return {
        "poll_s": poll_s,
        "rounds": len(rounds),
        "searches": {
            name: {
                "seconds": float(np.median(found[ours].seconds)),
                "utilisation": float(found[ours].utilization.mean()),
                "flexibility": float(found[ours].flexibility.mean()),
            }
            for name, ours in _OURS.items()
        },
    }
