from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aragog_env import registry
from aragog_env.errors import AragogError, SpecError
from aragog_env.registry import load_policy_class, make_policy, policy_entries, policy_names, register_policy

MODULE = """
class Mine:
    def __init__(self, beam=1, width=0.5, fast=False, mode="a"):
        self.arguments = (beam, width, fast, mode)
    def reset(self, scenario, seed): ...
    def act(self, view): ...

class NoPolicy:
    pass

class Broken:
    def __init__(self):
        raise TypeError("inner trouble")
    def reset(self, scenario, seed): ...
    def act(self, view): ...
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, beside the project."""
    (tmp_path / "my_rules_of_scheduling.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_POLICIES", dict(registry._POLICIES))
    yield "my_rules_of_scheduling"
    sys.modules.pop("my_rules_of_scheduling", None)


def message(name: str) -> str:
    with pytest.raises(SpecError) as caught:
        make_policy(name)
    return str(caught.value)


def test_the_issues_policies_are_there() -> None:
    wanted = {"random", "round_robin", "least_loaded", "power_of_two", "fixed:largest", "fixed:smallest"}
    assert wanted | {"earliest_finish"} <= set(policy_names())
    paper = {"aragog", "per_workflow", "per_input", "per_input_plus", "per_input_plus_plus"}
    assert paper | {"viable_shortest_queue", "viable_power_of_two", "viable_random"} <= set(policy_names())
    for name in policy_names():
        assert callable(make_policy(name).act)
    assert all(entry.summary for entry in policy_entries().values())


def test_the_class_behind_a_name() -> None:
    assert load_policy_class("fixed:largest").__name__ == "FixedPolicy"
    with pytest.raises(SpecError, match="Did you mean 'fixed'"):
        load_policy_class("fixd:largest")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("least_load", "Did you mean 'least_loaded'?"),
        ("fixed:larges", None),  # an argument of 'fixed', checked against the scenario
        ("roundrobin", "Did you mean 'round_robin'?"),
        ("zzz", "Known: aragog, aragog:oracle, dqn, earliest_finish"),
    ],
)
def test_unknown_names_get_a_hint(name: str, hint: str | None) -> None:
    if hint is None:
        assert make_policy(name)
        return
    text = message(name)
    assert text.startswith(f"unknown policy '{name}'.") and hint in text


def test_modules_of_the_user(user_module: str) -> None:
    assert make_policy(f"{user_module}:Mine").arguments == (1, 0.5, False, "a")
    made = make_policy(f"{user_module}:Mine:8,width=0.25,fast=true,mode=b=c")
    assert made.arguments == (8, 0.25, True, "b=c")
    register_policy("mine", f"{user_module}:Mine", "my own")
    assert make_policy("mine:beam=3").arguments == (3, 0.5, False, "a")
    assert "mine" in policy_names()


def test_arguments_that_the_class_does_not_take(user_module: str) -> None:
    text = message(f"{user_module}:Mine:bean=3")
    assert text.startswith(f"policy '{user_module}:Mine:bean=3': ")
    assert "unexpected keyword argument 'bean'" in text
    assert "takes" in message("random:5")
    assert "inner trouble" in message(f"{user_module}:Broken")


def test_what_is_missing_is_named(user_module: str) -> None:
    assert "has no 'Mien'" in message(f"{user_module}:Mien")
    assert "no module named 'nowhere'" in message("nowhere.to.be:Found")
    assert "has no reset(scenario, seed) and act(view)" in message(f"{user_module}:NoPolicy")


@pytest.mark.parametrize("name", ["", ":", "no.such.module", "nowhere:Class", "a:b:c", ".hidden:Class"])
def test_strange_names_are_refused_in_one_sentence(name: str) -> None:
    assert message(name)


def test_a_folder_of_another_package_is_refused(tmp_path: Path) -> None:
    """`baselines` is also the import name of another distribution (reference: DESIGN.md, section 4)."""
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from aragog_env.registry import make_policy\n"
        "try:\n    make_policy('random')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=registry.ROOT)
    assert done.stdout.startswith("AragogError ")
    assert f"'baselines' resolves to {tmp_path / 'baselines'}, which belongs to another package" in done.stdout


def test_works_from_any_folder(tmp_path: Path) -> None:
    """An editable install makes only `aragog_env` importable; the registry finds the folders beside it."""
    code = (
        f"import sys; sys.path[:] = [p for p in sys.path if p not in ('', {str(registry.ROOT)!r})]\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('aragog_env', {str(registry.ROOT / 'aragog_env/__init__.py')!r})\n"
        "package = importlib.util.module_from_spec(spec); sys.modules['aragog_env'] = package\n"
        "spec.loader.exec_module(package)\n"
        "assert importlib.util.find_spec('baselines') is None\n"
        "print(type(package.make_policy('random')).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "RandomPolicy\n", done.stderr


def test_the_project_refuses_with_its_own_error() -> None:
    assert issubclass(SpecError, AragogError) and SpecError("x").exit_code == 2


def test_a_module_in_the_working_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "rules_of_today.py").write_text(MODULE)
    code = "from aragog_env import make_policy; print(make_policy('rules_of_today:Mine:2').arguments)"
    console_script = f"import sys; sys.path[:] = [{str(registry.ROOT)!r}, *filter(None, sys.path)]; {code}"
    done = subprocess.run([sys.executable, "-c", console_script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "(2, 0.5, False, 'a')\n", done.stderr
