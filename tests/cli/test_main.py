"""The command line without running anything: help, errors, lists, descriptions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aragog_env import cli
from aragog_env.cli.options import resume_command

REPOSITORY = Path(__file__).resolve().parents[2]


def _main(*words: str) -> int:
    try:
        return cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom aragog_env.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numba', 'matplotlib', 'rich', 'wandb', 'torch', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(command, "--help") == 0
    assert f"usage: aragog {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evalute",), "unknown command 'evalute'. Did you mean 'evaluate'?"),
        (("evaluate", "--seeds", "0"), "expected a whole number of at least 1, got '0'"),
        (("evaluate", "--polcy", "x"), "unrecognized arguments: --polcy x"),
        (
            ("evaluate", "--policy", "round_robbin"),
            "unknown policy 'round_robbin'. Did you mean 'round_robin'?",
        ),
        (("evaluate", "--scenario", "defualt"), "Did you mean 'default'?"),
        (("evaluate", "--scenario", "no/such.yaml"), "no/such.yaml"),
        (("evaluate", "--rate", "-1"), "rate_rps"),
        (("evaluate", "--cluster", "qwen"), "unknown cluster 'qwen'"),
        (("evaluate", "--workflow", "voting"), "unknown workflow 'voting'"),
        (("evaluate", "--trace", "nowhere.csv"), "there is no trace file 'nowhere.csv'"),
        (("evaluate", "--resume"), "--resume needs --out"),
        (("evaluate", "--baseline", "nobody"), "baseline 'nobody' is not among the policies"),
        (("capacity", "--rates", "1,x"), "expected positive rates"),
        (("report", "/tmp"), "no manifest.json"),
        (("validate", "/tmp"), "no manifest.json"),
        (("list", "things"), "invalid choice: 'things'"),
        (("describe", "nothing"), "unknown scenario 'nothing'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert "Traceback" not in captured.err and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_scenario_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aragog_env.harness.results import open_for_writing
    from aragog_env.specs.load import load_scenario

    monkeypatch.chdir(tmp_path)
    open_for_writing("out", [load_scenario("toy")]).close()
    assert _main("evaluate", "--scenario", "default", "--out", "out", "--resume") == 2
    assert "this folder holds results of scenario toy, not of default" in capsys.readouterr().err
    assert _main("evaluate", "--scenario", "toy", "--requests", "7", "--out", "out", "--resume") == 2
    assert "the definition of 'toy' has changed" in capsys.readouterr().err


def test_lists_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"default", "toy"} <= {row["name"] for row in listed["scenarios"]}
    assert "qwen-8xh100" in {row["name"] for row in listed["clusters"]}
    assert "self_refine_humaneval" in {row["name"] for row in listed["workflows"]}
    assert any("round_robin" in row["name"] for row in listed["policies"])
    assert all(listed[kind] for kind in ("models", "gpus", "arrivals", "workloads", "metrics"))
    assert _main("list", "policies") == 0
    assert "fixed:largest" in capsys.readouterr().out


def test_describe_shows_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("describe", "default") == 0
    text = capsys.readouterr().out
    for words in ("qwen-32b", "poisson", "critique", "standalone latency", "hash"):
        assert words in text, words
    assert _main("describe", "default", "--json", "--rate", "3.5") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["scenario"]["workload"]["arrivals"]["rate_rps"] == 3.5 and len(data["hash"]) == 64


def test_described_yaml_loads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from aragog_env.specs.load import load_scenario

    assert _main("describe", "default", "--yaml", "--requests", "77") == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    again = load_scenario(tmp_path / "again.yaml")
    assert again.horizon.requests == 77 and again.cluster == load_scenario("default").cluster


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import aragog_env

    assert _main("--version") == 0
    assert capsys.readouterr().out.strip() == aragog_env.__version__


@pytest.mark.parametrize(
    "words",
    [
        ["aragog", "evaluate", "-p", "a b", "--seeds", "3"],
        ["aragog", "evaluate", "-o", "old", "-p", "a b", "--seeds", "3", "--resume"],
        ["aragog", "evaluate", "-p", "a b", "--out=old", "--seeds", "3"],
    ],
)
def test_the_command_to_go_on_can_be_pasted(words: list[str]) -> None:
    assert resume_command(Path("new"), words) == "aragog evaluate -p 'a b' --seeds 3 --out new --resume"
