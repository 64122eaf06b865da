"""The report: complete, self-contained, honest."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aragog_env.errors import SpecError
from aragog_env.harness.capacity import capacity
from aragog_env.harness.evaluate import evaluate
from aragog_env.harness.report import write_report

from .fakes import FakeBackend, Fixed, Large, Raises, make_scenario


@pytest.fixture(scope="module")
def reported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shared results with its report, and the curves of a small sweep."""
    base = tmp_path_factory.mktemp("report")
    copy = Path(shutil.copytree(folder, base / "results"))
    sweep = base / "sweep"
    capacity(
        {"small": Fixed, "large": Large},
        make_scenario(base),
        2,
        out=sweep,
        workers=1,
        make_backend=FakeBackend,
    )
    write_report(copy, capacity=[sweep], baseline="spread")
    return copy


class _Checker(HTMLParser):
    """Collects what refers to other files, and checks that elements nest."""

    VOID = frozenset({"meta", "br", "img", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset") and value is not None:
                self.references.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self.open[-1] != "p":
            return
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    checker = _Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.references
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in checker.references)
    assert "<script" not in text and "@import" not in text
    for element in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(element)


def test_the_page_says_what_a_reader_must_know(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    for words in (
        "3 policies, 4 seeds (0\N{EN DASH}3), 12 finished runs, 660 counted requests",
        "the first 5 as warm-up",
        "synthetic outcome tables",
        "1,000 (given)",
        "900 (estimated)",
        "Differences to spread, paired by seed",
        "95% bootstrap interval",
        "Throughput ceiling and capacity under the SLO",
        "alpha 50%, beta 50%",
    ):
        assert words in text, words


def test_figures_and_tables_are_numbered_and_every_figure_is_a_png_too(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    for kind in ("Figure", "Table"):
        numbers = [int(n) for n in re.findall(rf"<b>{kind} (\d+)\.</b>", text)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 7
    pictures = list((reported / "figures").glob("*.png"))
    assert len(pictures) == text.count("<b>Figure ")
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_the_markdown_holds_the_same_tables_and_links_to_pictures_that_exist(reported: Path) -> None:
    text = (reported / "report.md").read_text()
    html = (reported / "report.html").read_text()
    assert text.count("**Table ") == html.count("<b>Table ")
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert links and all((reported / link).exists() for link in links)


def test_a_report_written_twice_is_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate({"small": Fixed}, make_scenario(tmp_path), 1, out=out, workers=1, make_backend=FakeBackend)
    first = write_report(out).html.read_bytes()
    assert write_report(out).html.read_bytes() == first


def test_failures_and_unfinished_requests_are_shown(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, rate_rps=3.0, duration_s=15.0)
    evaluate(
        {"small": Fixed, "bad <b>": Raises},
        scenario,
        2,
        out=tmp_path / "out",
        workers=1,
        make_backend=FakeBackend,
    )
    text = write_report(tmp_path / "out").html.read_text()
    assert "requests were unfinished when an episode was cut" in text
    assert "2 of 2 runs failed" in text and "out of ideas" in text and "Traceback" in text
    assert "bad <b>" not in text and "bad &lt;b&gt;" in text


def test_a_report_of_failures_only_still_says_what_failed(tmp_path: Path) -> None:
    evaluate({"bad": Raises}, make_scenario(tmp_path), 1, out=tmp_path / "out", workers=1, make_backend=FakeBackend)
    assert "out of ideas" in write_report(tmp_path / "out").html.read_text()


def test_nothing_to_report_is_bad_input(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "manifest.json", tmp_path)
    with pytest.raises(SpecError, match="no finished runs"):
        write_report(tmp_path)
