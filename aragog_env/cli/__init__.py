"""The command `aragog`: one module per subcommand, imported only when it is asked for.

Exit codes: 0 ok, 1 a policy failed or results do not validate, 2 bad input (one sentence on standard error),
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

COMMANDS: Final[dict[str, str]] = {
    "evaluate": "run policies on scenarios and write results, a table and a report",
    "capacity": "sweep the arrival rate: throughput-latency curve, ceiling, capacity under the SLO",
    "report": "write the report of a results folder again",
    "validate": "re-run results and compare them bit for bit",
    "list": "list policies, scenarios, clusters, workflows, models, GPUs, arrivals, metrics",
    "describe": "show what a scenario consists of",
    "cluster": "start, watch and stop real vLLM servers",
    "export": "write the recording of a live run as JSON lines",
    "calibrate": "fit a cluster to recorded live runs: iteration times, overheads, shared processors",
    "fidelity": "compare live runs with their replay, and how policies rank in both",
    "profile": "measure throughput against load, and the saturation point, of every replica",
    "train": "train a scheduler: PPO, DQN or imitation of another policy",
    "export-model": "write a trained network as .pt2 or .onnx, for use without this project",
    "train-router": "train Aragog's router on a scenario's outcome tables, and report how good it is",
}
MODULES: Final[dict[str, str]] = {"list": "listing", "export-model": "export_model", "train-router": "train_router"}


class Parser(argparse.ArgumentParser):
    """An argument parser that answers bad input with one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and leave."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in COMMANDS:
        return _top_level(words)
    name = words[0]
    module = importlib.import_module(f".{MODULES.get(name, name)}", __name__)
    parser = Parser(prog=f"aragog {name}", description=module.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    module.add_arguments(parser)
    return _guarded(module.run, parser.parse_args(words[1:]))


def _top_level(words: list[str]) -> int:
    """Answer --help, --version and unknown commands without importing any command."""
    listing = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="aragog",
        description="Evaluate policies that schedule agentic LLM workflows on vLLM clusters.",
        epilog=f"commands:\n{listing}\n\n'aragog COMMAND --help' shows the options of a command.",
        formatter_class=argparse.RawTextHelpFormatter,
        usage="aragog [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parsed, _ = parser.parse_known_args(words)
    if parsed.version:
        import aragog_env

        print(aragog_env.__version__)
        return 0
    if parsed.command is not None:
        from ..errors import did_you_mean

        parser.error(f"unknown command '{parsed.command}'.{did_you_mean(parsed.command, COMMANDS)}")
    parser.print_help()
    return 0 if not words else 2


def _guarded(run: object, parsed: argparse.Namespace) -> int:
    """Turn what this package refuses to do into a sentence and an exit code."""
    from ..errors import AragogError

    try:
        code: int = run(parsed)  # type: ignore[operator]
        sys.stdout.flush()
        return code
    except AragogError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`aragog list | head`) has seen enough; do not complain again at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
