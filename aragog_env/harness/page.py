"""The frame of the HTML report: one file, no external links, readable on paper."""

from __future__ import annotations

import html
from string import Template
from typing import Final

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1f1f1f; --soft: #6a6a6a; --rule: #222; --hair: #dcdcdc; --accent: #2f5f8f; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.2rem 2rem 5rem; max-width: 68rem; color: var(--ink); background: #fff;
  font: 16px/1.5 Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "DejaVu Serif", serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; font-weight: 600; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; font-weight: 600; border-bottom: 1px solid var(--hair);
  padding-bottom: .25rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .4rem; font-weight: 600; }
p { margin: .5rem 0; max-width: 46rem; }
.subtitle { color: var(--soft); margin-bottom: 1.6rem; }
nav { font-size: .92rem; margin: 1rem 0 0; } nav a { margin-right: 1.1rem; white-space: nowrap; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
figure { margin: 1.6rem 0 2rem; break-inside: avoid; }
figcaption { font-size: .94rem; margin: .5rem 0; max-width: 50rem; }
figure svg, figure img { width: 100%; max-width: 52rem; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font: 13.5px/1.35 "Helvetica Neue", Helvetica, Arial, "DejaVu Sans",
  sans-serif; font-variant-numeric: tabular-nums; border-top: 1.5px solid var(--rule); border-bottom: 1.5px
  solid
var(--rule); } th { font-weight: 600; text-align: right; vertical-align: bottom; border-bottom: 1px solid
var(--rule);
  padding: .4rem .5rem; font-size: 12px; }
td { text-align: right; vertical-align: top; padding: .32rem .5rem; border-bottom: 1px solid #eee;
white-space: nowrap; } th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8.5rem; max-width: 12rem; } td.text,
th.text { text-align: left; white-space: normal; } td small { display: block; color: var(--soft); font-size:
11px; } .note { font-size: .86rem; color: var(--soft); margin: .35rem 0; } .warn { border-left: 3px solid
#b8434e; padding: .2rem .8rem; background: #fbf3f3; max-width: 50rem; } details { margin: .8rem 0; } summary
{ cursor: pointer; color: var(--accent); } pre { font: 12px/1.45 "DejaVu Sans Mono", Menlo, Consolas,
monospace; background: #f7f7f5; padding: .8rem
  1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .95rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { padding: 0; max-width: none; font-size: 10pt; } details { display: none; } nav {
display: none; } } </style> </head> <body> <h1>$title</h1> <p class="subtitle">$subtitle</p> $body </body>
</html>
""")


class Page:
    """Collects sections; numbers figures and tables."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self.figures = 0
        self.tables = 0

    def section(self, title: str) -> None:
        """Begin a section."""
        anchor = f"s{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        self._parts.append(f"<h2 id='{anchor}'>{html.escape(title)}</h2>\n")

    def add(self, fragment: str) -> None:
        """Add HTML as it is."""
        self._parts.append(fragment + "\n")

    def paragraph(self, text: str, css: str = "") -> None:
        """Add a paragraph of plain text."""
        self._parts.append(f"<p class='{css}'>{html.escape(text)}</p>\n" if css else f"<p>{html.escape(text)}</p>\n")

    def figure(self, element: str, caption: str) -> int:
        """Add a picture (an svg or img element) with its caption; return its number."""
        self.figures += 1
        text = f"<b>Figure {self.figures}.</b> {html.escape(caption)}"
        self._parts.append(f"<figure>{element}<figcaption>{text}</figcaption></figure>\n")
        return self.figures

    def folded(self, summary: str, content: str) -> None:
        """Add something that is hidden until it is asked for."""
        self._parts.append(f"<details><summary>{html.escape(summary)}</summary>{content}</details>\n")

    def definitions(self, pairs: list[tuple[str, str]]) -> None:
        """Add a list of names and values."""
        rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs)
        self._parts.append(f"<dl>{rows}</dl>\n")

    def render(self, title: str, subtitle: str) -> str:
        """Return the whole document."""
        links = "".join(f"<a href='#{anchor}'>{html.escape(name)}</a>" for anchor, name in self._sections)
        body = f"<nav>{links}</nav>\n" + "".join(self._parts)
        return _PAGE.substitute(title=html.escape(title), subtitle=html.escape(subtitle), body=body)
