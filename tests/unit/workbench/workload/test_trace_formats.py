"""Formats, units, encodings and faults of trace files. The samples are written by hand."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from serving.errors import SpecError
from workbench.errors import TraceError
from workbench.workload import file_lines
from workbench.workload.arrivals import TraceReplay
from workbench.workload.trace_request import Trace, TraceRequest
from workbench.workload.traces import read_trace, replay_trace

QWEN = [
    {"chat_id": 7, "parent_chat_id": -1, "timestamp": 61.5, "turn": 1, "type": "text"}
    | {"input_length": 21, "output_length": 3, "hash_ids": [4, 9]},
    {"chat_id": 8, "parent_chat_id": 7, "timestamp": 63.0, "turn": 2, "type": "text"}
    | {"input_length": 33, "output_length": 4, "hash_ids": [4, 9, 11]},
]
BARE = ("timestamp", "input_length", "output_length", "hash_ids")
TIMED = [{name: row[name] for name in BARE} for row in QWEN]
MOONCAKE = [
    {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]},
    {"timestamp": 3000, "input_length": 1024, "output_length": 6, "hash_ids": [0, 2]},
]
AZURE = """\
TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2024-10-15 00:00:00.100000,0,374,44
2024-10-15 00:00:02.100000,3,3960,109
"""
SIMPLE = "timestamp,input_length,output_length\n0,7,3\n1500,8,4\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a_trace"


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def replay(file: Path, **fields: Any) -> Trace:
    return replay_trace(TraceReplay(path=str(file), **fields), content=True)


def offsets(file: Path, **fields: Any) -> list[float]:
    return [request.offset_s for request in read_trace(file, **fields)]


class TestUnits:
    """Four formats share three columns; Mooncake and timed_trace even four."""

    @pytest.mark.parametrize(
        ("rows", "unit", "last_s", "block"),
        [(QWEN, "s", 1.5, 16), (TIMED, "s", 1.5, 16), (MOONCAKE, "ms", 3.0, 512)],
    )
    def test_unit_is_found(
        self, file: Path, rows: list[dict[str, Any]], unit: str, last_s: float, block: int
    ) -> None:
        trace = replay(write(file, rows))
        assert (trace.unit, trace.block_size) == (unit, block)
        assert [request.offset_s for request in trace.requests] == [0, last_s]
        assert trace.requests[0].hash_ids == tuple(rows[0]["hash_ids"])

    def test_keys_of_qwen_decide_where_the_blocks_do_not(self, file: Path) -> None:
        """A prompt shorter than a block has one id in both."""
        rows = [row | {"input_length": 9, "hash_ids": [i]} for i, row in enumerate(QWEN)]
        assert replay(write(file, rows)).unit == "s"

    @pytest.mark.parametrize(
        "rows",
        [
            [{"timestamp": at, "input_length": 900, "output_length": 1} for at in (0, 2500, 4000)],
            [
                {"timestamp": at, "input_length": 9, "output_length": 1, "hash_ids": [at]}
                for at in (0, 2500, 4000)
            ],
            [
                # Blocks of 64 tokens, which no published trace has.
                {"timestamp": at, "input_length": 128, "output_length": 1, "hash_ids": [at, 1]}
                for at in (0, 2500, 4000)
            ],
        ],
    )
    def test_unknown_unit_is_rejected_with_both_interpretations(
        self, file: Path, rows: list[dict[str, Any]]
    ) -> None:
        with pytest.raises(TraceError, match="0, 2500, 4000 s if it is seconds") as caught:
            read_trace(write(file, rows))
        assert "0, 2.5, 4 s if it is milliseconds" in str(caught.value)
        assert "TraceReplay.time_unit = 's' or 'ms'" in str(caught.value)
        assert str(caught.value).startswith(f"{file}, line 1, column 'timestamp'")
        assert offsets(file, time_unit="s") == [0, 2500, 4000]
        assert offsets(file, time_unit="ms") == [0, 2.5, 4]

    def test_csv_with_the_same_columns(self, file: Path) -> None:
        file.write_text(SIMPLE)
        with pytest.raises(TraceError, match=r"0, 1500 s if it is seconds.*0, 1.5 s if it is mil"):
            read_trace(file)
        assert offsets(file, time_unit="us") == [0, 0.0015]

    def test_unit_of_dates_cannot_be_set(self, file: Path) -> None:
        file.write_text(AZURE)
        with pytest.raises(TraceError, match=r"are dates, got TraceReplay.time_unit = 's'"):
            read_trace(file, time_unit="s")


class TestContent:
    def test_aiperf_texts_and_sessions(self, file: Path) -> None:
        rows = [
            {"session_id": "a", "timestamp": 1000, "input_length": 9, "output_length": 2},
            {"timestamp": 1500, "text_input": "Hello", "output_length": 4},
            {"session_id": "a", "delay": 250, "input_length": 5, "output_length": 3},
            {"timestamp": 2000, "messages": [{"role": "user", "content": "Hi"}]},
        ]
        trace = replay(write(file, rows))
        assert (trace.format, trace.unit) == ("AIPerf", "ms")
        turn = TraceRequest(0, 5, 3, delay_s=0.25)
        assert trace.requests == [
            TraceRequest(0, 9, 2, later=(turn,)),
            TraceRequest(0.5, None, 4, content="Hello"),
            TraceRequest(1, None, None, content=({"role": "user", "content": "Hi"},)),
        ]

    def test_turn_without_a_first_request_is_rejected(self, file: Path) -> None:
        write(file, [{"session_id": "a", "delay": 9, "input_length": 5, "output_length": 3}])
        with pytest.raises(TraceError, match=r"line 1, column 'timestamp': None is missing in the"):
            replay(file)

    def test_images_are_counted(self, file: Path) -> None:
        file.write_text(AZURE)
        trace = replay(file)
        assert trace.requests == [TraceRequest(0, 374, 44), TraceRequest(2, 3960, 109)]
        assert trace.images == 1

    @pytest.mark.parametrize(
        ("times", "batch_s"),
        [
            ([0, 0, 0, 3000, 3000, 6000], 3.0),
            ([0, 100, 3000, 3001, 6000], None),
            ([0, 1, 1, 1, 2, 2], None),  # milliseconds that two requests share by chance
        ],
    )
    def test_coarse_times_are_reported(
        self, file: Path, times: list[int], batch_s: float | None
    ) -> None:
        write(file, [MOONCAKE[0] | {"timestamp": at} for at in times])
        assert replay(file).batch_s == batch_s


class TestColumns:
    COLUMNS: ClassVar = {
        "arrived_at": "timestamp",
        "prompt": "input_length",
        "answer": "output_length",
    }

    def test_unknown_columns_are_named(self, file: Path) -> None:
        expected = [TraceRequest(0, 7, 3), TraceRequest(1.5, 8, 4)]
        file.write_text("id;arrived_at;prompt;answer\n1;10;7;3\n2;11.5;8;4\n")
        assert read_trace(file, columns=self.COLUMNS, time_unit="s") == expected
        rows: list[dict[str, Any]] = [{"arrived_at": 10, "prompt": 7, "answer": 3}]
        rows += [{"arrived_at": 11.5, "prompt": 8, "answer": 4}]
        assert read_trace(write(file, rows), columns=self.COLUMNS, time_unit="s") == expected

    def test_dates_are_recognized(self, file: Path) -> None:
        file.write_text("arrived_at,prompt,answer\n2024-01-01 00:00:01,7,3\n2024-01-01 00:01,8,4\n")
        assert offsets(file, columns=self.COLUMNS) == [0, 59]

    def test_invalid_names_are_rejected(self, file: Path) -> None:
        file.write_text("arrived_at,prompt,answer\n1,7,3\n")
        with pytest.raises(SpecError, match=r"'time', which is not a column of a trace.*timestamp"):
            read_trace(file, columns={"arrived_at": "time"})
        with pytest.raises(TraceError, match=r"column 'at' of TraceReplay.columns is missing"):
            read_trace(file, columns={"at": "timestamp"})
        file.write_text("arrived_at,prompt,answer\n1,7,x\n")
        with pytest.raises(TraceError, match=r"line 2, column 'answer': 'x' is not a number"):
            read_trace(file, columns=self.COLUMNS, time_unit="s")


ROWS = '{"timestamp": 0, "input_length": 7, "output_length": 3}\n' * 2


class TestEncodings:
    """The same requests are read from every file that holds them."""

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    @pytest.mark.parametrize("compressed", [False, True])
    def test_csv(self, file: Path, separator: str, encoding: str, compressed: bool) -> None:
        text = SIMPLE.replace(",", separator).encode(encoding)
        file.write_bytes(gzip.compress(text) if compressed else text)
        assert read_trace(file, time_unit="ms") == [TraceRequest(0, 7, 3), TraceRequest(1.5, 8, 4)]

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("indent", [None, 2])
    def test_json_array(self, file: Path, encoding: str, indent: int | None) -> None:
        file.write_bytes(json.dumps(MOONCAKE, indent=indent).encode(encoding))
        assert offsets(file) == [0, 3]
        file.write_bytes(gzip.compress(json.dumps(MOONCAKE, indent=indent).encode(encoding)))
        assert offsets(file) == [0, 3]

    def test_array_whose_items_span_reads(self, file: Path, monkeypatch: Any) -> None:
        rows = [row | {"note": "ü]},{" * 40} for row in MOONCAKE] * 30
        file.write_text(json.dumps(rows, ensure_ascii=False))
        expected = read_trace(file)
        assert len(expected) == 60
        monkeypatch.setattr(file_lines, "_CHUNK", 7)
        assert read_trace(file) == expected


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


class TestFaults:
    """One fault per file: the message names the file, the line and what was expected."""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (LFS.encode(), "is a pointer of Git LFS, not the data: run `git lfs pull`"),
            (b"", ", line 1: the file is empty; expected requests"),
            (b"  \n\n", ", line 1: the file is empty; expected requests"),
            (b"[]", ", line 1: the array is empty; expected requests"),
            (b"[1, 2]", ", line 1: Expected `object`, got `int`"),
            (json.dumps(MOONCAKE).encode()[:-1], ", line 1: the array is cut off: expected ']'"),
            (json.dumps(MOONCAKE, indent=1).encode()[:120], "an item is invalid or cut off"),
            (json.dumps(MOONCAKE).encode() + b"[]", "expected nothing after the end of the array"),
            (b'[{"timestamp": 1} {"a": 2}]', "line 1"),
            (gzip.compress(SIMPLE.encode(), mtime=0)[:-9], "its gzip data is invalid or cut off"),
            (
                gzip.compress(SIMPLE.encode(), mtime=0)[:12] + b"\xff" * 40,
                "its gzip data is invalid or cut",
            ),
            (SIMPLE.encode("utf-16")[:-1], "its UTF-16 is invalid or cut off"),
            (SIMPLE.encode()[:-1] + b",9\n", ", line 3, column 4: the line has 4 fields"),
            (SIMPLE.encode() + b"1600,9", ", line 4, column 'output_length': the line has 2 fie"),
            (SIMPLE.encode() + b"-1,9,9\n", ", line 4, column 'timestamp': '-1' is negative"),
            (SIMPLE.encode() + b",9,9\n", ", line 4, column 'timestamp': '' is not a number"),
            (SIMPLE.encode() + b"x,9,9\n", ", line 4, column 'timestamp': 'x' is not a number"),
            (
                (json.dumps(MOONCAKE[0]) + '\n{"timestamp": 1, "inp').encode(),
                ", line 2: Input data was truncated",
            ),
            (
                json.dumps(MOONCAKE[0] | {"hash_ids": [1, "x"]}).encode(),
                ", line 1, column 'hash_ids': Expected `int`",
            ),
            (
                json.dumps(
                    [MOONCAKE[0], MOONCAKE[1] | {"input_length": "many"}], indent=1
                ).encode(),
                ", line 11, column 'input_length': 'many' is not a number",
            ),
        ],
    )
    def test_message(self, file: Path, content: bytes, message: str) -> None:
        file.write_bytes(content)
        with pytest.raises(TraceError, match=re.escape(message)) as caught:
            replay(file, time_unit="ms")
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("head", [b"timestamp,input_length,output_length\n", b"{", b"[{", b"x"])
    def test_endless_line_is_rejected_with_flat_memory(self, file: Path, head: bytes) -> None:
        """10 GB that take no room on the disk: what follows the head is zeros."""
        file.write_bytes(head)
        with file.open("r+b") as long:
            long.truncate(10 * 10**9)
        with pytest.raises(TraceError, match=rf"longer than {2**24} bytes|UTF-16|invalid"):
            read_trace(file, time_unit="ms")
        assert growth_mb(file) < 200

    def test_endless_line_of_a_compressed_file_is_rejected(self, file: Path) -> None:
        file.write_bytes(b"".join(zeros(200 * 2**20)))
        with pytest.raises(TraceError, match=rf"line 1: the line is longer than {2**24} bytes"):
            read_trace(file, time_unit="ms")


def zeros(size: int) -> Iterator[bytes]:
    """The character 0, compressed to a thousandth."""
    compressor = zlib.compressobj(wbits=31)
    for _ in range(size // 2**20):
        yield compressor.compress(b"0" * 2**20)
    yield compressor.flush()


def growth_mb(file: Path) -> float:
    """Return by how much the peak memory of a new process grows while it reads a trace."""
    code = """
import resource, sys
import numpy
from workbench.errors import TraceError
from workbench.workload.traces import read_trace
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
before = peak()
try:
    read_trace(sys.argv[1], time_unit="ms")
except TraceError:
    print(peak() - before)
"""
    command = [sys.executable, "-c", code, str(file)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
