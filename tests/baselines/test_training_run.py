"""The folder of a training run: settings, curves, states, W&B, and everything that may be wrong with them."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from toys import SMALL, cut, make_run  # noqa: E402

from aragog_env.errors import SpecError  # noqa: E402
from aragog_env.specs.load import load_scenario  # noqa: E402
from baselines.dqn import DQNSettings  # noqa: E402
from baselines.ppo import PPOSettings, train  # noqa: E402
from baselines.training_run import Stopwatch, TrainingRun, describe_settings, read_settings  # noqa: E402

QUICK: dict[str, Any] = {**SMALL, "horizon": 16, "minibatch": 32, "steps": 200, "critic_updates": 0}


def test_settings_from_words() -> None:
    settings = read_settings(PPOSettings, ["steps=500", "viable=oracle", "learning_rate=1e-3", "accuracy_weight=0"])
    assert settings == PPOSettings(steps=500, viable="oracle", learning_rate=1e-3, accuracy_weight=0.0)
    assert read_settings(PPOSettings, []) == PPOSettings()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stesp=3", "key 'stesp': unknown key. Did you mean 'steps'?"),
        ("steps=0", "must be at least 1"),
        ("steps=many", "expected a whole number, got the text 'many'"),
        ("clip", "expected NAME=VALUE, got 'clip'"),
        ("precision=half", "unknown value 'half'"),
    ],
)
def test_wrong_settings_are_refused(word: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_settings(PPOSettings, [word])
    assert message in str(caught.value) and "--set" in str(caught.value)


def test_every_setting_is_described_with_its_own_default() -> None:
    text = describe_settings(DQNSettings)
    assert "evaluate_every=400" in text and "n_step=16\n    Decisions until the target network" in text
    assert "evaluate_every=20" in describe_settings(PPOSettings) and "kind=" not in text
    names = {line.partition("=")[0] for line in text.splitlines() if not line.startswith(" ")}
    assert names == {field.name for field in fields(DQNSettings)}


def test_the_objective_of_training() -> None:
    """Viable sets guard the accuracy; else it has the scenario's price. The discount follows the SLO latency."""
    toy = load_scenario("toy")  # SLO: 5 times 20 ms
    free, viable = PPOSettings().objective(toy), PPOSettings(viable="oracle").objective(toy)
    assert free.objective.accuracy_weight == 1.0 and viable.objective.accuracy_weight == 0.0
    assert PPOSettings(viable="oracle", accuracy_weight=2.0).objective(toy).objective.accuracy_weight == 2.0
    assert free.objective.beta_per_s == pytest.approx(1 / 0.1)
    assert PPOSettings(beta_per_s=0.3).objective(toy).objective.beta_per_s == 0.3
    assert free.observation.ready_slots == 4 and PPOSettings(ready_slots=9).objective(toy).observation.ready_slots == 9


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path, cut(), PPOSettings(**QUICK))
    make_run(tmp_path, cut(), PPOSettings(**QUICK))  # nothing was learned yet
    with run.running(0):
        run.log({"update": 1, "steps": 5})
    with pytest.raises(SpecError, match="already holds a training run; add --resume"):
        make_run(tmp_path, cut(), PPOSettings(**QUICK))


def test_resuming_takes_scenario_and_settings_from_the_folder(tmp_path: Path) -> None:
    make_run(tmp_path, cut(), PPOSettings(**QUICK, viable="oracle"))
    again = TrainingRun(tmp_path, None, PPOSettings, resume=True, steps=900)
    assert again.scenario == cut() and again.settings == PPOSettings(**QUICK | {"steps": 900}, viable="oracle")
    assert len(again.about["sessions"]) == 2 and again.load_state() is None


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no training run to resume"):
        TrainingRun(tmp_path, None, PPOSettings, resume=True)
    run = make_run(tmp_path, cut(), PPOSettings(**QUICK))
    with pytest.raises(SpecError, match="this is a run of 'ppo', not of 'dqn'"):
        TrainingRun(tmp_path, None, DQNSettings, resume=True)
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(SpecError, match="not a complete training state"):
        run.load_state()
    torch.save({"schema": 99, "kind": "ppo"}, tmp_path / "state.pt")
    with pytest.raises(SpecError, match="schema 99"):
        run.load_state()
    about = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(about | {"schema": 99}))
    with pytest.raises(SpecError, match="another schema"):
        TrainingRun(tmp_path, None, PPOSettings, resume=True)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(SpecError, match="there is no training run to resume"):
        TrainingRun(tmp_path, None, PPOSettings, resume=True)


def test_a_state_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    run = make_run(tmp_path, cut(), PPOSettings(**QUICK))
    torch.save({"schema": 1, "kind": "ppo", "trap": _Trap()}, tmp_path / "state.pt")
    with pytest.raises(SpecError, match="not a complete training state"):
        run.load_state()


class _Trap:
    def __reduce__(self) -> Any:
        return (os.system, ("false",))


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(SpecError, match="torch has no device 'cuda:77' here"):
        PPOSettings(device="cuda:77").torch_device()
    with pytest.raises(SpecError, match="torch has no device 'potato' here"):
        PPOSettings(device="potato").torch_device()
    assert PPOSettings(device="cpu").torch_device() == torch.device("cpu")


def test_mixed_precision_by_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not PPOSettings().use_bf16(cpu) and PPOSettings().use_bf16(gpu)
    assert PPOSettings(precision="bf16").use_bf16(cpu) and not PPOSettings(precision="float32").use_bf16(gpu)


def test_curve_profile_and_models_are_on_disk(tmp_path: Path) -> None:
    told: list[str] = []
    train(cut(), PPOSettings(**QUICK | {"evaluate_every": 1, "evaluate_episodes": 2}), tmp_path, tell=told.append)
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3] and rows[-1]["steps"] >= 200
    assert {"kl", "entropy", "value_loss", "explained_variance", "steps_per_s", "eval/reward"} <= rows[0].keys()
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["steps"] == rows[-1]["steps"]
    assert all(profile["seconds"][part] > 0 for part in ("environment", "network", "update", "evaluation"))
    assert "environment" in told[-1] and "steps/s" in told[-1] and any("eval/reward" in line for line in told)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"run.json", "state.pt", "model.safetensors", "best.safetensors", "curve.jsonl", "profile.json"} <= names


def test_time_is_up(tmp_path: Path) -> None:
    train(cut(), PPOSettings(**QUICK | {"steps": 10**9}), tmp_path, tell=lambda line: None, minutes=1e-6)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["updates"] == 0


def test_the_first_interrupt_ends_after_the_update_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrainingRun.log

    def interrupt(self: TrainingRun, row: dict[str, Any]) -> None:
        log(self, row)
        if row["update"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingRun, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(cut(), PPOSettings(**QUICK | {"steps": 10**9}), tmp_path, tell=lambda line: None)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["updates"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_shares_of_time() -> None:
    watch = Stopwatch({"environment": 1.0, "network": 1.0, "update": 2.0})
    assert watch.line(8000) == "8,000 steps in 4.0 s, 2,000 steps/s: environment 25%, network 25%, update 50%"


@pytest.mark.filterwarnings("default")
def test_the_curve_is_mirrored_offline(offline: None, tmp_path: Path) -> None:
    folder = tmp_path / "group" / "run"
    train(cut(), PPOSettings(**QUICK), folder, tell=lambda line: None, wandb="offline")
    (directory,) = (folder / "wandb").glob("offline-run-*")
    (file,) = directory.glob("*.wandb")
    content = file.read_bytes()
    assert b"train/entropy" in content and b"learning_rate" in content and directory.name.endswith(file.stem[4:])
    train(None, PPOSettings, folder, tell=lambda line: None, resume=True, steps=400, wandb="offline")  # type: ignore[arg-type]
    ids = {path.stem for path in (folder / "wandb").glob("offline-run-*/*.wandb")}
    assert ids == {file.stem}  # the same W&B run goes on


def test_w_and_b_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="off, offline, online"):
        make_run(tmp_path, cut(), PPOSettings(**QUICK), wandb="maybe")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError, match="pip install wandb"):
        make_run(tmp_path / "other", cut(), PPOSettings(**QUICK), wandb="offline")
