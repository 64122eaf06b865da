"""Throughput-load profiles of real servers: the same file as `profile` makes on the simulator, measured with a clock.

Each server alone, one load after the other: `load` clients send calls without thinking, for a stated time. Calls have the
lengths that the scenario's workflows make, whatever the model would like to say (`ignore_eos`); prompts are made of its
questions, each beginning elsewhere, so that no prompt is found in the prefix cache. Throughput is counted in tokens that
arrive once the load stands (the last three quarters of the time), divided by the mean output of a call: many tokens say more
than few calls.

With a recording, every call is written down for `aragog calibrate`, and then several servers are loaded at once: what that
does to each of them shows whether they share a processor.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ..backends.live import LiveOptions
from ..backends.live.queries import live_queries
from ..backends.live.record import call_values, open_recording
from ..compiled_scenario import CompiledScenario, compile_scenario
from ..errors import AragogError, SpecError
from ..recording.writer import RecordingWriter
from ..servers.client import CallError, Completion, CompletionRequest, ServerClient
from ..servers.endpoints import Endpoint, in_route_order
from ..specs.scenario import Scenario
from .profile import LOADS, Profile, ReplicaProfile, draw_calls
from .provenance import machine, versions

_SETTLED = 0.25
"""Share of the time of a load that passes before tokens count."""
_SAMPLE = 600
_PROBE_CHARACTERS = 60
_TOGETHER_LOAD = 2
_MOST_PAIRS = 3


@dataclass(frozen=True)
class _Server:
    """One server, and the calls that it gets."""

    route: int
    endpoint: Endpoint
    client: ServerClient
    calls: Iterator[tuple[str, int]]
    """Prompts and output tokens, without end."""


class LiveProfiler:
    """Loads servers and counts.

    Args:
        scenario: its workflows make the calls; its cluster is the one that is served.
        endpoints: where each replica answers.
        seconds: for each server, over all loads; the calls under way at the end of a load are awaited on top.
        recording: a file to write every call into; also loads several servers at once, for `seconds` in all.
        progress: told what is done next.

    Raises:
        SpecError: the scenario cannot be run live, or a replica has no endpoint.
    """

    def __init__(
        self,
        scenario: Scenario,
        endpoints: Sequence[Endpoint],
        *,
        seconds: float = 60.0,
        recording: Path | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        if not seconds > 0:
            raise SpecError(f"a profile needs some seconds per server, not {seconds:g}")
        self.compiled: CompiledScenario = compile_scenario(scenario)
        replicas = self.compiled.replicas
        self.endpoints = in_route_order(endpoints, [r.name for r in replicas], [r.model for r in replicas])
        self._seconds, self._recording, self._progress = seconds, recording, progress
        queries = live_queries(self.compiled)
        self._info = queries.info(self.compiled)
        self._text = "".join(record.query for records in queries.records for record in records)
        if not self._text:
            raise SpecError("the data sets of this scenario have no text to make prompts of")
        self._writer: RecordingWriter | None = None
        self._zero_s = 0.0
        self._number = 0

    def run(self) -> Profile:
        """Measure.

        Raises:
            AragogError: a server fails a call.
        """
        if self._recording is not None:
            options = LiveOptions(ignore_eos=True)
            self._writer = open_recording(
                self._recording, self.compiled, self._info, "profile", 0, options, resume=False
            )
        self._zero_s = time.perf_counter()
        ending = "failed"
        try:
            if self._writer is not None:
                servers = [{"name": e.name, "url": e.url} for e in self.endpoints]
                self._writer.begin_session(0.0, versions=versions(), machine=machine(), isolation=[], servers=servers)
            profile = asyncio.run(self._measure())
            ending = "profile"
            return profile
        finally:
            if self._writer is not None:
                self._writer.lose_calls("the profile was stopped")
                self._writer.end_session(time.perf_counter() - self._zero_s, ending)
                self._writer.close()

    async def _measure(self) -> Profile:
        before = machine()["load"]
        servers = [await self._server(route) for route in range(len(self.endpoints))]
        try:
            entries = [await self._alone(server) for server in servers]
            if self._writer is not None and len(servers) > 1:
                await self._together(servers)
        finally:
            for server in servers:
                await server.client.close()
        made = datetime.now(UTC).isoformat(timespec="seconds")
        source = f"live, {made}, {self._seconds:g} s per server, load before {', '.join(map(str, before[:1]))}"
        scenario = self.compiled.scenario
        return Profile(f"{scenario.name} on {scenario.cluster.name}", source, tuple(entries))

    async def _server(self, route: int) -> _Server:
        """Connect to a server and find out how many tokens a character makes."""
        endpoint = self.endpoints[route]
        client = ServerClient(endpoint)
        text = self._text * (1 + _PROBE_CHARACTERS // len(self._text))
        try:
            answer = await client.complete(CompletionRequest(text[:_PROBE_CHARACTERS], 1, ignore_eos=True))
        except CallError as error:
            await client.close()
            raise AragogError(f"'{endpoint.name}' at {endpoint.url} fails a call: {error}") from error
        per_character = max(answer.prompt_tokens, 1) / _PROBE_CHARACTERS
        return _Server(route, endpoint, client, self._calls(route, per_character))

    def _calls(self, route: int, tokens_per_character: float) -> Iterator[tuple[str, int]]:
        """Yield prompts and output lengths as the workflows make them, each prompt from another place of the text."""
        sample = draw_calls(self.compiled, route, _SAMPLE)
        rng = np.random.default_rng(route)
        for i in itertools.count():
            prompt, output = int(sample.prompt[i % len(sample.prompt)]), int(sample.output[i % len(sample.output)])
            length = max(1, round(prompt / tokens_per_character))
            begin = int(rng.integers(len(self._text)))
            text = self._text[begin:] + self._text * (1 + length // len(self._text))
            yield text[:length], output

    async def _alone(self, server: _Server) -> ReplicaProfile:
        """Measure one server under all loads."""
        limit = self.compiled.engines[server.route].max_num_seqs
        loads = sorted({*(load for load in LOADS if load < limit), limit})
        seconds = self._seconds / len(loads)
        rates, prompts, outputs = [], [], []
        for load in loads:
            self._progress(f"{server.endpoint.name}: {load} calls at once, {seconds:.0f} s")
            begin_s = time.perf_counter()
            done = await self._load(server, load, seconds)
            window = (begin_s + _SETTLED * seconds, begin_s + seconds)
            tokens = sum(_tokens_within(answer, *window) for answer in done)
            mean = float(np.mean([answer.output_tokens for answer in done]))
            rates.append(tokens / (window[1] - window[0]) / mean)
            prompts += [answer.prompt_tokens for answer in done]
            outputs += [answer.output_tokens for answer in done]
        if not all(rate > 0 for rate in rates):
            raise SpecError(
                f"'{server.endpoint.name}' wrote nothing in {seconds:g} s; give --seconds more than {self._seconds:g}"
            )
        replica = self.compiled.replicas[server.route]
        return ReplicaProfile(
            names=(replica.name,),
            model=replica.model,
            gpu=replica.gpu,
            tp=replica.tp,
            max_num_seqs=limit,
            loads=tuple(loads),
            throughput_rps=tuple(rates),
            prompt_tokens=float(np.mean(prompts)),
            output_tokens=float(np.mean(outputs)),
        )

    async def _together(self, servers: Sequence[_Server]) -> None:
        """Load several servers at once: up to three pairs, and all."""
        groups: list[tuple[_Server, ...]] = [tuple(servers)]
        if len(servers) > 2:
            groups += list(itertools.combinations(servers, 2))[:_MOST_PAIRS]
        seconds = self._seconds / len(groups)
        for group in groups:
            names = ", ".join(server.endpoint.name for server in group)
            self._progress(f"together: {names}, {_TOGETHER_LOAD} calls at once each, {seconds:.0f} s")
            await asyncio.gather(*(self._load(server, _TOGETHER_LOAD, seconds) for server in group))

    async def _load(self, server: _Server, load: int, seconds: float) -> list[Completion]:
        """Keep `load` calls at a server for some seconds; return the calls once all have ended."""
        until_s = time.perf_counter() + seconds

        async def client() -> list[Completion]:
            done = []
            while time.perf_counter() < until_s:
                done.append(await self._call(server, *next(server.calls)))
            return done

        return [answer for mine in await asyncio.gather(*(client() for _ in range(load))) for answer in mine]

    async def _call(self, server: _Server, prompt: str, output: int) -> Completion:
        """Make one call and write it down."""
        number = self._note(server, prompt, output)
        try:
            answer = await server.client.complete(CompletionRequest(prompt, output, ignore_eos=True))
        except CallError as error:
            raise AragogError(f"'{server.endpoint.name}' fails a call of the profile: {error}") from error
        if self._writer is not None:
            self._writer.call(number, **call_values(answer, self._at, self._at(time.perf_counter())))
        return answer

    def _at(self, raw_s: float) -> float:
        return raw_s - self._zero_s

    def _note(self, server: _Server, prompt: str, output: int) -> int:
        if self._writer is None:
            return -1
        now_s = self._at(time.perf_counter())
        self._number += 1
        return self._writer.dispatch(
            decision=None, request=self._number, node=0, stage="profile", attempt=1, route=server.route,
            server=server.endpoint.name, model=server.endpoint.model, priority=0, ready_s=now_s, dispatch_s=now_s,
            max_tokens=output, prompt=prompt,
        )  # fmt: skip


def _tokens_within(answer: Completion, begin_s: float, end_s: float) -> int:
    """Return how many output tokens of a call arrived in an interval."""
    before = after = 0
    for time_s, count in zip(answer.token_s, answer.token_count, strict=True):
        if time_s < begin_s:
            before = count
        if time_s < end_s:
            after = count
    return after - before
