"""Trace files: every format, plain and gzip, and every way to be broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.workload import traces
from aragog_env.workload.traces import read_trace

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE_2023 = f"{HEADER}\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\r\n"
AZURE_2024 = f"{HEADER}\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 27482, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}\n'
)
EXPECTED = {
    "azure2023": (AZURE_2023, 0.052, [4808, 3180], [10, 8]),
    "azure2024": (AZURE_2024, 0.99007, [2162, 2399], [5, 6]),
    "burstgpt": (BURST, 40.0, [472, 1087], [18, 230]),
    "mooncake": (MOONCAKE, 27.482, [6758, 7322], [500, 490]),
}


def write(folder: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("format", EXPECTED)
def test_formats_are_recognised_and_read(tmp_path: Path, format: str, packed: bool) -> None:
    text, seconds, inputs, outputs = EXPECTED[format]
    # gzip is known by its content: the name says nothing
    path = write(tmp_path, gzip.compress(text.encode()) if packed else text)
    trace = read_trace(path)
    assert trace.format == format
    assert trace.times_s == pytest.approx([0.0, seconds])
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == (inputs, outputs)
    assert trace.source == str(path)
    assert trace.rate_rps == pytest.approx(1 / seconds)
    again = read_trace(path, format)
    assert (again.times_s == trace.times_s).all()


def test_harmless_variants(tmp_path: Path) -> None:
    no_end = read_trace(write(tmp_path, AZURE_2023.rstrip()))
    assert no_end.output_tokens.tolist() == [10, 8], "Azure's own files end without a line break"
    swapped = "GeneratedTokens,TIMESTAMP,Extra,ContextTokens\n7,2023-11-16 18:00:00,x,3\n\n8,2023-11-16 18:00:01,y,4\n"
    trace = read_trace(write(tmp_path, swapped))
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([3, 4], [7, 8])
    quoted = BURST.replace("ChatGPT", '"Chat, GPT"').replace("472", "472.0")
    assert read_trace(write(tmp_path, quoted)).input_tokens.tolist() == [472, 1087]
    shuffled = '{"hash_ids": [1], "output_length": 2, "input_length": 3, "timestamp": 4}\n'
    assert read_trace(write(tmp_path, shuffled)).input_tokens.tolist() == [3]
    marked = read_trace(write(tmp_path, "\ufeff" + AZURE_2023))
    assert len(marked.times_s) == 2


BROKEN = {
    "empty": ("", 1, "empty"),
    "header only": (HEADER + "\n", 2, "no requests"),
    "unknown": ("a,b,c\n1,2,3\n", 1, "no known trace format"),
    "missing column": ("TIMESTAMP,ContextTokens\n2023-11-16 18:00:00,1\n", 1, "'GeneratedTokens' is missing"),
    "unsorted": (AZURE_2023 + "2023-11-16 18:17:03,1,1\n", 4, "not sorted"),
    "negative input": (AZURE_2023 + "2023-11-16 18:17:05,-1,1\n", 4, "input tokens is negative"),
    "negative output": (AZURE_2023 + "2023-11-16 18:17:05,1,-7\n", 4, "output tokens is negative"),
    "half a last line": (AZURE_2023 + "2023-11-16 18:1", 4, "truncated"),
    "too few columns": (
        AZURE_2023 + "2023-11-16 18:17:05,3\n2023-11-16 18:17:06,3,3\n",
        4,
        "too few columns",
    ),
    "no number": (AZURE_2023 + "2023-11-16 18:17:05,many,3\n", 4, "cannot read this line"),
    "no date": (AZURE_2023 + "soon,3,3\n", 4, "cannot read this line"),
    "fraction": (AZURE_2023 + "2023-11-16 18:17:05,3.5,3\n", 4, "not a whole number"),
    "no time": (BURST + ",GPT-4,1,1,2,API log\n", 4, "cannot read this line"),
    "nan": (BURST + "nan,GPT-4,1,1,2,API log\n", 4, "not a finite number"),
    "json cut": (MOONCAKE + '{"timestamp": 27490, "input_length": 1, "outp', 3, "truncated"),
    "json key": ('{"timestamp": 0, "input_length": 1, "hash_ids": []}\n', 1, "'output_length' is missing"),
    "json unsorted": (MOONCAKE + MOONCAKE.splitlines()[0] + "\n", 3, "not sorted"),
    "json text": ('{"timestamp": 0, "input_length": "1", "output_length": 2}\n', 1, "not a whole number"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_their_line(tmp_path: Path, case: str) -> None:
    text, line, message = BROKEN[case]
    path = write(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        read_trace(path)
    assert caught.value.where == f"{path}:{line}"
    assert caught.value.exit_code == 2


def test_lines_are_counted_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "CHUNK", 3)
    rows = "".join(f"2023-11-16 18:00:{s:02},1,{s}\n" for s in range(20))
    assert read_trace(write(tmp_path, f"{HEADER}\n{rows}")).output_tokens.tolist() == list(range(20))
    with pytest.raises(SpecError) as caught:
        read_trace(write(tmp_path, f"{HEADER}\n{rows.replace(',1,13', ',1,x')}"))
    assert str(caught.value.where).endswith(":15")


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "".join(f"2023-11-16 18:00:{s // 1000:02}.{s % 1000:03},{rng.integers(9999)},1\n" for s in range(50_000))
    packed = gzip.compress(f"{HEADER}\n{rows}".encode())
    with pytest.raises(SpecError, match="gzip file is truncated after line"):
        read_trace(write(tmp_path, packed[: len(packed) // 2]))
    damaged = bytearray(packed)
    damaged[len(packed) // 2 : len(packed) // 2 + 50] = b"\xff" * 50
    with pytest.raises(SpecError, match=r"damaged|cannot read this line|not sorted|truncated"):
        read_trace(write(tmp_path, bytes(damaged)))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(SpecError, match="cannot read the trace"):
            read_trace(path)


@pytest.mark.parametrize(
    ("name", "format", "requests", "rate", "median_input", "median_output"),
    [
        ("azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz", "azure2023", 8819, 2.57, 1469, 13),
        ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz", "azure2023", 19366, 5.53, 1020, 129),
        ("mooncake_fast25/conversation_trace.jsonl.gz", "mooncake", 12031, 3.40, 6909, 350),
        ("mooncake_fast25/synthetic_trace.jsonl.gz", "mooncake", 3993, 3.91, 11587, 69),
    ],
)
def test_public_files(
    name: str, format: str, requests: int, rate: float, median_input: int, median_output: int
) -> None:
    path = DATA / name
    if not path.is_file():
        pytest.skip("the public traces are not on this machine")
    trace = read_trace(path)
    assert (trace.format, len(trace.times_s)) == (format, requests)
    assert trace.rate_rps == pytest.approx(rate, abs=0.006)
    assert np.median(trace.input_tokens) == median_input
    assert np.median(trace.output_tokens) == median_output


def test_mooncake_shortcut_reads_what_json_reads(tmp_path: Path) -> None:
    path = write(tmp_path, MOONCAKE)
    rows = [json.loads(line) for line in MOONCAKE.splitlines()]
    assert read_trace(path).input_tokens.tolist() == [row["input_length"] for row in rows]
