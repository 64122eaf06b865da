"""Learning curves of all training runs in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from aragog_env.files import write_atomically

_SIZE_IN: Final = (9.0, 3.4)


def learning_curves(runs: Path, out: Path) -> list[Path]:
    """Draw, for every pair, JCT and reward of the greedy policy in the evaluations on the way; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    import io

    from matplotlib import pyplot

    written = []
    for folder in sorted(runs.glob("ppo-*")):
        before, curve = (_read(runs / f"{kind}-{folder.name.partition('-')[2]}") for kind in ("imitation", "ppo"))
        if not curve:
            continue
        figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=_SIZE_IN, layout="constrained")
        seen = [row for row in curve if "eval/jct_mean_s" in row]
        left.plot([row["steps"] for row in seen], [row["eval/jct_mean_s"] for row in seen], marker=".", label="PPO")
        cloned = [row["eval/jct_mean_s"] for row in before if "eval/jct_mean_s" in row]
        if cloned:
            left.axhline(cloned[-1], color="grey", linestyle="--", label="imitation")
        left.legend(frameon=False)
        _label(left, "JCT mean of evaluations, s")
        learned = [row for row in curve if "kl" in row]
        middle.plot([row["steps"] for row in learned], [row["explained_variance"] for row in learned])
        _label(middle, "explained variance of returns")
        right.plot([row["steps"] for row in learned], [row["entropy"] for row in learned])
        _label(right, "entropy of the policy, nats")
        figure.suptitle(folder.name)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        pyplot.close(figure)
        path = out / f"{folder.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        written.append(path)
    return written


def _label(axes: Any, text: str) -> None:
    axes.set_xlabel("decisions, thousands")
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:g}")
    axes.set_ylabel(text)


def _read(folder: Path) -> list[dict[str, Any]]:
    path = folder / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
