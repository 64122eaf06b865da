"""The measured table, made from a small server that answers as models of known skill would."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("httpx")


from aragog_env.outcomes import OutcomeTable, configuration_digits, outcome_table
from aragog_env.specs.catalogue import model as catalogue_model
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_workflow
from scripts import measure_arithmetic_table
from scripts.arithmetic.expressions import work_out
from scripts.arithmetic.measuring import wilson
from scripts.arithmetic.servers import Cache, Completion
from workflows.arithmetic.stages import mirrored

NAMES = ("arithmetic-s", "arithmetic-m", "arithmetic-l")
QUERIES = 6


def perfect(prompt: str) -> str:
    """Return what is right for a prompt whose inputs are right (the verifier copies)."""
    tag, body = prompt[0], mirrored(prompt[1:].rstrip("\n"))
    if tag == "P":
        depth, parts = 0, [""]
        for char in body:
            depth += (char == "(") - (char == ")")
            if depth == 0 and char in "+-":
                parts.append(";" + char)
            else:
                parts[-1] += char
        return mirrored("".join(_bare(part) for part in parts))
    if tag == "S":
        steps = work_out(body)
        return mirrored(";".join(f"{s.left}{s.op}{s.right}={s.result}" for s in steps)) if steps else "?"
    if tag == "C":
        return mirrored(f"{body}={eval(body.replace('?', '0'), {'__builtins__': {}})}")
    return prompt.partition("|")[2].rstrip("\n")


def _bare(part: str) -> str:
    head = part[:2] if part.startswith(";") else ""
    body = part[len(head) :]
    if body.startswith("(") and body.endswith(")"):
        depth = 0
        for char in body[:-1]:
            depth += (char == "(") - (char == ")")
            if depth == 0:
                return part
        return head + body[1:-1]
    return part


class Handler(BaseHTTPRequestHandler):
    calls: Counter[str]
    broken: set[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions" and body["temperature"] == 0
        name, prompt = body["model"], body["prompt"]
        self.calls[f"{name} {prompt}"] += 1
        if prompt in self.broken and self.calls[f"{name} {prompt}"] == 1:
            self.send_error(503)
            return
        text = perfect(prompt)
        if name == "arithmetic-s" and prompt[0] == "C":
            text = text[:-1] + str((int(text[-1]) + 1) % 10)  # the small model never adds right
        if name == "arithmetic-l" and prompt[0] == "V":
            expression = mirrored(prompt[1:].partition("|")[0])
            text = mirrored(f"1+1={eval(expression, {'__builtins__': {}})}")  # the large one repairs everything
        answer = {"choices": [{"text": text}], "usage": {"completion_tokens": len(text) + 1}}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Fresh", (Handler,), {"calls": Counter(), "broken": {"P(2+14)+(57+5)\n", "P(2+41)+(75+5)\n"}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", handler
        http.shutdown()
        thread.join()


def arguments(url: str, folder: Path) -> list[str]:
    servers = [text for name in reversed(NAMES) for text in ("--server", f"{name}={url}")]
    return [*servers, "--queries", str(QUERIES), "--cache", str(folder / "calls.jsonl"), "--out", str(folder / "t.npz")]


def test_table_says_what_the_servers_did(
    server: tuple[str, type[Handler]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("scripts.arithmetic.servers.PAUSE_S", 0.01)
    url, handler = server
    assert measure_arithmetic_table.main(arguments(url, tmp_path)) == 0
    table = OutcomeTable.load(tmp_path / "t.npz")
    assert (table.kind, table.models, table.queries, table.configurations) == ("measured", NAMES, QUERIES, 729)
    digits = configuration_digits(3, 6)
    expected = (digits[:, 5] == 2) | (digits[:, 4] != 0)
    assert np.array_equal(table.p_correct, np.tile(expected.astype(np.float32), (QUERIES, 1)))
    assert max(handler.calls.values()) <= 2, "each distinct call is made once, and once more after a failure"
    assert len(capsys.readouterr().out) > 0
    workflow = load_workflow("arithmetic")
    again = outcome_table(unroll(workflow), [catalogue_model(name) for name in NAMES], tmp_path / "t.npz")
    assert again.query_texts == table.query_texts
    assert table.notes["summary"]["repaired_by_largest_verifier"] == 1.0
    assert table.notes["one_model_95"]["arithmetic-s"][0] == 0.0
    assert table.skipped[:, 3].any() and not table.skipped[:, 2].any()
    assert (table.output_tokens[~table.skipped] > 1).all()


def test_a_second_run_makes_no_calls(
    server: tuple[str, type[Handler]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.arithmetic.servers.PAUSE_S", 0.01)
    url, handler = server
    assert measure_arithmetic_table.main(arguments(url, tmp_path)) == 0
    first, made = (tmp_path / "t.npz").read_bytes(), sum(handler.calls.values())
    assert measure_arithmetic_table.main(arguments(url, tmp_path)) == 0
    assert sum(handler.calls.values()) == made
    assert (tmp_path / "t.npz").read_bytes() == first


def test_unreachable_servers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.arithmetic.servers.PAUSE_S", 0.0)
    assert measure_arithmetic_table.main(arguments("http://127.0.0.1:9", tmp_path)) == 2
    assert "did not answer in 4 tries" in capsys.readouterr().err
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize("text", ["arithmetic-s", "arithmetic-s=localhost", "aritmetic-s=http://127.0.0.1:9"])
def test_servers_are_named_properly(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_arithmetic_table.main(["--server", text]) == 2
    assert "--server" in capsys.readouterr().err


def test_a_cut_off_line_of_the_cache_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    cache = Cache(path)
    cache.add(("m", "p", 8), Completion("x", 2))
    cache.close()
    path.write_text(path.read_text() + '{"model": "m", "pro')
    cache = Cache(path)
    cache.add(("m", "q", 8), Completion("y", 2))
    cache.close()
    again = Cache(path)
    again.close()
    assert set(again.calls) == {("m", "p", 8), ("m", "q", 8)}


def test_wilson_interval_of_known_cases() -> None:
    low, high = wilson(np.array([0, 150, 300]), 300)
    assert low == pytest.approx([0.0, 0.4437, 0.9874], abs=1e-4)
    assert high == pytest.approx([0.0126, 0.5563, 1.0], abs=1e-4)
