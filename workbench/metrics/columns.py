"""Request records as numpy columns, so that a million of them are summarized in a few passes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.records import RequestRecord

    Floats = NDArray[np.float64]
    Codes = NDArray[np.int32]
    Mask = NDArray[np.bool_]

STATUSES = {"ok": 0, "error": 1, "timeout": 2, "shed": 3, "cancelled": 4}
_CHUNK = 512


class Columns:
    """Request records as arrays, one element per request.

    The arrays in `FIELDS` have the record's names and units (float64, NaN where absent). `status`
    has the codes of `STATUSES`. `gaps` has the seconds between the tokens of all completed
    requests, request by request, and `gap_counts` how many of them belong to each request.
    """

    FIELDS = ("scheduled_s", "sent_s", "first_token_s", "end_s", "prompt_tokens", "output_tokens")
    CODED = ("status", "model", "tenant")

    def __init__(self, fields: Sequence[Floats], **coded: Any) -> None:
        self.fields = fields
        self.scheduled_s, self.sent_s, self.first_token_s, self.end_s, *tokens = fields
        self.prompt_tokens, self.output_tokens = tokens
        self.due_s = np.where(np.isnan(self.scheduled_s), self.sent_s, self.scheduled_s)
        self.status: Codes = coded["status"]
        self.gaps: Floats = coded["gaps"]
        self.gap_counts: Codes = coded["gap_counts"]
        self.codes: dict[str, Codes] = coded["codes"]
        self.names: dict[str, list[str | None]] = coded["names"]

    @classmethod
    def read(cls, records: Iterable[RequestRecord]) -> Self:
        """Read records in chunks, so that a million of them are never in memory as objects."""
        fields: list[list[Floats]] = [[np.empty(0)] for _ in cls.FIELDS]
        coded: list[list[Codes]] = [[np.empty(0, np.int32)] for _ in cls.CODED]
        numbering: list[dict[Any, int]] = [dict(STATUSES), {}, {}]
        gaps = array("d")  # grows in place; joining parts would need twice the memory
        counts = [np.empty(0, np.int32)]
        source, pick = iter(records), attrgetter(*cls.FIELDS, *cls.CODED)
        while rows := _rows(source, pick):
            values, times = zip(*rows, strict=True)
            columns = list(zip(*values, strict=True))
            for column, parts in zip(columns, fields, strict=False):
                parts.append(np.array(column, np.float64))
            for column, codes, numbers in zip(
                columns[len(fields) :], coded, numbering, strict=True
            ):
                codes.append(_encode(column, numbers))
            chunk_gaps, chunk_counts = _gaps(times)
            gaps.frombytes(chunk_gaps.tobytes())
            counts.append(chunk_counts)
        status, model, tenant = map(np.concatenate, coded)
        return cls(
            [np.concatenate(column) for column in fields],
            status=status,
            gaps=np.frombuffer(gaps, np.float64),
            gap_counts=np.concatenate(counts),
            codes={"model": model, "tenant": tenant},
            names={"model": list(numbering[1]), "tenant": list(numbering[2])},
        )

    def __len__(self) -> int:
        return len(self.status)

    @property
    def ok(self) -> Mask:
        """Whether each request completed."""
        ok: Mask = self.status == STATUSES["ok"]
        return ok

    def take(self, mask: Mask) -> Columns:
        """Return the requests for which `mask` is true."""
        return Columns(
            [field[mask] for field in self.fields],
            status=self.status[mask],
            gaps=self.gaps[np.repeat(mask, self.gap_counts)],
            gap_counts=self.gap_counts[mask],
            codes={name: codes[mask] for name, codes in self.codes.items()},
            names=self.names,
        )

    def token_s(self, number: int) -> Floats:
        """Return the time of each completed request's `number`-th token (NaN if it had fewer).

        Counted in token events from 1, in seconds on the run's clock.
        """
        time_s = np.where(self.ok, self.first_token_s, np.nan)
        first_gap = np.cumsum(self.gap_counts) - self.gap_counts
        for gap in range(number - 1):
            has_gap = self.gap_counts > gap
            time_s[has_gap] += self.gaps[first_gap[has_gap] + gap]
            time_s[~has_gap] = np.nan
        return time_s


def _encode(values: Sequence[Any], numbers: dict[Any, int]) -> Codes:
    """Replace each value by its number; `numbers` gets an entry for each new value."""
    if len(set(values)) == 1:
        return np.full(len(values), numbers.setdefault(values[0], len(numbers)), np.int32)
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int32)


def _rows(source: Iterator[RequestRecord], pick: Any) -> list[tuple[Any, bytes]]:
    """Read the next chunk: each record's fields, and the token times of a completed one.

    The times are packed at once: thousands of tuples of floats are slow to keep.
    """
    return [
        (
            pick(r),
            struct.pack(f"{len(t)}d", *t) if (t := r.token_times_s) and r.status == "ok" else b"",
        )
        for r in islice(source, _CHUNK)
    ]


def _gaps(times: Sequence[bytes]) -> tuple[Floats, Codes]:
    """Return the gaps between packed token times, and the number of gaps of each request."""
    lengths = np.array([len(packed) for packed in times], np.int32) // 8
    steps = np.diff(np.frombuffer(b"".join(times), np.float64))
    between_requests = np.cumsum(lengths[lengths > 0])[:-1] - 1
    return np.delete(steps, between_requests), np.maximum(lengths - 1, 0)


def total(values: Floats) -> int | None:
    """Return the sum of the known values, None if none is known."""
    known = values[~np.isnan(values)]
    return int(known.sum()) if len(known) else None
