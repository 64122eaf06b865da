"""Pages of which scripts write a part: between a comment that names the command and the next end comment."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aragog_env.errors import SpecError
from aragog_env.files import write_atomically

ROOT: Final = Path(__file__).resolve().parent.parent
_END: Final = "<!-- end -->"


def part(page: str, command: str, where: str = "the page") -> tuple[str, str, str]:
    """Return what stands before, in and after the part that `command` writes.

    Raises:
        SpecError: the page has no such part.
    """
    begin = f"<!-- begin: {command} -->"
    before, found, rest = page.partition(begin)
    inside, end, after = rest.partition(_END)
    if not (found and end):
        raise SpecError(f"{where} lacks the comments '{begin}' and '{_END}', between which that command writes")
    return before + begin, inside.strip(), end + after


def replaced(page: str, command: str, text: str, where: str = "the page") -> str:
    """Return the page with `text` for the part that `command` writes."""
    before, _, after = part(page, command, where)
    return f"{before}\n\n{text.strip()}\n\n{after}"


def write_part(path: Path, command: str, text: str) -> None:
    """Write `text` into a page."""
    write_atomically(path, replaced(path.read_text(encoding="utf-8"), command, text, path.name).encode())
