"""The command `aragog train-router` from end to end, on the toy scenario."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aragog_env import cli


def test_it_trains_saves_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "mine"
    assert cli.main(["train-router", "toy", "--folds", "2", "--out", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "toy_chain" in shown.out and "heads asked" in shown.out
    assert "fold 2 of 2" in shown.err
    (report,) = json.loads((folder / "report.json").read_text())
    assert report["workflow"] == "toy_chain" and report["questions"] == 16
    assert (folder / "report.md").read_text().startswith("| workflow |")
    assert len(list(folder.glob("*.npz"))) == 1


def test_by_default_it_goes_where_policies_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("ARAGOG_CACHE", str(tmp_path))
    assert cli.main(["train-router", "toy", "--workflow", "toy_chain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(name).parent for name in told["files"]] == [tmp_path / "routers"]
    assert told["reports"][0]["heads_every"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workflow", "toy_chian"], "Did you mean 'toy_chain'"),
        (["--embedder", "ngram"], "unknown embedder"),
        (["--embedder", "ngrams"], "use the embedder 'features'"),
        (["--folds", "1"], "at least 2 folds"),
    ],
)
def test_bad_input_ends_in_a_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train-router", "toy", *words]) == 2
    assert message in capsys.readouterr().err
