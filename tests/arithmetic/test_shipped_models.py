"""The trained models in the repository: small, loadable, and better the larger they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

# ruff: noqa: E402 - these need torch
from scripts.arithmetic.examples import STAGES
from scripts.arithmetic.model import Llama, load_pretrained
from scripts.arithmetic.recipes import RECIPES
from scripts.arithmetic.scoring import exact, generate, held_out_examples
from scripts.arithmetic.tokenizer import EOS

MODELS = Path(__file__).resolve().parents[2] / "workflows" / "arithmetic" / "models"
NAMES = [recipe.name for recipe in RECIPES]
EXAMPLES = 40

pytestmark = pytest.mark.skipif(
    not all((MODELS / name / "model.safetensors").exists() for name in NAMES),
    reason="the models are not here; train them with python -m scripts.train_arithmetic",
)


@pytest.fixture(scope="module")
def models() -> dict[str, Llama]:
    torch.set_num_threads(1)
    return {name: load_pretrained(MODELS / name).eval() for name in NAMES}


def test_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) <= 12e6


def test_models_have_the_shapes_of_their_recipes(models: dict[str, Llama]) -> None:
    assert [models[recipe.name].shape for recipe in RECIPES] == [recipe.shape for recipe in RECIPES]


def test_report_shows_a_ladder_at_every_stage() -> None:
    report = json.loads((MODELS / "report.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in report["models"]] == NAMES
    assert sum(entry["seconds"] for entry in report["models"]) > 0
    for stage in STAGES:
        shares = [entry["scores"][stage] for entry in report["models"]]
        assert shares[0] + 0.03 < shares[1] < shares[2], stage
    assert report["workflow"]["repaired_by_largest_verifier"] > 0.1


def test_scores_of_the_report_are_found_again(models: dict[str, Llama]) -> None:
    """On few examples, so within the 99.9% interval of so many coin flips."""
    report = json.loads((MODELS / "report.json").read_text(encoding="utf-8"))
    examples = held_out_examples(EXAMPLES, seed=7)
    for entry in report["models"]:
        for stage in STAGES:
            stated = entry["scores"][stage]
            margin = 3.3 * (max(stated * (1 - stated), 0.02) / EXAMPLES) ** 0.5
            assert exact(models[entry["name"]], examples[stage]) == pytest.approx(stated, abs=margin), (entry, stage)


def test_the_largest_ends_its_outputs(models: dict[str, Llama]) -> None:
    prompts = [example.prompt for stage in STAGES for example in held_out_examples(5, seed=3)[stage]]
    assert all(tokens[-1] == EOS for tokens in generate(models[NAMES[-1]], prompts))
