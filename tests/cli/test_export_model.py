"""`aragog export-model`: what it writes decides as the policy does, in a process that has never heard of this project."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from aragog_env.backends.sim import SimBackend  # noqa: E402
from aragog_env.cli import main  # noqa: E402
from aragog_env.harness.rollout import run_episode  # noqa: E402
from aragog_env.policy import Dispatch, Wait  # noqa: E402
from aragog_env.registry import make_policy  # noqa: E402
from aragog_env.specs.load import load_scenario  # noqa: E402
from aragog_env.specs.override import override  # noqa: E402
from aragog_env.view import DispatchView  # noqa: E402
from baselines.features import Rules  # noqa: E402
from baselines.model_file import ModelFile  # noqa: E402
from baselines.network import Network  # noqa: E402

GREEDY = """
waits = logits[:, -1] > np.logaddexp.reduce(logits[:, :-1], axis=1)
chosen = np.where(waits, logits.shape[1] - 1, logits[:, :-1].argmax(1))
np.save("chosen.npy", chosen)
assert not {"aragog_env", "baselines", "policies"} & set(sys.modules)
"""
"""What docs/learning.md says about the likeliest action."""
READERS = {
    "pt2": """
import sys, numpy as np, torch
arrays = np.load("decisions.npz")
module = torch.export.load("scheduler.pt2").module()
with torch.no_grad():
    logits = module(*(torch.from_numpy(arrays[name]) for name in arrays.files)).numpy()
""",
    "onnx": """
import sys, numpy as np, onnxruntime
arrays = np.load("decisions.npz")
session = onnxruntime.InferenceSession("scheduler.onnx", providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {name: arrays[name] for name in arrays.files})
""",
}
INPUTS = ("calls", "routes", "pairs", "globals", "can_wait")


def model() -> ModelFile:
    """A network with an opinion on everything, as after training."""
    torch.manual_seed(4)
    network = Network(16)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    return ModelFile("ppo", network.arrays(), 16, asdict(Rules()), 5, "default")


class Noted:
    """Notes what a learned policy's network is shown, and what the policy does."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.decide = policy, policy.decide
        self.shown: list[tuple[Any, ...]] = []
        self.done: list[Dispatch | Wait] = []
        policy.decide = self._decide

    def _decide(self, *arrays: Any) -> Any:
        self.shown.append(tuple(np.array(array) for array in arrays))
        return self.decide(*arrays)

    def reset(self, scenario: Any, seed: int) -> None:
        self.policy.reset(scenario, seed)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        self.done.append(self.policy.act(view))
        return self.done[-1]


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_the_exported_network_decides_as_the_policy(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model().save(tmp_path / "run" / "model.safetensors")
    assert main(["export-model", str(tmp_path / "run"), "--out", str(tmp_path / f"scheduler.{suffix}")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / f'scheduler.{suffix}'}\n"
    noted = Noted(make_policy(f"ppo:{tmp_path / 'run'}"))
    scenario = override(load_scenario("default"), requests=20, warmup_requests=0, rate_rps=40.0)
    run_episode(noted, "ppo", SimBackend(scenario), 0)
    stacked = {name: np.stack(part) for name, part in zip(INPUTS, zip(*noted.shown, strict=True), strict=True)}
    np.savez(tmp_path / "decisions.npz", **stacked)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-I", "-c", READERS[suffix] + GREEDY], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    routes = stacked["routes"].shape[1]
    wait = stacked["calls"].shape[1] * routes
    actions = [wait if isinstance(act, Wait) else act.call * routes + act.route for act in noted.done]
    assert len(set(actions)) > 3, "more than one thing is done"
    assert np.load(tmp_path / "chosen.npy").tolist() == actions


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "a.pt2"], "there is no such model"),
        (["run", "--out", "a.ts"], "exported as .pt2 or .onnx, not as '.ts'"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model().save(tmp_path / "run" / "model.safetensors")
    assert main(["export-model", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
