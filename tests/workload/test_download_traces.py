"""The trace downloader: its table, and all it does that needs no network (a local server stands in)."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import download_traces
from scripts.download_traces import DATA_SETS, DataSet, DownloadError, RemoteFile, download, main

CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"2023-11-16 18:17:03,1,1\n" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and the ends of files, as the real servers do."""

    ranges: list[str]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).ranges.append(wanted or "")
        data = Path(self.translate_path(self.path)).read_bytes()
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "trace.csv").write_bytes(CONTENT)
    Handler.ranges = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/trace.csv"
        http.shutdown()
        thread.join()


def test_table_of_files() -> None:
    assert set(DATA_SETS) == {"azure2023", "azure2024", "burstgpt", "mooncake"}
    names = [file.name for data in DATA_SETS.values() for file in data.files]
    assert len(set(names)) == len(names)
    for data in DATA_SETS.values():
        assert data.licence in ("CC-BY-4.0", "Apache-2.0") and data.title
        for file in data.files:
            assert file.url.startswith("https://") and file.name.endswith((".csv", ".jsonl"))
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32


def test_download_checks_and_keeps(server: str, tmp_path: Path) -> None:
    target = download(RemoteFile(server, SHA), tmp_path / "out")
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["trace.csv"]
    download(RemoteFile(server, SHA), tmp_path / "out")
    assert Handler.ranges == [""], "what is there is not fetched again"


def test_download_takes_up_where_it_stopped(server: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv.part").write_bytes(CONTENT[:1000])
    assert download(RemoteFile(server, SHA), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == ["bytes=1000-"]


def test_a_complete_part_is_accepted_and_a_foreign_one_is_thrown_away(server: str, tmp_path: Path) -> None:
    part = tmp_path / "trace.csv.part"
    part.write_bytes(CONTENT)
    assert download(RemoteFile(server, SHA), tmp_path).read_bytes() == CONTENT
    (tmp_path / "trace.csv").unlink()
    part.write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="not what was published"):
        download(RemoteFile(server, SHA), tmp_path)
    assert not part.exists()
    assert download(RemoteFile(server, SHA), tmp_path).read_bytes() == CONTENT


def test_wrong_checksum(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="not what was published"):
        download(RemoteFile(server, "0" * 64), tmp_path)
    assert not list(tmp_path.glob("trace.csv*"))


def test_file_urls_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.csv"
    source.write_bytes(CONTENT)
    table = {"azure2023": DataSet("t", "CC-BY-4.0", (RemoteFile(source.as_uri(), SHA),))}
    monkeypatch.setattr(download_traces, "DATA_SETS", table)
    assert main(["azure2023", "--to", str(tmp_path / "datasets")]) == 0
    assert (tmp_path / "datasets" / "azure2023" / "source.csv").read_bytes() == CONTENT


def test_no_network_is_said_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = RemoteFile("http://127.0.0.1:9/trace.csv")
    table = {"mooncake": dataclasses.replace(DATA_SETS["mooncake"], files=(gone,))}
    monkeypatch.setattr(download_traces, "DATA_SETS", table)
    assert main(["mooncake", "--to", str(tmp_path)]) == 1
    assert "check the network connection" in capsys.readouterr().err


def test_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["azure1999"])
    assert caught.value.code == 2
    assert "azure2023" in capsys.readouterr().err
