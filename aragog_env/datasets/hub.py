"""Fetching data sets from where they are published, over HTTPS with the standard library alone.

Whole files where the publisher has them; else row by row from the data set viewer of the Hugging Face hub
(https://huggingface.co/docs/dataset-viewer/rows), which needs no other package. Nothing here runs unless it is asked for.
"""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import AragogError, SpecError, did_you_mean
from ..files import write_atomically

ROWS_URL: Final = "https://datasets-server.huggingface.co/rows"
_PAGE: Final = 100
"""Most rows that the viewer gives at once."""
_TIMEOUT_S: Final = 60.0
Get = Callable[[str], bytes]


class DownloadError(AragogError):
    """A data set could not be fetched."""


@dataclass(frozen=True)
class Source:
    """Where a data set is published."""

    file: str
    """Name it gets here."""
    licence: str
    url: str = ""
    member: str = ""
    """Name in the archive, where `url` is one."""
    rows: tuple[str, str, str] | None = None
    """Data set, configuration and split on the hub."""


SOURCES: Final[Mapping[str, Source]] = {
    "humaneval": Source(
        "HumanEval.jsonl.gz",
        "MIT",
        "https://raw.githubusercontent.com/openai/human-eval/master/data/HumanEval.jsonl.gz",
    ),
    "squad": Source(
        "dev-v2.0.json", "CC-BY-SA-4.0", "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"
    ),
    "strategyqa": Source(
        "strategyqa_train.json",
        "MIT",
        "https://storage.googleapis.com/ai2i/strategyqa/data/strategyqa_dataset.zip",
        member="strategyqa_train.json",
    ),
    "mmlu_pro": Source("mmlu_pro.jsonl", "MIT", rows=("TIGER-Lab/MMLU-Pro", "default", "test")),
}


def fetch(form: str, folder: Path, *, source: Source | None = None, get: Get | None = None) -> Path:
    """Fetch a data set into `folder` and return its file; a file that is there is kept.

    Args:
        form: one of `SOURCES`.
        folder: where to put it.
        source: another source for it.
        get: URL -> content; default: an HTTPS request.

    Raises:
        SpecError: there is no source for this data set.
        DownloadError: no network, or an answer that is not what it should be.
    """
    if form == "bird":
        raise SpecError(
            "BIRD is not fetched (its databases take gigabytes): get the development set from "
            "https://bird-bench.github.io and name its folder, or make a small set with "
            "'python -m scripts.make_sqlite_database'"
        )
    if source is None and form not in SOURCES:
        raise SpecError(f"there is no known source for the data set '{form}'.{did_you_mean(form, SOURCES)}")
    source = source or SOURCES[form]
    target = folder / source.file
    if target.is_file():
        return target
    get = get or _get
    content = _all_rows(source.rows, get) if source.rows else _file(source, get)
    write_atomically(target, content)
    return target


def _file(source: Source, get: Get) -> bytes:
    content = get(source.url)
    if not source.member:
        return content
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = next(n for n in archive.namelist() if n.rpartition("/")[2] == source.member)
            return archive.read(name)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise DownloadError(f"{source.url} is no archive with '{source.member}' in it") from error


def _all_rows(rows: tuple[str, str, str], get: Get) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in _rows(rows, get))


def _rows(rows: tuple[str, str, str], get: Get) -> Iterator[dict[str, Any]]:
    name, configuration, split = rows
    offset, total = 0, 1
    while offset < total:
        query = {"dataset": name, "config": configuration, "split": split, "offset": offset, "length": _PAGE}
        url = f"{ROWS_URL}?{urllib.parse.urlencode(query)}"
        try:
            page = json.loads(get(url))
            total = int(page["num_rows_total"])
            items = page["rows"]
            if not items or any(item["truncated_cells"] for item in items):
                raise ValueError("rows are missing or cut")
            yield from (item["row"] for item in items)
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(f"{url} gave no proper page ({error!r})") from error
        offset += len(items)


def _get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "aragog-gym"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"cannot fetch {url} ({reason}); without network, put the file into a folder and name it in ARAGOG_DATASETS"
        ) from error
