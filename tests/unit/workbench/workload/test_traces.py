"""Trace files written by hand in the formats of their publishers."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import SpecError
from workbench.errors import TraceError
from workbench.records import RequestRecord
from workbench.runs.run import Run
from workbench.workload.arrivals import TraceReplay
from workbench.workload.trace_request import TraceRequest
from workbench.workload.traces import read_trace, replay_trace

BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,API log
118,GPT-4,417,0,417,Conversation log
118,GPT-4,1360,647,2007,Conversation log
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.6805900,374,44
2023-11-16 23:59:59.9999990,396,109
2023-11-17 00:00:01.1805910,879,55
"""
MOONCAKE = """\
{"timestamp": 27482, "input_length": 955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 1000, "output_length": 26, "hash_ids": [46, 2366]}
{"timestamp": 30535, "input_length": 14, "output_length": 1, "hash_ids": []}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a_trace"


def offsets_of(requests: list[TraceRequest]) -> list[float]:
    return [request.offset_s for request in requests]


class TestFormats:
    def test_burstgpt(self, file: Path) -> None:
        file.write_text(BURSTGPT)
        assert read_trace(file) == [
            TraceRequest(0, 472, 18),
            TraceRequest(40, 1087, 230),
            TraceRequest(113, 417, None),
            TraceRequest(113, 1360, 647),
        ]

    def test_second_release_of_burstgpt(self, file: Path) -> None:
        """It has two more columns."""
        header = (
            "Timestamp,Session ID,Elapsed time,Model,"
            "Request tokens,Response tokens,Total tokens,Log Type\n"
        )
        file.write_text(header + "10.5,,2.1,GPT-4,7,8,15,API log\n12.75,9,1,GPT-4,3,4,7,API log\n")
        assert read_trace(file) == [TraceRequest(0, 7, 8), TraceRequest(2.25, 3, 4)]

    def test_azure(self, file: Path) -> None:
        file.write_text(AZURE)
        assert read_trace(file) == [
            TraceRequest(0, 374, 44),
            TraceRequest(0.319409, 396, 109),
            TraceRequest(1.500001, 879, 55),
        ]

    def test_azure_of_2024(self, file: Path) -> None:
        """Its dates have a time zone, and no fraction of a second where it is zero."""
        header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        file.write_text(
            header + "2024-05-10 00:00:00+00:00,2162,5\n2024-05-10 00:00:00.009930+00:00,2399,6\n"
        )
        assert read_trace(file) == [TraceRequest(0, 2162, 5), TraceRequest(0.00993, 2399, 6)]

    def test_mooncake(self, file: Path) -> None:
        file.write_text(MOONCAKE)
        assert read_trace(file) == [
            TraceRequest(0, 955, 52),
            TraceRequest(3.053, 1000, 26),
            TraceRequest(3.053, 14, 1),
        ]

    @pytest.mark.parametrize("text", [BURSTGPT, AZURE, MOONCAKE])
    def test_line_ends_and_blank_lines_are_ignored(self, file: Path, text: str) -> None:
        file.write_text(text)
        expected = read_trace(file)
        file.write_bytes(text.replace("\n", "\r\n").encode())
        assert read_trace(file) == expected
        file.write_text(text.rstrip("\n"))
        assert read_trace(file) == expected
        file.write_text(text + "\n\n")
        assert read_trace(file) == expected

    def test_byte_order_mark_is_ignored(self, file: Path) -> None:
        file.write_text(BURSTGPT, encoding="utf-8-sig")
        assert len(read_trace(file)) == 4


def record(scheduled: float | None, **fields: Any) -> RequestRecord:
    defaults: dict[str, Any] = dict.fromkeys(RequestRecord.__dataclass_fields__)
    defaults |= {"request_id": "r", "token_times_s": (1.5, 2.0), "status": "ok"}
    return RequestRecord(**(defaults | {"scheduled_s": scheduled} | fields))


class TestRun:
    """Its lines are in the order in which requests ended."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        run = Run.create(tmp_path, {})
        run.append_request(record(2.5, prompt_tokens=30, output_tokens=3))
        run.append_request(record(0.5, prompt_tokens=10, output_tokens=1))
        run.append_request(record(1.25, status="shed"))
        return run

    EXPECTED = (TraceRequest(0, 10, 1), TraceRequest(0.75, None, None), TraceRequest(2, 30, 3))

    def test_requests_are_sorted(self, run: Run) -> None:
        assert tuple(read_trace(run.path / "requests.jsonl")) == self.EXPECTED

    def test_folder_of_a_run(self, run: Run) -> None:
        assert tuple(read_trace(run.path)) == self.EXPECTED

    def test_incomplete_last_line_is_ignored(self, run: Run) -> None:
        with (run.path / "requests.jsonl").open("a") as lines:
            lines.write('{"request_id": "cut", "scheduled_s": 9')
        assert tuple(read_trace(run.path)) == self.EXPECTED

    def test_request_without_a_schedule_is_rejected(self, run: Run) -> None:
        run.append_request(record(None))
        with pytest.raises(TraceError, match=r"line 4, column 'scheduled_s': None is not a number"):
            read_trace(run.path)

    def test_folder_without_a_run_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=r"requests\.jsonl cannot be read: No such file"):
            read_trace(tmp_path)


class TestCut:
    @pytest.fixture(autouse=True)
    def _trace(self, file: Path) -> None:
        file.write_text(BURSTGPT)  # at 0, 40, 113 and 113 s

    def test_start_is_inclusive_and_the_zero_of_offsets(self, file: Path) -> None:
        assert offsets_of(read_trace(file, start_s=40)) == [0, 73, 73]
        assert offsets_of(read_trace(file, start_s=30)) == [10, 83, 83]

    def test_end_is_exclusive(self, file: Path) -> None:
        assert offsets_of(read_trace(file, end_s=113)) == [0, 40]
        assert offsets_of(read_trace(file, end_s=113.5)) == [0, 40, 113, 113]

    def test_speed_applies_after_the_cut(self, file: Path) -> None:
        assert offsets_of(read_trace(file, start_s=30, end_s=200, speed=10)) == [1, 8.3, 8.3]
        assert offsets_of(read_trace(file, speed=0.5)) == [0, 80, 226, 226]

    def test_limit_applies_to_the_cut(self, file: Path) -> None:
        assert offsets_of(read_trace(file, start_s=1, limit=2)) == [39, 112]
        assert len(read_trace(file, limit=99)) == 4

    def test_replay_of_a_specification(self, file: Path) -> None:
        spec = TraceReplay(path=str(file), start_s=30, end_s=100, speed=2, limit=5)
        assert replay_trace(spec).requests == [TraceRequest(5, 1087, 230)]

    def test_lines_after_the_limit_are_not_read(self, file: Path) -> None:
        with file.open("a") as lines:
            lines.write("broken\n")
        assert len(read_trace(file, limit=4)) == 4
        with pytest.raises(TraceError, match="line 6"):
            read_trace(file)

    def test_rows_out_of_order_are_sorted_before_the_cut(self, file: Path) -> None:
        """A row at the end of the file may belong to the start of the cut."""
        with file.open("a") as lines:
            lines.write("25,GPT-4,1,2,3,API log\n")
        spec = TraceReplay(path=str(file), end_s=100)
        assert replay_trace(spec).requests == [
            TraceRequest(0, 472, 18),
            TraceRequest(20, 1, 2),
            TraceRequest(40, 1087, 230),
        ]
        assert replay_trace(spec).out_of_order == 1

    @pytest.mark.parametrize(
        ("cut", "message"),
        [
            ({"speed": 0}, r"TraceReplay\.speed must .*got 0"),
            ({"limit": 0}, r"TraceReplay\.limit must .*got 0"),
            ({"start_s": -1}, r"TraceReplay\.start_s must .*got -1"),
            ({"start_s": 5, "end_s": 5}, r"TraceReplay\.end_s = 5 is not after start_s = 5"),
        ],
    )
    def test_invalid_cut_is_rejected(self, file: Path, cut: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            read_trace(file, **cut)

    def test_empty_cut_is_rejected(self, file: Path) -> None:
        with pytest.raises(TraceError, match=r"no request from start_s = 114\.0 to end_s = None"):
            read_trace(file, start_s=114)


MOON = '{"timestamp": 1, "input_length": 2, "output_length": 3}\n'
AZ = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"


class TestRejected:
    """Every message starts with the file, and names the line and the column."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (BURSTGPT.replace("Response tokens", "Answer"), "line 1: column 'Response tokens' .*"),
            (AZ.replace("TIMESTAMP", "TIME"), "line 1: column 'TIMESTAMP' of the Azure"),
            ('{"timestamp": 1, "input_length": 2}\n', "line 1: column 'output_length' of the Moo"),
            (MOON + '{"timestamp": 1, "input_length": 2}\n', "line 2, column 'output_length'"),
            ('{"scheduled_s": 1}\n', "line 1: column 'prompt_tokens' of the run"),
            ("a,b\n1,2\n", "line 1: unknown format.*BurstGPT: Timestamp.*Azure"),
            ('{"a": 1}\n', "line 1: unknown format.*Mooncake: timestamp.*run: scheduled_s"),
            ("", "line 1: the file is empty"),
            (BURSTGPT.splitlines()[0], "no request"),
            (BURSTGPT.replace("5,ChatGPT", "-5,ChatGPT"), "line 2, column 'Timestamp': '-5' is ne"),
            (BURSTGPT.replace("118", "nan", 1), "line 4, column 'Timestamp': 'nan' is not a fin"),
            (
                BURSTGPT.replace("1087", "many"),
                "line 3, column 'Request tokens': 'many' is not a n",
            ),
            (BURSTGPT.replace("1087", ""), "line 3, column 'Request tokens': '' is not a number"),
            (BURSTGPT.replace("1087", "-1"), "line 3, column 'Request tokens': '-1' is negative"),
            (BURSTGPT.replace("230", "2.5"), "line 3, column 'Response tokens': '2.5' is not a wh"),
            (BURSTGPT + "120,ChatGPT,4", "line 6, column 'Response tokens': the line has 3 fields"),
            (BURSTGPT + "120,a,4,5,9,b,c\n", "line 6, column 7: the line has 7 fields"),
            (BURSTGPT + '120,"a,4,5,9,b\n', "line 6: unexpected end of data"),
            (AZ + "yesterday,1,2\n", "line 3, column 'TIMESTAMP': 'yesterday' is not a date"),
            (MOON.replace("1,", "-1,"), "line 1, column 'timestamp': -1 is negative"),
            (MOON.replace("2,", "true,"), "line 1, column 'input_length': True is not a number"),
            (MOON.replace("1,", "null,"), "line 1, column 'timestamp': None is not a number"),
            (MOON + MOON[:30] + "\n", r"line 2: .*\(byte 30\)|line 2: .*truncated"),
            (MOON + "[1, 2]\n", "line 2: Expected `object`, got `array`"),
            ('{"scheduled_s": 1,}\n', "line 1: JSON is malformed"),
            (
                '{"scheduled_s": -1, "prompt_tokens": 1, "output_tokens": 1}\n',
                "line 1, column 'scheduled_s': -1 is negative",
            ),
        ],
    )
    def test_message_names_file_line_and_column(self, file: Path, text: str, message: str) -> None:
        file.write_text(text)
        options: dict[str, Any] = {"time_unit": "ms"} if text.startswith(MOON[:13]) else {}
        with pytest.raises(TraceError, match=message) as caught:
            read_trace(file, **options)
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)

    def test_invalid_utf8_is_named(self, file: Path) -> None:
        file.write_bytes(BURSTGPT.encode().replace(b"1087", b"10\xff7"))
        with pytest.raises(TraceError, match="line 3, column 'Request tokens'"):
            read_trace(file)
        file.write_bytes(MOON.encode() + b'{"timestamp": "\xff"}\n')
        with pytest.raises(TraceError, match="line 2"):
            read_trace(file, time_unit="ms")

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=r"none\.csv cannot be read: No such file"):
            read_trace(tmp_path / "none.csv")


requests = st.lists(
    st.tuples(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 10**6)),
    min_size=1,
    max_size=20,
).map(sorted)


class TestEveryTrace:
    """Times in whole microseconds are read from each format as they were written."""

    @staticmethod
    def check(file: Path, trace: list[tuple[int, int, int]], text: str, **options: Any) -> None:
        file.write_text(text)
        read = read_trace(file, **options)
        assert [(r.prompt_tokens, r.output_tokens) for r in read] == [row[1:] for row in trace]
        expected = [(at - trace[0][0]) / 1e6 for at, _, _ in trace]
        assert offsets_of(read) == pytest.approx(expected, abs=1e-9)

    @given(requests)
    def test_round_trips_in_each_format(
        self, tmp_path_factory: pytest.TempPathFactory, trace: list[tuple[int, int, int]]
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "any_trace"
        header = BURSTGPT.splitlines()[0]
        rows = [f"{at / 1e6!r},GPT-4,{p},{o},{p + o},API log" for at, p, o in trace]
        self.check(file, trace, "\n".join([header, *rows]))
        dates = [datetime(2023, 11, 16, 23) + timedelta(microseconds=at) for at, _, _ in trace]
        rows = [
            f"{d:%Y-%m-%d %H:%M:%S.%f}0,{p},{o}" for d, (_, p, o) in zip(dates, trace, strict=True)
        ]
        self.check(file, trace, "\n".join([AZ.splitlines()[0], *rows]))
        names = ("timestamp", "input_length", "output_length")
        lines = [dict(zip(names, (at / 1e3, p, o), strict=True)) for at, p, o in trace]
        self.check(file, trace, "\n".join(map(json.dumps, lines)), time_unit="ms")
