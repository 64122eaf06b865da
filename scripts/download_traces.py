"""Download public request traces for use as arrivals (needs network access).

    python -m scripts.download_traces azure2023 mooncake --to datasets

Files are checked against the SHA-256 where the publisher's file is fixed and known to us, else against the
size that the server announces. An interrupted download is taken up where it stopped. No trace has workflow
ids: using calls as workflow arrivals is an assumption.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Final

from aragog_env.errors import AragogError

_AZURE: Final = (
    "https://raw.githubusercontent.com/Azure/AzurePublicDataset/b469a113cedca53ddc3bdea71a143dc4b7d8700c/data"
)
_AZURE_2024: Final = "https://github.com/Azure/AzurePublicDataset/releases/download/dataset-llm-2024"
_BURSTGPT: Final = "https://github.com/HPMLL/BurstGPT/releases/download/v1.1"
_MOONCAKE: Final = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3b5a594133958449a1feaf1c9e0fc1b553e34a28/FAST25-release/traces"
CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch."""

    url: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """File name on disk."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class DataSet:
    """Files that belong together."""

    title: str
    licence: str
    files: tuple[RemoteFile, ...]


DATA_SETS: Final[Mapping[str, DataSet]] = {
    "azure2023": DataSet(
        "Azure LLM inference trace 2023: two services, one hour (Patel et al., ISCA 2024)",
        "CC-BY-4.0",
        (
            RemoteFile(
                f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
                "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
            ),
            RemoteFile(
                f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
                "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
            ),
        ),
    ),
    "azure2024": DataSet(
        "Azure LLM inference trace 2024: two services, nine days, over 1 GB (Stojkovic et al., HPCA 2025)",
        "CC-BY-4.0",
        (
            RemoteFile(f"{_AZURE_2024}/AzureLLMInferenceTrace_code_1week.csv"),
            RemoteFile(f"{_AZURE_2024}/AzureLLMInferenceTrace_conv_1week.csv"),
        ),
    ),
    "burstgpt": DataSet(
        "BurstGPT: ChatGPT and GPT-4 through Azure, 121 days, failed calls left out (Wang et al., KDD 2025)",
        "CC-BY-4.0",
        (
            RemoteFile(f"{_BURSTGPT}/BurstGPT_without_fails_1.csv"),
            RemoteFile(f"{_BURSTGPT}/BurstGPT_without_fails_2.csv"),
        ),
    ),
    "mooncake": DataSet(
        "Mooncake: Kimi's conversation, tool-and-agent and synthetic traffic (Qin et al., FAST 2025)",
        "Apache-2.0",
        (
            RemoteFile(
                f"{_MOONCAKE}/conversation_trace.jsonl",
                "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
            ),
            RemoteFile(f"{_MOONCAKE}/toolagent_trace.jsonl"),
            RemoteFile(
                f"{_MOONCAKE}/synthetic_trace.jsonl",
                "bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
            ),
        ),
    ),
}


class DownloadError(AragogError):
    """A file could not be fetched, or is not what it should be."""


def download(file: RemoteFile, folder: Path, *, timeout_s: float = 30.0) -> Path:
    """Fetch one file into `folder`; does nothing when it is already there and has the right checksum.

    The file grows under the name ``<name>.part`` and gets its own name once it is complete and checked.

    Raises:
        DownloadError: no network, or the content has the wrong size or checksum.
    """
    target = folder / file.name
    if target.is_file() and (file.sha256 is None or _sha256(target) == file.sha256):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        size = _fetch(file.url, partial, timeout_s)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"cannot download {file.url} ({reason}); check the network connection and run the command again, "
            "it takes up where it stopped"
        ) from error
    if size is not None and partial.stat().st_size < size:
        raise DownloadError(
            f"{file.url}: the connection ended after {partial.stat().st_size:,} of {size:,} bytes; "
            "run the command again"
        )
    wrong_size = size is not None and partial.stat().st_size != size
    if wrong_size or (file.sha256 is not None and _sha256(partial) != file.sha256):
        partial.unlink()
        raise DownloadError(f"{file.url}: the content is not what was published (size or checksum differ); run again")
    partial.replace(target)
    return target


def _fetch(url: str, partial: Path, timeout_s: float) -> int | None:
    """Append what is missing of `url` to `partial`; return the full size if the server tells it."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the part is of another file: the checks will tell
            return _total(error.headers, 0)
        raise
    with answer:
        resumed = getattr(answer, "status", None) == 206
        size = _total(answer.headers, have if resumed else 0)
        with partial.open("ab" if resumed else "wb") as out:
            while block := answer.read(CHUNK):
                out.write(block)
    return size


def _total(headers: Message, offset: int) -> int | None:
    """Return the size of the whole file from the headers of an answer that starts at `offset`."""
    whole = str(headers.get("Content-Range", "")).rpartition("/")[2]
    if whole.isdigit():
        return int(whole)
    length = headers.get("Content-Length")
    return offset + int(length) if length is not None else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Download the data sets named on the command line; return 1 when a file could not be fetched."""
    listing = "\n".join(f"  {name:10} {d.title}; {d.licence}" for name, d in DATA_SETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m scripts.download_traces",
        description=f"Download public request traces.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=sorted(DATA_SETS), metavar="name", help="data sets to download")
    parser.add_argument("--to", type=Path, default=Path("datasets"), help="folder (default: datasets)")
    arguments = parser.parse_args(argv)
    failed = 0
    for name in arguments.names:
        print(f"{name}: {DATA_SETS[name].title}; licence {DATA_SETS[name].licence}")
        for file in DATA_SETS[name].files:
            try:
                print(f"  {download(file, arguments.to / name)}")
            except DownloadError as error:
                print(f"error: {error}", file=sys.stderr)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
