"""What importing loads, and which module may import which: one direction, bottom to top."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aragog_env import jit

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "aragog_env"
HEAVY = {"torch", "wandb", "vllm", "matplotlib", "stable_baselines3", "sb3_contrib", "torchrl", "ray", "pandas"}
OURS_ABOVE = {"policies", "baselines", "workflows", "scripts", "tests"}

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "files", "jit"),
    ("specs", "episode", "policy"),
    ("datasets",),
    ("grading",),
    ("latency",),
    ("queries",),
    ("outcomes", "synthetic"),
    ("workload",),
    ("engine",),
    ("progress", "prediction"),
    ("events", "standalone", "view"),
    ("compiled_scenario",),
    ("simulation", "reward"),
    ("observation",),
    ("action",),
    ("encoding", "observation_policy"),
    ("servers", "recording"),
    ("calibration",),
    ("backends",),
    ("env", "vector_env"),
    ("live_env",),
    ("registry", "charged"),
    ("harness",),
    ("render",),
    ("frame", "integrations"),
    ("cli",),
)
"""Bottom to top. A module imports from its own layer and those below."""

UPWARD_IN_FUNCTIONS = {
    # Whether a model fits a GPU is a question about a specification that the memory model answers.
    ("specs.limits", "latency.model"),
    ("specs.validate", "latency.model"),
    ("specs.validate", "latency.memory"),
    # On the last step and on `render()` only.
    ("env", "harness.metrics"),
    ("live_env", "harness.metrics"),
    ("env", "render"),
    ("env", "frame"),
    ("vector_env", "render"),
    ("vector_env", "frame"),
    # What a recording notes about the machine is what results note.
    ("backends.live.backend", "harness.provenance"),
}
"""Imports from a higher layer, inside functions: (importer, imported)."""


def modules() -> dict[str, Path]:
    """Return the package's modules by name, without the leading `aragog_env.`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, str]]:
    """Yield (absolute name, where) of every import of a module; where: module, function or typing."""
    path = MODULES[name]
    full = f"aragog_env.{name}".rstrip(".")
    package = full if path.name == "__init__.py" else full.rpartition(".")[0]

    def walk(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inside = where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inside = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                inside = "typing"
            elif isinstance(child, ast.Import):
                yield from ((alias.name, where) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    submodule = f"{base}.{alias.name}"
                    yield (submodule if submodule.removeprefix("aragog_env.") in MODULES else base), where
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "module")


def layer(name: str) -> int:
    """Return the layer of a module."""
    for position, heads in enumerate(LAYERS):
        if name.partition(".")[0] in heads:
            return position
    raise AssertionError(f"'{name}' is in no layer: say in LAYERS where it belongs")


def test_the_reading_of_imports_works() -> None:
    found = set(imports("env"))
    assert ("aragog_env.action", "module") in found and ("aragog_env.render", "function") in found
    assert ("aragog_env.harness.evaluate", "typing") in set(imports(""))
    assert len(MODULES) > 60


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_point_downwards(name: str) -> None:
    for imported, where in imports(name):
        if not imported.startswith("aragog_env.") or where == "typing":
            continue
        target = imported.removeprefix("aragog_env.")
        if layer(target) > layer(name):
            assert where == "function", f"aragog_env/{name} imports {target}, a higher layer, at module level"
            assert (name, target) in UPWARD_IN_FUNCTIONS, f"aragog_env/{name} imports {target}, a higher layer"


def test_listed_exceptions_exist() -> None:
    for name, target in UPWARD_IN_FUNCTIONS:
        assert (f"aragog_env.{target}", "function") in set(imports(name)), (name, target)


def test_the_environment_imports_nothing_that_is_built_on_it() -> None:
    for name in MODULES:
        for imported, _ in imports(name):
            assert imported.partition(".")[0] not in OURS_ABOVE, f"aragog_env/{name} imports {imported}"


def test_heavy_packages_are_imported_inside_functions() -> None:
    for name in MODULES:
        if name.startswith("integrations."):
            continue
        for imported, where in imports(name):
            if imported.partition(".")[0] in HEAVY:
                assert where != "module", f"aragog_env/{name} imports {imported} at module level"


def loaded(code: str, cwd: Path = ROOT) -> set[str]:
    """Return the top-level names in `sys.modules` after running `code` in a new interpreter."""
    code += "\nimport sys, json; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_is_light() -> None:
    names = loaded("import aragog_env")
    assert {"aragog_env", "gymnasium"} <= names
    assert not names & (HEAVY | OURS_ABOVE | {"numba", "yaml", "rich"})


def test_importing_everything_for_an_evaluation_loads_nothing_heavy() -> None:
    names = loaded("import aragog_env.vector_env, aragog_env.harness.evaluate, aragog_env.cli, aragog_env.frame")
    assert "numba" in names and not names & (HEAVY | OURS_ABOVE)


def test_gym_make_imports_the_package_itself() -> None:
    code = (
        "import gymnasium, sys; assert 'aragog_env' not in sys.modules\n"
        "env = gymnasium.make('aragog_env:aragog/StageDispatch-v0', scenario='toy')\n"
        "assert env.spec.id == 'aragog/StageDispatch-v0'"
    )
    assert not loaded(code) & (HEAVY | OURS_ABOVE)


def test_public_names_are_there() -> None:
    import aragog_env

    for name in aragog_env.__all__:
        assert getattr(aragog_env, name) is not None and name in dir(aragog_env)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = aragog_env.nothing


def test_an_edit_of_any_compiled_module_gives_a_new_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else numba runs what it compiled before the edit."""
    compiled = [name for name in MODULES if ("aragog_env.jit", "module") in set(imports(name))]
    assert {"events", "progress", "engine.replica"} <= set(compiled)
    for name in compiled:
        copy = tmp_path / MODULES[name].relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(MODULES[name].read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(jit, "_PACKAGE", tmp_path)
    seen = {jit.sources_hash()}
    for name in compiled:
        copy = tmp_path / MODULES[name].relative_to(PACKAGE)
        copy.write_text(copy.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
        digest = jit.sources_hash()
        assert digest not in seen, f"aragog_env/{name} is not part of the cache key"
        seen.add(digest)
