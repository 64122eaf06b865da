"""What all learners share beside learning: settings, the folder of a run, curves on disk and in W&B, a profile, Ctrl-C."""

from __future__ import annotations

import ast
import inspect
import io
import json
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, ClassVar, Final, Literal, TypeVar

import numba
import torch

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.errors import SpecError
from aragog_env.files import write_atomically
from aragog_env.harness import tracking
from aragog_env.harness.pool import usable_cores
from aragog_env.harness.profile import SATURATION_SHARE
from aragog_env.harness.provenance import session_record
from aragog_env.harness.training_curves import curve_point, log_curve, training_key
from aragog_env.reward import reference_latency_s
from aragog_env.specs.bounds import Count, NonNegative, NonNegativeInt, Positive, Share
from aragog_env.specs.sampler import ScenarioSampler, load_sampler, read_sampler
from aragog_env.specs.scenario import Scenario
from aragog_env.specs.strict import Source, dump_yaml, loads
from policies.viability import POINTS

from .features import NONE, Rules
from .model_file import Kind

SCHEMA: Final = 1
_TELL_EVERY_S: Final = 10.0
_TOLD: Final = (
    "steps", "steps_per_s", "jct_mean_s", "accuracy", "loss", "entropy", "kl", "explained_variance",
    "eval/reward", "eval/jct_mean_s", "eval/accuracy",
)  # fmt: skip
_CHECKPOINT: Final = ("run.json", "state.pt", "curve.jsonl", "profile.json")
T = TypeVar("T", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Settings of every learner."""

    kind: ClassVar[Kind]

    steps: Count = 2_000_000
    """Decisions in all environments together; learning rates fall with their share that is done."""
    envs: Count = 64
    """Environments stepped in one compiled call."""
    seed: NonNegativeInt = 0
    """Of weights, traffic and choices."""
    width: Count = 32
    """Units of every layer."""
    viable: str = NONE
    """Source of viable sets that narrow the actions: none, router, oracle, or a router's checkpoint."""
    hold: Share = SATURATION_SHARE
    """Calls are held back from servers whose load gives this share of their maximum throughput, as Aragog does; 0: never."""
    wait: bool = False
    """Whether it may wait although something can be sent."""
    window: NonNegativeInt = 0
    """So many of the oldest ready calls are looked at, and those that can be sent now are shown first; 0: the oldest are."""
    order: str = "arrival"
    """Order in which calls are shown apart from that: arrival, work (the least until the answer first) or price."""
    point_s: NonNegative = 0.0
    """Seconds that one point of expected accuracy loss costs a request, above 0 instead of hard viable sets."""
    most_loss: Positive = 20.0
    """In points, with `point_s`: what is expected to lose more is not open."""
    accuracy_weight: NonNegative | None = None
    """Price of a right answer in the reward, in latencies of the SLO; empty: what `point_s` says, the scenario's where there
    are no viable sets, 0 where they guard the accuracy, since which answers turn out right is noise then."""
    beta_per_s: NonNegative | None = None
    """Discount rate; empty: `discount_slos` decides."""
    discount_slos: Positive = 1.0
    """Time after which the future counts 1/e, in latencies of the SLO: long enough for queues to show what a decision cost."""
    ready_slots: Count | None = None
    """Ready calls that the network sees; empty: the scenario's."""
    sampler: str = ""
    """A file that scenarios of training are drawn from (docs/scale.md); evaluations are of the run's own scenario."""
    start: str = ""
    """A model whose weights to start from: file or folder of a training run."""
    evaluate_every: NonNegativeInt = 20
    """Updates between evaluations with greedy choices; 0: never. The best model of these is kept as best.safetensors."""
    evaluate_episodes: Count = 16
    """Episodes of an evaluation, always of the same traffic, which no training episode has."""
    save_minutes: Positive = 5.0
    """Minutes between checkpoints."""
    device: str = "auto"
    """A torch device; auto: a GPU where there is one."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Of the network's arithmetic; auto: bf16 on a GPU."""
    threads: NonNegativeInt = 0
    """Of torch on the CPU and of the simulation; 0: one per core. Resuming is bit-equal for the same number."""

    @property
    def rules(self) -> Rules:
        """Which actions are open."""
        return Rules(self.viable, self.hold, self.wait, self.window, self.order, self.point_s, self.most_loss)

    def torch_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            SpecError: torch does not have it.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise SpecError(f"torch has no device '{name}' here; leave out device, or set it to cpu") from error
        return device

    def use_bf16(self, device: torch.device) -> bool:
        """Return whether to compute in mixed precision."""
        return self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")

    def objective(self, scenario: Scenario) -> Scenario:
        """Return the scenario with this price of accuracy, discount rate and number of slots."""
        reference_s = reference_latency_s(compile_scenario(scenario))
        beta_per_s = self.beta_per_s
        if beta_per_s is None:
            beta_per_s = 1.0 / (self.discount_slos * reference_s)
        price = self.accuracy_weight
        if price is None:
            of_point = POINTS * self.point_s / reference_s
            price = scenario.objective.accuracy_weight if self.viable == NONE else of_point
        objective = replace(scenario.objective, accuracy_weight=price, beta_per_s=beta_per_s)
        slots = self.ready_slots or scenario.observation.ready_slots
        return replace(scenario, objective=objective, observation=replace(scenario.observation, ready_slots=slots))


def read_settings(cls: type[T], given: list[str]) -> T:
    """Return settings from words like ``width=64``.

    Raises:
        SpecError: an unknown name or a value that is not possible.
    """
    if not given:
        return cls()
    lines = []
    for word in given:
        name, equals, value = word.partition("=")
        if not equals:
            raise SpecError(f"expected NAME=VALUE, got '{word}'", where="--set")
        lines.append(f"{name.strip()}: {value}")
    return loads(cls, "\n".join(lines), Source("--set"))


def describe_settings(cls: type[Settings]) -> str:
    """Return the settings of a learner as text: name, default, and what the docstring below each says."""
    lines = []
    for owner in (base for base in reversed(cls.__mro__) if is_dataclass(base)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for entry, after in pairwise([*body.body, ast.Pass()]):
            if not isinstance(entry, ast.AnnAssign) or (name := ast.unparse(entry.target)) == "kind":
                continue
            default = cls.__dataclass_fields__[name].default
            lines.append(f"{name}={'' if default is None else default}")
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
                lines.append(textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)


@dataclass
class Stopwatch:
    """Wall-clock seconds by part of the work."""

    seconds: dict[str, float] = field(default_factory=lambda: {"environment": 0.0, "network": 0.0, "update": 0.0})

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time of a block."""
        begin = perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - begin

    def line(self, steps: int) -> str:
        """Return where the time went, in words."""
        total = sum(self.seconds.values()) or 1.0
        shares = ", ".join(f"{name} {value / total:.0%}" for name, value in self.seconds.items())
        return f"{steps:,} steps in {total:.1f} s, {steps / total:,.0f} steps/s: {shares}"


class TrainingRun:
    """The folder of one run: run.json, state.pt, curve.jsonl, profile.json, and the models.

    Args:
        folder: where.
        scenario: what is trained on; None with `resume`, which reads it from run.json.
        settings: how; with `resume`, the class of settings, of which run.json holds the values.
        resume: go on with a folder.
        minutes: stop after so long; None: when all steps are done.
        steps: with `resume`, another number of steps than run.json says.
        wandb: mirror the curve to Weights & Biases: off, offline or online.
        name: of the W&B run; None: the folder's. `group`: None: the name of the folder that it lies in.
        tell: is told about progress.
        should_stop: asked before every update; when it says so, the run ends as with Ctrl-C, but returns.

    Raises:
        SpecError: the folder holds another run, or none to resume.
    """

    def __init__(
        self,
        folder: Path,
        scenario: Scenario | None,
        settings: Settings | type[Settings],
        *,
        resume: bool = False,
        minutes: float | None = None,
        steps: int | None = None,
        wandb: str = "off",
        name: str | None = None,
        group: str | None = None,
        tell: Callable[[str], None] = print,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.tell = folder, tell
        self.kind = settings.kind
        self._should_stop = should_stop
        tracked = tracking.check_mode(wandb)
        if resume:
            self._read(settings if isinstance(settings, type) else type(settings), steps)
        else:
            assert scenario is not None and isinstance(settings, Settings)
            self._create(scenario, settings)
        self.about["sessions"].append(session_record())
        write_atomically(folder / "run.json", json.dumps(self.about, indent=2).encode() + b"\n")
        threads = self.settings.threads or usable_cores()
        torch.set_num_threads(threads)
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        self.watch = Stopwatch()
        self._minutes, self._begin, self._saved = minutes, perf_counter(), perf_counter()
        self._interrupted, self._told = False, 0.0
        self._logged = (self._begin, 0)
        self._tracked = self._track(wandb, name, group) if tracked else None

    def _create(self, scenario: Scenario, settings: Settings) -> None:
        # A run that was refused or killed before its first point left nothing worth keeping.
        if any((self.folder / name).exists() for name in ("state.pt", "curve.jsonl")):
            raise SpecError(
                "this folder already holds a training run; add --resume, or choose another --out",
                where=str(self.folder),
            )
        sampler = load_sampler(settings.sampler) if settings.sampler else None
        if sampler is not None and self.kind == "imitation":
            raise SpecError("imitation trains on its scenario alone; leave out the sampler", where="--sampler")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"cannot make this folder ({error.strerror})", where=str(self.folder)) from error
        self.scenario, self.settings = scenario, settings
        self.about: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": self.kind,
            "scenario": dump_yaml(scenario),
            "settings": dump_yaml(settings),
            "sessions": [],
        }
        if sampler is not None:
            self.about["sampler"] = dump_yaml(sampler)

    def _read(self, cls: type[Settings], steps: int | None) -> None:
        path = self.folder / "run.json"
        try:
            self.about = json.loads(path.read_text())
            schema, kind = self.about["schema"], self.about["kind"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError("there is no training run to resume", where=str(self.folder)) from error
        if schema != SCHEMA:
            raise SpecError(f"this run has another schema than {SCHEMA}; train again", where=str(path))
        if kind != self.kind:
            raise SpecError(f"this is a run of '{kind}', not of '{self.kind}'", where=str(path))
        self.scenario = loads(Scenario, self.about["scenario"], Source(str(path)))
        text = self.about["settings"]
        self.settings = cls() if text.strip() in ("", "{}") else loads(cls, text, Source(str(path)))
        if steps is not None:
            self.settings = replace(self.settings, steps=steps)
            self.about["settings"] = dump_yaml(self.settings)

    @property
    def sampler(self) -> ScenarioSampler | None:
        """What the scenarios of training are drawn from; None: they are the run's own."""
        text = self.about.get("sampler")
        return read_sampler(text, str(self.folder / "run.json")) if text else None

    def save_state(self, state: dict[str, Any]) -> None:
        """Write everything that a resumed run needs, whole or not at all."""
        buffer = io.BytesIO()
        torch.save({"schema": SCHEMA, "kind": self.kind, **state}, buffer)
        write_atomically(self.folder / "state.pt", buffer.getvalue())
        self._saved = perf_counter()

    def load_state(self) -> dict[str, Any] | None:
        """Return the last state, None if there is none yet.

        Raises:
            SpecError: it is damaged or of another kind.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            if (state["schema"], state["kind"]) != (SCHEMA, self.kind):
                raise SpecError(f"this is a state of '{state['kind']}' in schema {state['schema']}", where=str(path))
        except SpecError:
            raise
        except Exception as error:  # torch raises whatever the first damaged byte leads to
            raise SpecError("this is not a complete training state", where=str(path)) from error
        return state

    @property
    def save_due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return perf_counter() - self._saved > 60.0 * self.settings.save_minutes

    @property
    def stop(self) -> bool:
        """Whether time is up or the user interrupted."""
        late = self._minutes is not None and perf_counter() - self._begin > 60.0 * self._minutes
        return late or self._interrupted or self._should_stop()

    def log(self, row: dict[str, Any]) -> None:
        """Append a point of the learning curve; `row` has `update` and `steps`."""
        now, steps = perf_counter(), row["steps"]
        speed = (steps - self._logged[1]) / (now - self._logged[0])
        self._logged = (now, steps)
        row = row | {"steps_per_s": round(speed, 1), "wall_s": round(now - self._begin, 3)}
        with (self.folder / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._tracked is not None:
            self._tracked.log(curve_point(row), step=row["update"])
        if "eval/reward" in row or perf_counter() - self._told > _TELL_EVERY_S:
            self._told = perf_counter()
            shown = {k: v for k, v in row.items() if k in _TOLD}
            self.tell(", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in shown.items()))

    def rewind_curve(self, update: int) -> None:
        """Drop the points after an update: a resumed run makes them again."""
        path = self.folder / "curve.jsonl"
        if not path.exists():
            return
        kept = [
            line
            for line in path.read_text().splitlines()
            if line.endswith("}") and json.loads(line)["update"] <= update
        ]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())

    def finish(self, steps: int) -> None:
        """Write the profile, end the W&B run, and raise KeyboardInterrupt if that is how it ended."""
        self.tell(self.watch.line(steps))
        profile = {"steps": steps, "seconds": self.watch.seconds, "threads": torch.get_num_threads()}
        write_atomically(self.folder / "profile.json", json.dumps(profile, indent=2).encode() + b"\n")
        if self._tracked is not None:
            tracked, self._tracked = self._tracked, None
            for file in sorted(self.folder.glob("*.safetensors")):
                tracking.log_files(tracked, f"{tracked.id}-{file.stem}", "model", {file.name: file}, steps=steps)
            files = {name: path for name in _CHECKPOINT if (path := self.folder / name).exists()}
            tracking.log_files(tracked, f"{tracked.id}-checkpoint", "checkpoint", files, steps=steps)
            tracked.finish()
        if self._interrupted:
            raise KeyboardInterrupt

    def _track(self, mode: str, name: str | None, group: str | None) -> Any:
        """Begin the W&B run, or go on with it."""
        folder = self.folder.resolve()
        name = name or folder.name
        tracked = tracking.start(
            folder,
            mode=mode,
            key=training_key(name, self.about["sessions"][0]["started"]),
            name=name,
            group=group or folder.parent.name,
            job_type="train",
            tags=(self.kind, self.scenario.name),
            config={"learner": self.kind, "scenario": self.scenario.name, **asdict(self.settings)},
            resume=True,
        )
        log_curve(tracked)
        return tracked

    @contextmanager
    def running(self, steps: int) -> Iterator[None]:
        """Let the first Ctrl-C end the run after the present update; the second one ends it at once.

        Args:
            steps: done so far.
        """
        self._logged = (perf_counter(), steps)
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            self.tell("interrupted: saving after this update (once more: at once, without saving)")

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
