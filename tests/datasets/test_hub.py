"""Fetching, from a server of our own in place of the publishers'."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from aragog_env.datasets import load_dataset
from aragog_env.datasets.hub import SOURCES, DownloadError, Source, fetch
from aragog_env.errors import SpecError
from scripts import download_datasets

ROWS = [
    {"question_id": k, "question": f"{k}?", "options": ["x", "y"], "answer": "AB"[k % 2], "category": "c"}
    for k in range(230)
]


def viewer(url: str, *, cut: bool = False) -> bytes:
    query = {key: value[0] for key, value in parse_qs(urlparse(url).query).items()}
    assert query["dataset"] == "TIGER-Lab/MMLU-Pro" and query["split"] == "test" and int(query["length"]) <= 100
    offset = int(query["offset"])
    page = ROWS[offset : offset + int(query["length"])]
    rows = [
        {"row_idx": offset + k, "row": row, "truncated_cells": ["question"] if cut else []}
        for k, row in enumerate(page)
    ]
    return json.dumps({"features": [], "rows": rows, "num_rows_total": len(ROWS)}).encode()


def test_rows_are_fetched_page_by_page(tmp_path: Path) -> None:
    urls: list[str] = []

    def get(url: str) -> bytes:
        urls.append(url)
        return viewer(url)

    path = fetch("mmlu_pro", tmp_path, get=get)
    assert len(urls) == 3 and len(load_dataset("mmlu_pro", path)) == 230
    assert fetch("mmlu_pro", tmp_path, get=get) == path and len(urls) == 3, "a file that is there is kept"
    assert [file.name for file in tmp_path.iterdir()] == ["mmlu_pro.jsonl"]


def test_answers_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    for get in (
        lambda url: viewer(url, cut=True),
        lambda url: b"<html>",
        lambda url: b'{"rows": [], "num_rows_total": 5}',
        lambda url: b"[]",
    ):
        with pytest.raises(DownloadError, match="no proper page"):
            fetch("mmlu_pro", tmp_path, get=get)
    with pytest.raises(DownloadError, match=r"no archive with 'strategyqa_train\.json'"):
        fetch("strategyqa", tmp_path, get=lambda url: b"PK")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_an_archive(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/strategyqa_train.json", json.dumps([{"qid": "1", "question": "q", "answer": True}]))
    path = fetch("strategyqa", tmp_path, get=lambda url: packed.getvalue())
    assert load_dataset("strategyqa", path)[0].gold == "yes"


def test_what_has_no_source(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="make_sqlite_database"):
        fetch("bird", tmp_path)
    with pytest.raises(SpecError, match="Did you mean 'squad'"):
        fetch("squat", tmp_path)


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/HumanEval.jsonl"
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                problem = {"task_id": "T/0", "prompt": "p", "entry_point": "f", "canonical_solution": "c", "test": "t"}
                self.wfile.write(json.dumps(problem).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_over_http(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path = fetch("humaneval", tmp_path, source=Source("HumanEval.jsonl", "MIT", f"{server}/HumanEval.jsonl"))
    assert load_dataset("humaneval", path)[0].id == "T/0"
    with pytest.raises(DownloadError, match=r"cannot fetch .*ARAGOG_DATASETS"):
        fetch("humaneval", tmp_path, source=Source("other.jsonl", "MIT", f"{server}/missing"))


def test_sources_name_licence_and_place() -> None:
    for source in SOURCES.values():
        assert source.licence and bool(source.url) != bool(source.rows)
        assert not source.url or source.url.startswith("https://")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(download_datasets, "fetch", lambda name, folder: fetch(name, folder, get=viewer))
    assert download_datasets.main(["mmlu_pro", "--to", str(tmp_path)]) == 0
    assert "230 questions" in capsys.readouterr().out
    assert download_datasets.main(["bird", "--to", str(tmp_path)]) == 1
    assert "bird-bench" in capsys.readouterr().err
