"""The models: characters, learning, decoding, files, and going on after a stop."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

# ruff: noqa: E402 - these need torch
from aragog_env.specs.catalogue import model as catalogue_model
from scripts.arithmetic.examples import draw_example
from scripts.arithmetic.model import Llama, Shape, load_pretrained, save_pretrained
from scripts.arithmetic.optimizer import orthogonal
from scripts.arithmetic.recipes import RECIPES
from scripts.arithmetic.scoring import exact, generate
from scripts.arithmetic.tokenizer import BOS, EOS, SPECIAL, UNK, VOCABULARY, decode, encode
from scripts.arithmetic.training import IGNORED, Recipe, collate, learning_rate, save, start, train, update
from scripts.train_arithmetic import COMMAND, with_table
from workflows.arithmetic.stages import ALPHABET

ROOT = Path(__file__).resolve().parents[2]
TINY = Recipe("tiny", Shape(1, 32, 64, 2, 1), updates=40, minutes=5, batch={"solve": 16, "combine": 16})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_characters_round_trip() -> None:
    assert decode(encode(ALPHABET)) == ALPHABET
    assert encode("x") == [UNK]
    assert decode([BOS, *encode("1+1"), EOS]) == "1+1"
    assert len(VOCABULARY) == len(set(VOCABULARY)) == len(ALPHABET) + len(SPECIAL)


def test_tokenizer_files_agree_with_ours(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    save_pretrained(Llama(TINY.shape), tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("S(74+8)*6\n", "V1+2|3?;\n", ALPHABET):
        ids = tokenizer.encode(text).ids
        assert ids == [BOS, *encode(text)]
        assert tokenizer.decode(ids) == text


def test_loss_falls_within_seconds() -> None:
    run = start(TINY, Path("there is none"))
    losses = [update(TINY, run, 0.0) for _ in range(40)]
    first, last = (sum(entry["solve"] for entry in part) / 5 for part in (losses[:5], losses[-5:]))
    assert last < 0.75 * first
    assert run.update == 40 and run.tokens > 0


def test_a_model_can_learn_an_example_by_heart() -> None:
    torch.manual_seed(0)
    model = Llama(Shape(1, 32, 64, 2, 1))
    example = draw_example(random.Random(0), "solve", 1.0)
    tokens, targets = collate([example])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        logits = model.lm_head(model(tokens))
        loss = torch.nn.functional.cross_entropy(logits[0], targets[0], ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert exact(model, [example]) == 1.0
    assert generate(model, [example.prompt])[0][-1] == EOS


def test_only_outputs_are_learnt() -> None:
    short, long = draw_example(random.Random(1), "combine", 0.0), draw_example(random.Random(2), "solve", 1.0)
    tokens, targets = collate([short, long])
    for row, example in zip(targets.tolist(), (short, long), strict=True):
        assert [token for token in row if token != IGNORED] == [*encode(example.output), EOS]
    first = len(short.prompt)
    assert tokens[0, first + 1] == targets[0, first], "each position predicts the next"


def test_decoding_with_a_cache_is_decoding_without() -> None:
    torch.manual_seed(1)
    model = Llama(Shape(2, 32, 64, 4, 2))
    prompts = ["S1+2\n", "S5*6\n", "C12+3\n"]
    for prompt, written in zip(prompts, generate(model, prompts, 8), strict=True):
        tokens = [BOS, *encode(prompt)]
        for token in written:
            assert token == int(model.lm_head(model(torch.tensor([tokens]))[0, -1]).argmax())
            tokens.append(token)


def test_weights_survive_the_file(tmp_path: Path) -> None:
    model = Llama(TINY.shape)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    tokens = torch.tensor([[BOS, *encode("S1+2\n")]])
    assert torch.equal(model(tokens), again(tokens))
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    recipe = replace(TINY, updates=6, batch={"solve": 4})
    whole = train(recipe, tmp_path / "whole", score_every=0, scored=4, log=lambda line: None)
    halted = start(recipe, tmp_path / "none")
    for _ in range(3):
        update(recipe, halted, halted.update / recipe.updates)
    (tmp_path / "parts").mkdir()
    save(halted, tmp_path / "parts")
    resumed = train(recipe, tmp_path / "parts", score_every=0, scored=4, log=lambda line: None)
    assert resumed.update == whole.update == 6
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert json.loads((tmp_path / "whole" / "history.json").read_text())[-1]["update"] == 6


def test_time_limit_ends_training(tmp_path: Path) -> None:
    run = train(replace(TINY, updates=10**6, minutes=0.005), tmp_path, score_every=0, scored=4, log=lambda line: None)
    assert 0 < run.update < 10**4


def test_learning_rate_warms_up_and_decays() -> None:
    assert learning_rate(0, 0.0) < learning_rate(50, 0.1) < learning_rate(200, 0.2) == 1.0
    assert learning_rate(10**4, 0.9) == pytest.approx(0.25)
    assert learning_rate(10**4, 1.0) == pytest.approx(0.02)


def test_orthogonal_moves_singular_values_to_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 48), (3, 48, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < float(values.min()) and float(values.max()) < 1.5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_catalogue_has_the_true_dimensions(recipe: Recipe) -> None:
    entry = catalogue_model(recipe.name)
    shape = recipe.shape
    assert (entry.layers, entry.hidden_size, entry.intermediate_size) == (
        shape.layers,
        shape.hidden_size,
        shape.intermediate_size,
    )
    assert (entry.heads, entry.kv_heads, entry.head_dim) == (shape.heads, shape.kv_heads, shape.head_dim)
    assert entry.vocab_size == len(VOCABULARY)
    assert entry.size_b * 1e9 == pytest.approx(Llama(shape).parameters_count, rel=0.006)
    assert shape.head_dim in (32, 64, 80, 96, 112, 128, 160, 192, 224, 256), "vLLM's CPU attention"


def test_all_training_fits_ninety_minutes() -> None:
    assert sum(recipe.minutes for recipe in RECIPES) < 90


def test_the_table_of_the_documentation_follows_the_report() -> None:
    entry = {"name": "m", "layers": 2, "hidden_size": 48, "parameters": 81264, "updates": 10, "seconds": 90.0}
    scores = {"plan": 0.9, "solve": 0.5, "combine": 0.6, "verify": 0.4}
    whole = {
        "one_model": {"m": 0.25},
        "queries": 100,
        "repaired_by_largest_verifier": 0.3,
        "spoilt_by_largest_verifier": 0,
    }
    report = {"models": [{**entry, "scores": scores}], "scored": 500, "workflow": whole}
    text = with_table(f"before\n<!-- begin: {COMMAND} -->\nold\n<!-- end -->\nafter\n", report)
    assert "| 81,264 | 10 | 2 min | 90.0% | 50.0% | 60.0% | 40.0% | 25.0% |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n")
    assert with_table(text, report) == text


@pytest.mark.slow
def test_transformers_loads_the_export_and_agrees(tmp_path: Path) -> None:
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs .venv-vllm with transformers (make vllm)")
    torch.manual_seed(2)
    model = Llama(Shape(2, 32, 64, 4, 2))
    save_pretrained(model, tmp_path)
    prompt = "S(74+8)*6\n"
    script = (
        "import sys, json, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "folder, prompt = sys.argv[1:]\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "ids = tokenizer(prompt).input_ids\n"
        "chat = tokenizer.apply_chat_template([dict(role='user', content=prompt)], tokenize=False)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)\n"
        "logits = model(torch.tensor([ids])).logits[0, -1].tolist()\n"
        "print(json.dumps([ids, tokenizer.decode(ids, skip_special_tokens=True), chat, logits]))\n"
    )
    done = subprocess.run(
        [str(python), "-c", script, str(tmp_path), prompt],
        capture_output=True,
        text=True,
        timeout=120,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ids, text, chat, logits = json.loads(done.stdout.splitlines()[-1])
    assert ids == [BOS, *encode(prompt)] and text == prompt and chat == "<s>" + prompt
    ours = model.lm_head(model(torch.tensor([ids])))[0, -1]
    assert torch.allclose(ours, torch.tensor(logits), atol=1e-4)
