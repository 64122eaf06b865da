"""Data sets in their published formats: files in, records (id, query, gold, extras) out.

Where files are looked for: the path that is named; else the folders of the environment variable ARAGOG_DATASETS; else the
folder `datasets` of the repository. Nothing is downloaded unless asked for, see `hub`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

from ..errors import SpecError, did_you_mean
from ..specs.load import ROOT
from . import bird, humaneval, mmlu_pro, squad, strategyqa, table
from .record import Record, estimate_tokens, sample

__all__ = ["FORMATS", "Loader", "Record", "estimate_tokens", "find_file", "load_dataset", "sample"]

Loader = Callable[[Path], list[Record]]
"""Reads one file (or folder) of a format."""

FORMATS: Final[Mapping[str, ModuleType]] = {
    "bird": bird,
    "humaneval": humaneval,
    "mmlu_pro": mmlu_pro,
    "squad": squad,
    "strategyqa": strategyqa,
    "jsonl": table,
}
"""What a workflow may name as its `dataset_format`; each has `load(path)` and `FILES`, the names it is published under."""


def load_dataset(
    form: str,
    path: str | Path | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    loader: Loader | None = None,
    download: bool = False,
) -> tuple[Record, ...]:
    """Return the records of a data set.

    Args:
        form: one of `FORMATS`.
        path: a file, or a folder that holds one under a published name; None looks in the usual places.
        count: draw this many, always the same ones for the same `seed`; None or too many: all.
        seed: of the draw.
        loader: reads a format of your own; `form` is then only its name, and `path` must be given.
        download: fetch the file into the repository's `datasets` when it is nowhere to be found.

    Raises:
        SpecError: unknown format, no such file, or a file that is not what it should be (with file and line).
    """
    if loader is None:
        if form not in FORMATS:
            raise SpecError(f"unknown data set format '{form}'.{did_you_mean(form, FORMATS)}")
        loader = FORMATS[form].load
    elif path is None:
        raise SpecError(f"the format '{form}' is not shipped, so its file must be named")
    file = find_file(form, path, download=download)
    records = loader(file)
    if not records:
        raise SpecError("this data file holds no questions", where=str(file))
    _check_ids(records, file)
    return tuple(records) if count is None else sample(records, count, seed)


def find_file(form: str, path: str | Path | None = None, *, download: bool = False) -> Path:
    """Return the file of a data set, see `load_dataset`.

    Raises:
        SpecError: it is nowhere, with the places that were looked at.
    """
    names: tuple[str, ...] = FORMATS[form].FILES if form in FORMATS else ()
    if path is not None:
        given = Path(path).expanduser()
        inside = next((given / name for name in names if (given / name).is_file()), None)
        if inside is not None or given.exists():
            return inside or given
        raise SpecError(f"there is no file or folder '{given}' (the data set '{form}' was expected)")
    folders = _folders()
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    if download:
        from .hub import fetch

        return fetch(form, ROOT / "datasets")
    listed = " or ".join(names) or "its file"
    raise SpecError(
        f"the data set '{form}' is not here: looked for {listed} in {', '.join(map(str, folders))}; name the file, set "
        f"ARAGOG_DATASETS to its folder, or fetch it with 'python -m scripts.download_datasets {form}'"
    )


def _folders() -> list[Path]:
    named = [Path(part).expanduser() for part in os.environ.get("ARAGOG_DATASETS", "").split(os.pathsep) if part]
    return [*named, ROOT / "datasets"]


def _check_ids(records: list[Record], file: Path) -> None:
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise SpecError(f"two questions have the id '{record.id}'", where=str(file))
        seen.add(record.id)
