"""How fast everything is, on one core: ``python -m scripts.benchmark_speed [--quick] [--no-vllm]``.

Prints calls per second of the compiled engine, decisions per second of the environments, and the ratios to the plain-Python
reference engine and to the real vLLM scheduler, all measured in this run. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace

# One core: set before numba is imported.
os.environ["NUMBA_NUM_THREADS"] = "1"

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import aragog_env
from aragog_env.engine.open_loop import prepare, run_compiled, run_open_loop
from aragog_env.engine.reference import run_reference
from aragog_env.engine.workloads import WORKLOADS, EngineWorkload, synthetic_latency
from scripts.benchmark_beam import beam_round_ms
from scripts.oracle_runs import find_vllm_python, run_vllm

ENV_ID = "aragog/StageDispatch-v0"


def best_s(run: Callable[[], object], repeats: int) -> float:
    """Return the least wall time of `repeats` runs: the one that other work on the machine disturbed least."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def engine_workloads() -> dict[str, EngineWorkload]:
    """Return the engine loads: chat without and with the prefix cache, and multi-turn agents with it."""
    chat = WORKLOADS["chat"]()
    return {
        "chat, prefix cache off": EngineWorkload(replace(chat.config, enable_prefix_caching=False), chat.requests),
        "chat, prefix cache on": EngineWorkload(replace(chat.config, enable_prefix_caching=True), chat.requests),
        "agentic, prefix cache on": WORKLOADS["agentic"](),
    }


def benchmark_engines(table: Table, repeats: int, vllm: bool) -> None:
    """Measure calls per second of the three engines on the same requests."""
    python = find_vllm_python() if vllm else None
    loads = engine_workloads()
    real = run_vllm(python, {str(i): w for i, w in enumerate(loads.values())}) if python else {}
    for i, (name, workload) in enumerate(loads.items()):
        latency = synthetic_latency(workload.config)
        tables, state, packed = prepare(workload.config, latency, workload.requests)
        run_open_loop(state, 0, tables, packed)
        seconds = best_s(lambda t=tables, s=state, p=packed: run_open_loop(s, 0, t, p), repeats)  # type: ignore[misc]
        reference_s = best_s(lambda w=workload, x=latency: run_reference(w.config, x, w.requests), 1)  # type: ignore[misc]
        n = len(workload.requests)
        iterations = run_compiled(workload.config, latency, workload.requests).iterations
        row = (
            f"{n / seconds:,.0f} calls/s",
            f"{iterations / seconds:,.0f} iterations/s",
            f"{reference_s / seconds:,.0f}x",
        )
        table.add_row(f"compiled engine: {name}", *row, f"{real[str(i)][1] / seconds:,.0f}x" if real else "-")


def benchmark_vector(environments: int, steps: int, repeats: int, **overrides: object) -> float:
    """Return decisions per second of the vector environment, the action taken from the observation, resets included."""
    env = gym.make_vec(
        ENV_ID, num_envs=environments, vectorization_mode="vector_entry_point", overrides=overrides, copy=False
    )
    slots_routes = int(env.single_action_space.n)  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=0)
    # The first allowed route of the oldest call, rotating by environment: valid whenever a call is ready.
    turn = np.arange(environments)

    def act(mask: np.ndarray) -> np.ndarray:
        chosen: np.ndarray = (mask * (1 + (np.arange(slots_routes) + turn[:, None]) % 7)).argmax(axis=1)
        return chosen

    def run() -> None:
        nonlocal observation
        for _ in range(steps):
            observation, *_ = env.step(act(observation["action_mask"]))

    run()
    acting = best_s(lambda: [act(observation["action_mask"]) for _ in range(steps)], 1)
    return steps * environments / (best_s(run, repeats) - acting)


def benchmark_single(steps: int, repeats: int) -> float:
    """Return steps per second of one environment through `gym.make`, resets included."""
    env = gym.make(ENV_ID)
    _, info = env.reset(seed=0)

    def run() -> None:
        nonlocal info
        for _ in range(steps):
            _, _, terminated, truncated, info = env.step(int(info["action_mask"].argmax()))
            if terminated or truncated:
                _, info = env.reset()

    run()
    return steps / best_s(run, repeats)


def main() -> None:
    """Run everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--no-vllm", action="store_true", help="leave the real vLLM scheduler out")
    options = parser.parse_args()
    repeats = 3 if options.quick else 10
    table = Table(title=f"one core of {platform.processor() or platform.machine()}, best of {repeats}")
    for column in ("what", "speed", "", "vs reference", "vs real vLLM scheduler"):
        table.add_column(column, justify="left" if column == "what" else "right")
    benchmark_engines(table, repeats, not options.no_vllm)
    for n in (1, 64):
        table.add_row(
            f"vector environment, {n} envs", f"{benchmark_vector(n, 64000 // n // 8, repeats):,.0f} decisions/s"
        )
    table.add_row("single environment (gym.make)", f"{benchmark_single(4000, repeats):,.0f} steps/s")
    table.add_row("Aragog's round: 64 ready calls, 3 models, B=4", f"{beam_round_ms():.3f} ms (median)")
    Console(width=140).print(table)
    print(f"aragog-gym {aragog_env.__version__}, default scenario; cpu count {os.cpu_count()}")


if __name__ == "__main__":
    main()
