"""The findings as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aragog_env.files import write_atomically
from aragog_env.harness.plots import draw, to_png

from . import paper
from .findings import BASELINES, Data
from .tables import LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = {
    "aragog": "#d1662b",
    "per_input": "#3b6fb6",
    "per_workflow": "#6b6f76",
    "per_input_plus": "#3aa3b8",
    "per_input_plus_plus": "#3a9464",
}
_PAPER: Final = "#222222"


def save_all(data: Data, folder: Path) -> list[Path]:
    """Draw every figure there is data for; return their paths."""
    pictures: dict[str, Figure] = {"throughput_latency": curves(data), "gains": gains(data), "latency_cuts": cuts(data)}
    if data["binding"]:
        pictures["binding"] = binding(data)
    if data["ablations"]:
        pictures["ablations"] = ablations(data)
    paths = []
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_png(picture, dpi=130))
        paths.append(path)
    return paths


def _values(estimates: list[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([(e.value, e.low, e.high) for e in estimates]).T


def curves(data: Data) -> Figure:
    """Throughput against mean latency, one panel per pair."""
    workflows = list(dict.fromkeys(p["workflow"] for p in data["pairs"]))
    families = list(dict.fromkeys(p["family"] for p in data["pairs"]))

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes = figure.subplots(len(families), len(workflows), squeeze=False)
        for pair in data["pairs"]:
            ax = axes[families.index(pair["family"]), workflows.index(pair["workflow"])]
            for name in ("per_workflow", "per_input", "aragog"):
                curve = pair["curves"][name]
                x, low, high = _values(curve["throughput_rps"])
                y, y_low, y_high = _values(curve["jct_mean_s"])
                ax.plot(x, y, "o-", color=COLOURS[name], markersize=3, label=LABELS[name])
                ax.hlines(y, low, high, color=COLOURS[name], linewidth=0.8)
                ax.vlines(x, y_low, y_high, color=COLOURS[name], linewidth=0.8)
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"{paper.WORKFLOWS[pair['workflow']]}, {pair['family']}")
            ax.set_xlim(left=0)
        for ax in axes[-1]:
            ax.set_xlabel("throughput, req/s")
        for ax in axes[:, 0]:
            ax.set_ylabel("mean latency, s")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return draw(paint, 2.8 * len(workflows) + 0.4, 2.5 * len(families) + 0.4)


def gains(data: Data) -> Figure:
    """Gain in throughput ceiling per pair, the paper's range as a band."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        names = [f"{paper.WORKFLOWS[p['workflow']]}, {p['family']}" for p in data["pairs"]]
        y = np.arange(len(names))[::-1]
        for ax, baseline in zip(axes, BASELINES, strict=True):
            value, low, high = _values([p["gain"][baseline] for p in data["pairs"]]) * 100
            ax.barh(y, value, color=COLOURS[baseline], height=0.62, label="ours, 95% interval")
            ax.hlines(y, low, high, color=_PAPER, linewidth=1)
            band = 100 * np.array(paper.GAIN_RANGE[baseline])
            ax.axvspan(*band, color=COLOURS["aragog"], alpha=0.15, linewidth=0, label="the paper's range (Qwen, Llama)")
            told = [
                (at, 100 * p["paper"]["gain"][baseline])
                for at, p in zip(y, data["pairs"], strict=True)
                if p["paper"]["gain"]
            ]
            if told:
                ats, points = zip(*told, strict=True)
                ax.plot(points, ats, "D", color=COLOURS["aragog"], markersize=5, label="the paper, this pair")
            ax.set_title(f"Aragog's throughput ceiling against {LABELS[baseline]}")
            ax.set_xlabel("gain, %")
            ax.set_yticks(y, names)
            ax.grid(axis="y", visible=False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return draw(paint, 10, 0.32 * len(data["pairs"]) + 1.6)


def cuts(data: Data) -> Figure:
    """Latency cut at the highest rate, over the pairs, beside the paper's ranges."""
    names = list(paper.CUT_RANGE)

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        chosen = [p for p in data["pairs"] if p["family"] != "mixed"]
        for ax, baseline in zip(axes, BASELINES, strict=True):
            for x, name in enumerate(names):
                low, high = 100 * np.array(paper.CUT_RANGE[name][baseline])
                told = ax.bar(x, high - low, 0.7, bottom=low, color=COLOURS["aragog"], alpha=0.25)
                values = [100 * p["cut"][name][baseline].value for p in chosen]
                (ours,) = ax.plot(np.linspace(x - 0.2, x + 0.2, len(values)), values, "o", color=COLOURS[baseline])
            ax.set_xticks(range(len(names)), [LABELS[name] for name in names])
            ax.set_title(f"against {LABELS[baseline]}")
            ax.axhline(0, color=_PAPER, linewidth=0.8)
            ax.grid(axis="x", visible=False)
        axes[0].set_ylabel("latency cut at the highest rate, %")
        figure.legend(
            [told, ours], ["the paper's range", "our pairs (Qwen, Llama)"], loc="outside lower center", ncols=2
        )

    return draw(paint, 8.5, 3.4)


def binding(data: Data) -> Figure:
    """Fig. 4: ceilings of the four binding strategies as shares of the best."""
    strategies = list(paper.BINDING)

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        width = 0.8 / len(strategies)
        for k, strategy in enumerate(strategies):
            x = np.arange(len(data["binding"])) + (k - (len(strategies) - 1) / 2) * width
            ours = [100 * entry["share"][strategy] for entry in data["binding"]]
            ax.bar(x, ours, width * 0.92, color=COLOURS[strategy], label=LABELS[strategy])
            for at, entry in zip(x, data["binding"], strict=True):
                told = entry["paper"][strategy]
                if told is not None:
                    ax.plot(at, 100 * told, "D", color=_PAPER, markersize=5)
        ax.plot([], [], "D", color=_PAPER, markersize=5, label="the paper")
        ax.set_xticks(range(len(data["binding"])), [paper.WORKFLOWS[e["workflow"]] for e in data["binding"]])
        ax.set_ylabel("throughput ceiling, % of the best")
        ax.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=5)

    return draw(paint, max(5.0, 2.1 * len(data["binding"])), 3.6)


def ablations(data: Data) -> Figure:
    """Gain of every variant against both baselines, with the paper's value where it reports one."""
    variants = list(data["ablations"][0]["variants"])

    def paint(figure: Figure) -> None:
        axes = figure.subplots(len(BASELINES), len(data["ablations"]), squeeze=False, sharey=True)
        y = np.arange(len(variants))[::-1]
        for column, entry in enumerate(data["ablations"]):
            for row, baseline in enumerate(BASELINES):
                ax = axes[row, column]
                found = [entry["variants"][name] for name in variants]
                value, low, high = _values([v["gain"][baseline] for v in found]) * 100
                ax.barh(y, value, color=COLOURS[baseline], height=0.62)
                ax.hlines(y, low, high, color=_PAPER, linewidth=1)
                told = [(at, v["paper"][baseline]) for at, v in zip(y, found, strict=True) if v["paper"]]
                if told:
                    ats, points = zip(*told, strict=True)
                    ax.plot(100 * np.array(points), ats, "D", color=COLOURS["aragog"], markersize=5, label="the paper")
                ax.axvline(value[0], color=COLOURS[baseline], linewidth=0.8, linestyle=":")
                ax.set_title(f"{paper.WORKFLOWS[entry['workflow']]}: gain against {LABELS[baseline]}")
                ax.set_xlabel("gain in throughput ceiling, %")
                ax.set_yticks(y, [LABELS.get(name, name) for name in variants])
                ax.grid(axis="y", visible=False)
                ax.legend(loc="lower right")

    return draw(paint, 5.4 * len(data["ablations"]) + 1.5, 2 * (0.24 * len(variants) + 0.8))
