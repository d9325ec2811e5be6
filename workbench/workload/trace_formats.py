"""The formats of trace files: how each is recognized, its columns and its unit of time.

| format | recognized by | unit of time |
| --- | --- | --- |
| BurstGPT 1 to 3 | `Timestamp, Request tokens, Response tokens` | seconds |
| Azure LLM inference 2023 to 2025 | `TIMESTAMP, ContextTokens, GeneratedTokens` | dates |
| Mooncake, GuideLLM, Qwen | `timestamp, input_length, output_length` | see `find_unit` |
| AIPerf | these, and `text_input`, `messages`, `session_id` or `delay` | milliseconds |
| a run's requests.jsonl | `scheduled_s, prompt_tokens, output_tokens` | seconds |

To add a format, add an entry to `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from workbench.errors import TraceError

Unit = Literal["s", "ms", "us", "date"]

UNITS_PER_SECOND: dict[Unit, float] = {"s": 1, "ms": 1e3, "us": 1e6, "date": 1e6}
"""Dates are read as microseconds, which a double holds exactly."""

BLOCK_SIZES: dict[int, Unit] = {512: "ms", 16: "s"}
"""Tokens per hash id of the published traces, and the unit of the traces that have it."""

AIPERF = ("text_input", "messages", "session_id", "delay")
QWEN = ("chat_id", "parent_chat_id", "turn")
SAMPLE = 100
"""Requests from which the unit of time is found."""


class Format(NamedTuple):
    """The columns of a format. A `unit` of None is found with `find_unit`.

    `extra` are columns that are read if a file has them, by the name under which they are used.
    """

    name: str
    time: str
    prompt_tokens: str
    output_tokens: str
    unit: Unit | None = None
    extra: Mapping[str, str] = {}
    sorted_by_time: bool = True

    @property
    def required(self) -> tuple[str, str, str]:
        """The columns of time, prompt tokens and output tokens."""
        return self.time, self.prompt_tokens, self.output_tokens


_CONTENT = {name: name for name in ("hash_ids", *AIPERF, "tools")}
LENGTHS = Format(
    "Mooncake", "timestamp", "input_length", "output_length", extra={**_CONTENT, "images": "images"}
)
"""The columns that several formats share, and the names that `TraceReplay.columns` gives."""

FORMATS = (
    Format("BurstGPT", "Timestamp", "Request tokens", "Response tokens", "s"),
    Format(
        "Azure LLM inference",
        "TIMESTAMP",
        "ContextTokens",
        "GeneratedTokens",
        "date",
        {"images": "NumImages"},
    ),
    LENGTHS,
    Format("run", "scheduled_s", "prompt_tokens", "output_tokens", "s", sorted_by_time=False),
)


def find_format(where: str, names: Iterable[str]) -> Format:
    """Return the format that shares most of its columns with `names`, if all are there.

    Args:
        where: The file and the line, for the message.
        names: The columns of the file.

    Raises:
        TraceError: There is no such format, or a column of it is missing.
    """
    header = list(names)
    found = max(FORMATS, key=lambda each: len(set(each.required) & set(header)))
    missing = [column for column in found.required if column not in header]
    if found is LENGTHS and set(AIPERF) & set(header):
        return found._replace(name="AIPerf", unit="ms")
    if len(missing) == len(found.required):
        choices = "; ".join(f"{each.name}: {', '.join(each.required)}" for each in FORMATS)
        raise TraceError(
            f"{where}: unknown format. The known columns are: {choices}. Name others with columns, "
            "as in columns={'arrived_at': 'timestamp'}"
        )
    if missing:
        raise TraceError(
            f"{where}: column {missing[0]!r} of the {found.name} format is missing; "
            f"there are {', '.join(header)}"
        )
    if found is LENGTHS and set(QWEN) & set(header):
        return found._replace(name="Qwen", unit="s")
    return found


def find_unit(where: str, sample: Sequence[tuple[Any, ...]]) -> Unit:
    """Return the unit of time of a trace with `timestamp, input_length, output_length`.

    The same columns have milliseconds and blocks of 512 tokens in Mooncake's traces, but seconds
    and blocks of 16 in Qwen's and in vLLM's timed_trace. So the size of a block decides.

    Args:
        where: The file and the line, for the message.
        sample: Time, prompt tokens and hash ids of the first requests.

    Raises:
        TraceError: The size of a block does not decide. The message has both interpretations.
    """
    size = find_block_size([(tokens, ids) for _, tokens, ids in sample])
    if size is not None:
        return BLOCK_SIZES[size]
    if not _is_number(sample[0][0]):
        return "date" if isinstance(sample[0][0], str) else "s"  # Anything else is rejected later.
    times = [float(at) for at, *_ in sample[:3] if _is_number(at)]
    shown = (", ".join(f"{(at - times[0]) / scale:g}" for at in times) for scale in (1, 1e3))
    seconds, milliseconds = shown
    raise TraceError(
        f"{where}, column 'timestamp': the unit of time is unknown. The first requests are at "
        f"{seconds} s if it is seconds (GuideLLM, Qwen, timed_trace), and at {milliseconds} s if "
        "it is milliseconds (Mooncake, AIPerf): give TraceReplay.time_unit = 's' or 'ms'"
    )


def find_block_size(sample: Iterable[tuple[Any, Any]]) -> int | None:
    """Return the published size of a block that all requests have, if it is exactly one.

    Args:
        sample: Prompt tokens and hash ids of requests.
    """
    known = [
        (tokens, len(ids))
        for tokens, ids in sample
        if isinstance(tokens, int | float) and isinstance(ids, tuple) and ids
    ]
    # Some traces have an id for the incomplete block at the end, some have not.
    sizes = [
        size
        for size in BLOCK_SIZES
        if all(count in (tokens // size, -(-tokens // size)) for tokens, count in known)
    ]
    return sizes[0] if known and len(sizes) == 1 else None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
