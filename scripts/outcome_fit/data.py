"""Reading the public per-query results in `../shared/data`; reference: the SOURCE.md beside each file."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DATA: Final = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Where the data lies beside a checkout."""
NEEDED: Final = (
    "zeroeval",
    "mmlu_pro",
    "livecodebench",
    "evalperf",
    "routellm",
    "aider",
    "stage_combo_tables",
    "_derived",
)

LADDERS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "Qwen2.5": (
        ("Qwen2.5-3B-Instruct", 3.09), ("Qwen2.5-7B-Instruct", 7.62),
        ("Qwen2.5-32B-Instruct", 32.8), ("Qwen2.5-72B-Instruct", 72.7),
    ),
    "Llama-3.1": (
        ("Meta-Llama-3.1-8B-Instruct", 8.03), ("Meta-Llama-3.1-70B-Instruct", 70.6), ("Llama-3.1-405B-Inst@sambanova", 405),
    ),
    "Gemma-2": (
        ("gemma-2-2b-it", 2.61), ("gemma-2-9b-it", 9.24), ("gemma-2-27b-it", 27.2), ("gemma-2-27b-it@together", 27.2),
    ),
    "Qwen2": (("Qwen2-7B-Instruct", 7.62), ("Qwen2-72B-Instruct", 72.7)),
    "Llama-3": (("Meta-Llama-3-8B-Instruct", 8.03), ("Meta-Llama-3-70B-Instruct", 70.6)),
    "Yi-1.5": (("Yi-1.5-9B-Chat", 8.83), ("Yi-1.5-34B-Chat", 34.4)),
    "Llama-2 base": (("Llama-2-7b-hf", 6.74), ("Llama-2-13b-hf", 13.0), ("Llama-2-70b-hf", 69.0)),
    "Llama-3 base": (("Meta-Llama-3-8B", 8.03), ("Meta-Llama-3-70B", 70.6)),
    "Llama-3.1 base": (("Meta-Llama-3_1-8B", 8.03), ("Meta-Llama-3_1-70B", 70.6)),
    "Llama-3.1 chat": (("Meta-Llama-3_1-8B-Instruct", 8.03), ("Meta-Llama-3_1-70B-Instruct", 70.6)),
    "Qwen1.5": (("Qwen1.5-7B-Chat", 7.72), ("Qwen1.5-72B-Chat", 72.3)),
    "Yi base": (("Yi-6B", 6.06), ("Yi-34B", 34.4)),
}  # fmt: skip
"""Families whose parameter counts are public, smallest first."""

REPEATS: Final[dict[str, tuple[str, ...]]] = {
    "gsm": (
        "Llama-3.1-405B-Inst@sambanova",
        "Llama-3.1-405B-Instruct-Turbo",
        "Meta-Llama-3.1-405B-Instruct@hyperbolic",
    ),
    "math-l5": ("Llama-3.1-405B-Inst@sambanova", "Meta-Llama-3.1-405B-Instruct@hyperbolic"),
    "crux": ("Llama-3.1-405B-Inst@sambanova", "Llama-3.1-405B-Inst-fp8", "Meta-Llama-3.1-405B-Instruct@hyperbolic"),
}
"""The same model from several providers, by ZeroEval set."""

STAGES: Final = {
    "generation": "codegeneration@2024-04-17",
    "self-repair": "selfrepair@2024-04-16",
    "test output": "testoutputprediction@2024-10-04",
    "execution": "codeexecution@2024-10-04",
}
"""LiveCodeBench's scenarios that share problems."""
_ALIASES: Final = {f"CodeLlama-{n}b-Ins": f"Cllama-{n}b-Ins" for n in (7, 13, 34)}


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of many models to the Q questions of one data set."""

    name: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    """Q question texts, or empty."""
    right: dict[str, Floats]
    """By model, (Q,): 1, 0, or nan where it was not run."""
    tokens: dict[str, Floats]
    """By model, (Q,): output tokens, nan where unknown."""

    def pair(self, a: str, b: str) -> tuple[Floats, Floats]:
        """Return the answers of two models to the questions that both were asked."""
        both = ~np.isnan(self.right[a]) & ~np.isnan(self.right[b])
        return self.right[a][both], self.right[b][both]


def rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file, gzipped or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from csv.DictReader(file)


def zeroeval(data: Path, name: str) -> Answers:
    """Return ZeroEval's `gsm`, `math-l5` or `crux`: greedy, zero-shot."""
    with gzip.open(data / "zeroeval" / f"{name}_queries.jsonl.gz", "rt", encoding="utf-8") as file:
        queries = [json.loads(line) for line in file]
    ids = tuple(str(query["query_id"]) for query in queries)
    place = {query: i for i, query in enumerate(ids)}
    right: dict[str, Floats] = defaultdict(lambda: np.full(len(ids), np.nan))
    tokens: dict[str, Floats] = defaultdict(lambda: np.full(len(ids), np.nan))
    for row in rows(data / "zeroeval" / f"{name}_per_query.csv.gz"):
        i = place[row["query_id"]]
        right[row["model"]][i] = float(row["correct"])
        tokens[row["model"]][i] = float(row["output_tokens_gpt2"] or "nan")
    # the instruction is the same for every question of CRUXEval
    texts = tuple(str(query["question"]) for query in queries)
    if name == "crux":
        texts = tuple(text.split("[PYTHON]")[1] for text in texts)
    return Answers(
        {"gsm": "GSM8K", "math-l5": "MATH-L5", "crux": "CRUXEval"}[name], ids, texts, dict(right), dict(tokens)
    )


def mmlu_pro(data: Path) -> Answers:
    """Return MMLU-Pro: 5-shot chain of thought; its texts are not in the folder."""
    folder = data / "mmlu_pro"
    found = list(rows(folder / "mmlu_pro_correct.csv.gz"))
    lengths = list(rows(folder / "mmlu_pro_output_tokens_gpt2.csv.gz"))
    models = [c for c in found[0] if c not in ("question_id", "category", "src", "question_chars")]
    return Answers(
        "MMLU-Pro",
        tuple(row["question_id"] for row in found),
        (),
        {m: np.array([float(row[m] or "nan") for row in found]) for m in models},
        {m: np.array([float(row[m] or "nan") for row in lengths]) for m in models},
    )


def mmlu_two_models(data: Path) -> Answers:
    """Return MMLU with its question texts, answered by Mixtral-8x7B and GPT-4 (RouteLLM)."""
    found = list(rows(data / "routellm" / "mmlu_mixtral_vs_gpt4.csv.gz"))
    columns = {"Mixtral-8x7B": "mixtral_8x7b_correct", "GPT-4": "gpt4_1106_correct"}
    right = {m: np.array([float(row[c] in ("1", "1.0", "True")) for row in found]) for m, c in columns.items()}
    return Answers("MMLU", tuple(str(i) for i in range(len(found))), tuple(row["prompt"] for row in found), right, {})


def evalperf(data: Path) -> dict[str, dict[str, float]]:
    """Return the share of 100 samples (T = 1) that passed, by model and task."""
    result: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows(data / "evalperf" / "evalperf_per_task.csv.gz"):
        result[row["model"]][row["task"]] = float(row["pass_at_1_pct_of_100_samples"]) / 100
    return dict(result)


def livecodebench(data: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return the shares of 10 samples (T = 0.2) that passed: stage -> model -> question -> one per sub-question."""
    names = {scenario: stage for stage, scenario in STAGES.items()}
    result: dict[str, dict[str, dict[str, list[float]]]] = {stage: {} for stage in STAGES}
    for row in rows(data / "livecodebench" / "lcb_per_question_stages.csv.gz"):
        stage = names.get(row["scenario"])
        if stage is not None and "(n=1)" not in row["model"].lower():
            of_model = result[stage].setdefault(_ALIASES.get(row["model"], row["model"]), {})
            of_model.setdefault(row["question_id"], []).append(float(row["pass_at_1_pct"]) / 100)
    return result
