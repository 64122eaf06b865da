"""A small live world: a workflow with every kind of stage, its questions, a cluster of fake servers, and a scenario."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aragog_env.backends.live import LiveBackend, LiveOptions
from aragog_env.servers.client import Timeouts
from aragog_env.servers.endpoints import Endpoint
from aragog_env.servers.pool import PoolOptions
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from tests.live.fake_server import FakeServer

WORKFLOW = """\
name: errand
description: Draft, two votes and a tool side by side, a last word that easy questions skip.
queries: 12
query_tokens: {median: 10, maximum: 20}
dataset_format: jsonl
dataset_files: [questions.jsonl]
grader: functions.py:grade
accuracy_by_size_b: {0.187: 0.5, 8.047: 0.9}
stages:
  - name: draft
    prompt: {template: draft.txt, template_tokens: 10}
    output: {median_by_size_b: {1: 5}, sigma: 0, max_tokens: 16}
  - name: vote
    parents: [draft]
    fan_out: {probabilities: [0, 1]}
    prompt: {template: vote.txt, template_tokens: 10}
    output: {median_by_size_b: {1: 5}, sigma: 0, max_tokens: 16}
  - name: measure
    kind: tool
    tool: functions.py:measure
    parents: [draft]
    tool_s: {median_s: 0.01}
    tool_output: {median: 2, maximum: 8}
  - name: last
    parents: [vote, measure]
    prompt: {template: last.txt, template_tokens: 10}
    skip: {on: draft, probability_by_size_b: {1: 0.5}, when: "functions.py:is_easy", instead: draft}
    output: {median_by_size_b: {1: 5}, sigma: 0, max_tokens: 16}
"""
FUNCTIONS = """\
from aragog_env.grading.grade import right_or_wrong
from aragog_env.grading.tools import ToolResult

def grade(record, answer):
    return right_or_wrong(answer.split()[-1] if answer else None, record.gold)

def measure(call):
    return ToolResult(str(len(call.inputs["draft"][0])), True, 0.0)

def is_easy(text):
    return text.startswith("easy")
"""
TEMPLATES = {
    "draft.txt": "DRAFT {query}",
    "vote.txt": "VOTE {copy} {query} {draft}",
    "last.txt": "LAST {query} {vote} {measure}",
}
MODELS = ("toy-small", "toy-large")
NODES = 5


def answer(prompt: str) -> str:
    """What every fake server says: questions with an even number are easy."""
    words = prompt.split()
    if words[0] == "DRAFT":
        number = int(words[1].removeprefix("q"))
        return f"{'easy' if number % 2 == 0 else 'hard'} one gold{number}"
    if words[0] == "VOTE":
        return f"voter {words[1]} agrees"
    return f"so gold{words[1].removeprefix('q')}"


def write_workflow(folder: Path) -> Path:
    """Write the workflow; a third of the questions has another right answer than the servers give."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workflow.yaml").write_text(WORKFLOW)
    (folder / "functions.py").write_text(FUNCTIONS)
    for name, text in TEMPLATES.items():
        (folder / name).write_text(text)
    rows = [f'{{"id": "id{i}", "query": "q{i}", "gold": "{"gold" if i % 3 else "other"}{i}"}}' for i in range(12)]
    (folder / "questions.jsonl").write_text("\n".join(rows))
    return folder / "workflow.yaml"


def make_scenario(
    folder: Path, *, requests: int = 4, rate_rps: float = 50.0, copies: int = 1, **changes: Any
) -> Scenario:
    """Return a scenario over `copies` replicas each of a small and a large model."""
    workflow = write_workflow(folder / "errand")
    base = load_scenario("toy")
    replicas = tuple(replace(r, count=copies, num_gpu_blocks=None) for r in base.cluster.replicas if r.model in MODELS)
    scenario = replace(
        base,
        name="errands",
        cluster=replace(base.cluster, replicas=replicas),
        workload=replace(base.workload, mix=(replace(base.workload.mix[0], workflow=str(workflow)),)),
        horizon=replace(base.horizon, warmup_requests=0),
    )
    return override(scenario, requests=requests, rate_rps=rate_rps, **changes)


PATIENT = LiveOptions(
    ready_s=60.0,
    timeouts=Timeouts(connect_s=60.0, first_token_s=120.0, between_tokens_s=120.0, probe_s=60.0),
    pool=PoolOptions(metrics_interval_s=0.05, unresponsive_s=120.0, quarantine_s=0.1),
)
"""Nothing takes too long, however loaded the machine: a server is down when its connections break, and only then."""
QUICK = replace(PATIENT, unservable_s=1.5, ready_s=3.0)
"""For what ends because nobody comes any more."""


def endpoints_of(scenario: Scenario, servers: Sequence[FakeServer]) -> list[Endpoint]:
    replicas = scenario.cluster.expand()
    return [
        Endpoint(replica.name, replica.model, server.url, replica.model)
        for replica, server in zip(replicas, servers, strict=True)
    ]


@contextmanager
def world(
    folder: Path, *, options: LiveOptions = PATIENT, **changes: Any
) -> Iterator[tuple[LiveBackend, list[FakeServer]]]:
    """Yield a live backend over fake servers, one per replica."""
    scenario = make_scenario(folder, **changes)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(FakeServer(answer, model=replica.model)) for replica in scenario.cluster.expand()
        ]
        made = LiveBackend(scenario, endpoints_of(scenario, servers), recording=folder / "run.db", options=options)
        yield stack.enter_context(made), servers
