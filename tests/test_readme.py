"""What the README shows is run here, word for word, so that it stays true."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest

from aragog_env.cli import COMMANDS, MODULES, Parser
from aragog_env.errors import SpecError
from aragog_env.harness.defaults import DEFAULT_POLICIES, DEFAULT_SEEDS
from aragog_env.harness.evaluate import evaluate
from aragog_env.harness.results import read
from scripts.pages import part, replaced
from scripts.update_readme import COMMAND, LIVE_COMMAND, PICTURE, live_text, results_text

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = ["--seeds", "1", "--requests", "6", "--warmup", "0", "--workers", "1", "--no-report", "--quiet"]
"""Added to the commands of the recipes, to keep them short."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str


def blocks(title: str) -> list[Block]:
    """Return the fenced blocks under a heading, up to the next heading of any level."""
    (section,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", _without_blocks(), re.M | re.S)
    return [Block(*_BLOCKS[int(i)]) for i in re.findall(r"<block (\d+)>", section)]


_BLOCKS = FENCE.findall(README)


def _without_blocks() -> str:
    """Return the README with blocks numbered, so that comments in them do not look like headings."""
    numbers = iter(range(len(_BLOCKS)))
    return FENCE.sub(lambda _: f"<block {next(numbers)}>", README)


def command(title: str) -> str:
    """Return the one command under a heading."""
    (block,) = blocks(title)
    (line,) = block.text.splitlines()
    assert block.language == "bash"
    return line


def test_run_it_installs_and_evaluates() -> None:
    words = command("Run it").split(" && ")
    assert words[0] == "python3 -m venv .venv"
    assert words[1].startswith(".venv/bin/pip install -e . ") and "-c constraints.txt" in words[1]
    assert words[2:] == [".venv/bin/aragog evaluate"]
    assert len(DEFAULT_POLICIES) >= 6 and DEFAULT_SEEDS == 5


def test_ci_runs_the_command_under_test_it() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert code == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', command("Test it")]
    assert os.access(script, os.X_OK)


def test_quickstart_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("Quickstart")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 12
    exec(compile(block.text, "quickstart", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    match = re.fullmatch(r"completion time (\d+\.\d+) s, right answers (\d+)%\n", printed)
    assert match and float(match[1]) > 0 and 0 <= int(match[2]) <= 100


@pytest.mark.parametrize(
    ("title", "file", "policies", "cluster", "workflows"),
    [
        ("A policy", "my_policy.py", {"my_policy:EmptiestCache", "least_loaded"}, "qwen-8xh100", 5),
        ("A workflow", "summarize/workflow.yaml", set(DEFAULT_POLICIES), "qwen-8xh100", 1),
        ("A cluster", "my_cluster.yaml", {"least_loaded", "per_workflow"}, "my-cluster", 5),
        ("A workload", "evening.yaml", set(DEFAULT_POLICIES), "qwen-4xh100", 2),
    ],
)
def test_recipe(title: str, file: str, policies: set[str], cluster: str, workflows: int, tmp_path: Path) -> None:
    source, shell = blocks(title)
    first, *rest = source.text.splitlines()
    assert first == f"# {file}"
    assert len([line for line in rest if line.strip()]) <= 10
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(source.text)
    (line,) = shell.text.splitlines()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", " ".join([line, *SMALL, "--out", "out"])],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = [line for line in done.stderr.splitlines() if not line.startswith("training a router for ")]
    assert (done.returncode, told) == (0, [])
    results = read(tmp_path / "out")
    assert {run.policy for run in results.ok} == policies and not results.failed
    (name,) = results.manifest["scenarios"]
    scenario = results.scenario(name)
    assert scenario.cluster.name == cluster
    assert len(scenario.workload.mix) == workflows
    assert all(run.metrics["completed"] == 6 for run in results.ok)


def test_every_aragog_command_in_the_text_parses() -> None:
    text = README.replace("\\\n", " ")
    commands = [shlex.split(words, comments=True) for words in re.findall(r"(?:`|^)aragog ([^`\n]+)", text, re.M)]
    assert {name for name, *_ in commands} == set(COMMANDS)
    for name, *words in commands:
        module = importlib.import_module(f"aragog_env.cli.{MODULES.get(name, name)}")
        parser = Parser(name)
        module.add_arguments(parser)
        parser.parse_args(words)  # leaves with SystemExit when an option does not exist


def test_every_script_in_the_text_exists() -> None:
    named = set(re.findall(r"python -m scripts\.(\w+)", README)) - {"NAME"}
    assert named >= {"update_readme", "compare_with_vllm", "download_traces"}
    for name in named:
        assert (ROOT / "scripts" / f"{name}.py").is_file(), name


def test_numbers_of_the_latency_check_are_those_of_its_report() -> None:
    totals = json.loads((ROOT / "docs" / "latency_check.json").read_text())["totals"]
    text = " ".join(README.split())
    assert f"Against {totals['rows']:.0f} published serving measurements" in text
    assert f"off by {totals['mape']:.1%} on average" in text
    assert f"by {totals['calibrated_mape']:.1%} with an affine calibration" in text


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert str(PICTURE) in targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_results_table_is_of_the_default_evaluation() -> None:
    table = part(README, COMMAND)[1]
    assert re.findall(r"^\| `(.+?)` \|", table, re.M) == list(DEFAULT_POLICIES)
    assert f"Scenario `default`, {DEFAULT_SEEDS} seeds per policy" in table
    cells = re.findall(r"^\| `.+?` \|(.+)\|$", table, re.M)
    assert all(re.fullmatch(r"( \d[\d.]* \[\d[\d.]*, \d[\d.]*\] \|?)+", row) for row in cells)


def test_update_replaces_the_table_and_nothing_else(tmp_path: Path) -> None:
    results = evaluate(["random", "fixed:largest"], "toy", 2, out=tmp_path / "toy", workers=1)
    text = results_text(results)
    assert "Scenario `toy`, 2 seeds per policy, 144 counted requests" in text
    updated = replaced(README, COMMAND, text)
    assert replaced(updated, COMMAND, part(README, COMMAND)[1]) == README
    assert "| `fixed:largest` |" in updated
    live = live_text(results)
    assert live.count("| `fixed:largest` | ") == 2 and "Scenario `toy`, one run and 36 counted requests per row" in live
    assert live in replaced(README, LIVE_COMMAND, live)
    with pytest.raises(SpecError, match=r"the page lacks the comments '<!-- begin: make tea -->' and"):
        replaced(README, "make tea", live)


def test_constraints_name_dependencies_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=]", text)[0].lower() for text in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    assert set(pinned) <= names
    assert {name for name in names if name not in pinned} == {"aragog-gym", "vllm", "aiconfigurator-core"}
    assert pinned["torch"] == "2.13.0"
