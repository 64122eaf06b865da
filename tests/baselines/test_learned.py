"""Trained networks by name: the same decisions as in training, and a sentence for every file that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_network import trained  # noqa: E402

from aragog_env.backends.sim import SimBackend  # noqa: E402
from aragog_env.errors import SpecError  # noqa: E402
from aragog_env.harness.rollout import run_episode  # noqa: E402
from aragog_env.policy import NeedsOutcomes, Policy  # noqa: E402
from aragog_env.registry import ROOT, make_policy, policy_entries, policy_names  # noqa: E402
from aragog_env.specs.load import load_scenario  # noqa: E402
from aragog_env.specs.override import override  # noqa: E402
from aragog_env.specs.scenario import Scenario  # noqa: E402
from baselines.evaluation import observed  # noqa: E402
from baselines.features import Rules  # noqa: E402
from baselines.model_file import SCHEMA, ModelFile  # noqa: E402
from baselines.network import likeliest  # noqa: E402
from baselines.training_env import TrainingEnv  # noqa: E402


def scenario(requests: int = 30) -> Scenario:
    return override(load_scenario("default"), requests=requests, warmup_requests=0, rate_rps=15.0, ready_slots=5)


def model(kind: Any = "ppo", viable: str = "oracle", slots: int = 5) -> ModelFile:
    network = trained()
    return ModelFile(kind, network.arrays(), network.width, asdict(Rules(viable)), slots, "default", {"steps": 7})


def write(path: Path, **changes: Any) -> Path:
    model(**changes).save(path)
    return path


def test_a_file_holds_what_it_was_given(tmp_path: Path) -> None:
    saved = model("dqn")
    saved.save(tmp_path / "m.safetensors")
    read = ModelFile.load(tmp_path / "m.safetensors", "dqn")
    assert (read.kind, read.width, read.ready_slots, read.notes) == ("dqn", 16, 5, {"steps": 7})
    assert Rules(**read.rules) == Rules("oracle")
    assert read.weights.keys() == saved.weights.keys()
    assert all((array == saved.weights[name]).all() for name, array in read.weights.items())
    first = (tmp_path / "m.safetensors").read_bytes()
    model("dqn").save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == first


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors")
    path = write(tmp_path / "m.safetensors")
    with library.safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}
        assert json.loads(file.metadata()["aragog"])["schema"] == SCHEMA
    trained().load_state_dict(weights)


def test_the_best_model_of_a_run_is_taken_before_the_last(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", slots=4)
    assert ModelFile.load(tmp_path).ready_slots == 4
    write(tmp_path / "best.safetensors", slots=9)
    assert ModelFile.load(tmp_path).ready_slots == 9


@pytest.mark.parametrize("viable", ["oracle", "none"])
def test_the_policy_decides_as_the_network_did_in_training(viable: str, tmp_path: Path) -> None:
    """Greedy episodes in the vector environment by torch, and in the harness by name, are the same call for call."""
    name = f"ppo:{write(tmp_path / 'm.safetensors', viable=viable)}"
    env = TrainingEnv(2, scenario(), Rules(viable))
    env.reset(seed=6)
    network, running = trained(), np.ones(2, bool)
    logs: list[Any] = [None, None]
    while running.any():
        with torch.inference_mode():
            actions = likeliest(network(*observed(env).policy)).numpy()
        _, _, terminated, _, _ = env.step(actions)
        for e in np.flatnonzero(terminated & running):
            logs[e] = env.log(int(e))
        running &= ~terminated
    policy = make_policy(name)
    assert isinstance(policy, Policy) and isinstance(policy, NeedsOutcomes) == (viable != "none")
    for e, seed in enumerate((6, 7)):
        log = run_episode(policy, name, SimBackend(scenario()), seed)
        assert log.calls.tobytes() == logs[e].calls.tobytes() and log.requests.tobytes() == logs[e].requests.tobytes()
        assert log.notes["saw_outcomes"] == (viable != "none")


def test_a_policy_shows_as_many_calls_as_in_training_and_runs_on_other_clusters(tmp_path: Path) -> None:
    name = f"ppo:{write(tmp_path / 'm.safetensors', slots=3)}"
    policy: Any = make_policy(name)
    for place in (scenario(10), override(scenario(10), cluster="qwen-16xh100-replicated"), load_scenario("toy")):
        log = run_episode(policy, name, SimBackend(place), 1)
        assert np.isfinite(log.requests["finish_s"]).all()
        assert policy._encoder._shown.pairs.shape[1:3] == (3, len(place.cluster.expand()))


def test_viable_sets_can_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", viable="oracle")
    assert not isinstance(make_policy(f"ppo:{path},viable=none"), NeedsOutcomes)
    assert isinstance(make_policy(f"ppo:{path}"), NeedsOutcomes)


def test_sampling_depends_on_the_seed_alone(tmp_path: Path) -> None:
    name = f"ppo:{write(tmp_path / 'm.safetensors')},sample"
    policy, backend = make_policy(name), SimBackend(scenario(15))
    logs = []
    for seed in (1, 1, 2):
        backend.reset(4)
        policy.receive_outcomes(backend.outcomes, backend.draws)  # type: ignore[attr-defined]
        policy.reset(backend.scenario, seed)
        while not backend.done:
            backend.step(policy.act(backend.view()))
        logs.append(backend.log().calls.tobytes())
    assert logs[0] == logs[1] != logs[2]


def refused(name: str) -> str:
    with pytest.raises(SpecError) as caught:
        make_policy(name)
    return str(caught.value)


def test_what_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors")
    raw = path.read_bytes()
    assert "policy 'dqn' needs a trained model: dqn:PATH" in refused("dqn")
    assert "there is no such model" in refused(f"ppo:{tmp_path / 'nowhere'}")
    assert "there is no such model" in refused(f"ppo:{tmp_path / 'empty'}".replace("empty", ""))
    assert "this is a model of 'ppo', not of 'dqn'" in refused(f"dqn:{path}")
    assert "unknown mode 'greddy'. Did you mean 'greedy'" in refused(f"ppo:{path},greddy")
    for name, content in {
        "short": raw[:-5],
        "header": raw[:60],
        "nothing": b"",
        "text": b"hello, this is no model at all",
        "foreign": (2).to_bytes(8, "little") + b"{}",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "not a complete model" in refused(f"ppo:{tmp_path / name}"), name
    (tmp_path / "old").write_bytes(raw.replace(f'\\"schema\\": {SCHEMA}'.encode(), b'\\"schema\\": 9'))
    assert f"another schema than {SCHEMA}" in refused(f"ppo:{tmp_path / 'old'}")
    (tmp_path / "rules").write_bytes(raw.replace(b'\\"hold\\"', b'\\"hols\\"'))
    assert "other rules than this version knows" in refused(f"ppo:{tmp_path / 'rules'}")
    (tmp_path / "strange").write_bytes(raw.replace(b'\\"width\\"', b'\\"wodth\\"'))
    assert "no model of a learned scheduler" in refused(f"ppo:{tmp_path / 'strange'}")


def test_learned_policies_are_listed_but_no_bare_name_is_offered() -> None:
    assert {"ppo", "dqn", "imitation"} <= set(policy_entries()) and not {"ppo", "dqn", "imitation"} & set(
        policy_names()
    )


def test_deciding_loads_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", viable="none")
    code = (
        "import sys; from aragog_env.harness.rollout import run_episode\n"
        "from aragog_env.backends.sim import SimBackend; from aragog_env.registry import make_policy\n"
        "from aragog_env.specs.load import load_scenario\n"
        f"run_episode(make_policy('ppo:{path}'), 'ppo', SimBackend(load_scenario('toy')), 0)\n"
        "assert not {'torch', 'safetensors', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_bare_name_takes_the_shipped_model_of_the_workflow_with_the_routers_sets() -> None:
    policy: Any = make_policy("ppo")
    assert isinstance(policy, NeedsOutcomes)
    with pytest.raises(
        SpecError, match=r"there is no model of 'ppo' for 'toy_chain', only for .*self_refine_humaneval"
    ):
        policy.reset(load_scenario("toy"), 0)
    for name, sets in (("ppo", "router"), ("imitation:viable=oracle", "oracle")):
        policy = make_policy(name)
        policy.reset(load_scenario("aragog-self_refine_humaneval-qwen"), 0)
        assert policy.rules.viable == sets and policy.model.kind == name.partition(":")[0]
