"""Records as arrays, and what is computed over them: a million requests in a few passes."""

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

    from workbench.metrics.slo import SLO
    from workbench.records import RequestRecord

    Floats = NDArray[np.float64]
    Codes = NDArray[np.int32]

STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99")
STATUSES = {"ok": 0, "error": 1, "timeout": 2, "shed": 3, "cancelled": 4}
_CHUNK = 512


class Columns:
    """Records as arrays: a float64 a field (NaN where absent), and all token gaps in one."""

    FIELDS = ("scheduled_s", "sent_s", "first_token_s", "end_s", "prompt_tokens", "output_tokens")
    CODED = ("status", "model", "tenant")

    def __init__(self, fields: Sequence[Floats], **rest: Any) -> None:
        self.fields = fields
        self.scheduled, self.sent, self.first, self.end, self.prompt, self.output = fields
        self.due = np.where(np.isnan(self.scheduled), self.sent, self.scheduled)
        self.status: Codes = rest["status"]
        self.gaps: Floats = rest["gaps"]
        self.gap_counts: Codes = rest["gap_counts"]
        self.codes: dict[str, Codes] = rest["codes"]
        self.names: dict[str, list[str | None]] = rest["names"]

    @classmethod
    def read(cls, records: Iterable[RequestRecord]) -> Self:
        """One pass in chunks, so that a million records never stand in memory as objects."""
        fields: list[list[Floats]] = [[np.empty(0)] for _ in cls.FIELDS]
        coded: list[list[Codes]] = [[np.empty(0, np.int32)] for _ in cls.CODED]
        seen: list[dict[Any, int]] = [dict(STATUSES), {}, {}]
        gaps = array("d")  # grows in place, where joining parts would hold them twice
        counts = [np.empty(0, np.int32)]
        source, pick = iter(records), attrgetter(*cls.FIELDS, *cls.CODED)
        while rows := _rows(source, pick):
            values, times = zip(*rows, strict=True)
            columns = list(zip(*values, strict=True))
            for column, parts in zip(columns, fields, strict=False):
                parts.append(np.array(column, np.float64))
            for column, codes, known in zip(columns[len(fields) :], coded, seen, strict=True):
                codes.append(_coded(column, known))
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
            names={"model": list(seen[1]), "tenant": list(seen[2])},
        )

    def take(self, mask: NDArray[np.bool_]) -> Columns:
        """The requests where `mask` (a bool a request) is true."""
        return Columns(
            [field[mask] for field in self.fields],
            status=self.status[mask],
            gaps=self.gaps[np.repeat(mask, self.gap_counts)],
            gap_counts=self.gap_counts[mask],
            codes={name: codes[mask] for name, codes in self.codes.items()},
            names=self.names,
        )

    def latencies(self, mask: NDArray[np.bool_]) -> dict[str, Floats]:
        """Seconds, a value for each of the `mask`ed requests, NaN where it has none."""
        sent, first, end = self.sent[mask], self.first[mask], self.end[mask]
        due, output = self.scheduled[mask], self.output[mask]
        tpot = (end - first) / np.where(output > 1, output - 1, np.nan)
        latencies = {"ttft": first - sent, "tpot": tpot, "e2el": end - sent}
        return latencies | {"ttft_from_schedule": first - due, "e2el_from_schedule": end - due}

    def good(self, slo: SLO | None) -> tuple[int | None, int]:
        """How many requests met `slo`, and how many are judged by it."""
        if slo is None:
            return None, 0
        good, past = self.met(slo)
        cut = self.status == STATUSES["cancelled"]
        return int(good.sum()), int((~cut | past).sum())

    def met(self, slo: SLO) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """For each request, whether it completed within `slo`, and whether it is past a bound."""
        values = self.latencies(np.ones(len(self.status), bool))
        for ttft, e2el in (("ttft", "e2el"), ("ttft_from_schedule", "e2el_from_schedule")):
            # Without a first token, the wait for it lasted at least to the end.
            values[ttft] = np.where(np.isnan(values[ttft]), values[e2el], values[ttft])
        values["tpot"] = np.where(self.output <= 1, 0.0, values["tpot"])
        bounds = [(n.removesuffix("_ms"), ms / 1e3) for n, ms in slo.bounds().items()]
        # NaN is neither within nor past: what was not measured is not good.
        within = np.all([values[name] <= bound for name, bound in bounds], axis=0)
        past = np.any([values[name] > bound for name, bound in bounds], axis=0)
        return (self.status == 0) & within, past


def _coded(values: Sequence[Any], known: dict[Any, int]) -> Codes:
    """Each value's number in `known`, which learns new ones."""
    if len(set(values)) == 1:
        return np.full(len(values), known.setdefault(values[0], len(known)), np.int32)
    return np.array([known.setdefault(value, len(known)) for value in values], np.int32)


def _rows(source: Iterator[RequestRecord], pick: Any) -> list[tuple[Any, bytes]]:
    """The next records: their fields, and the token times of completed ones as packed floats.

    Packed at once, as a million tuples of floats, or even a few thousand, are slow to keep.
    """
    return [
        (
            pick(r),
            struct.pack(f"{len(t)}d", *t) if (t := r.token_times_s) and r.status == "ok" else b"",
        )
        for r in islice(source, _CHUNK)
    ]


def _gaps(times: Sequence[bytes]) -> tuple[Floats, Codes]:
    """The token gaps of some records, and how many each of them has."""
    lengths = np.array([len(packed) for packed in times], np.int32) // 8
    steps = np.diff(np.frombuffer(b"".join(times), np.float64))
    between = np.cumsum(lengths[lengths > 0])[:-1] - 1
    return np.delete(steps, between), np.maximum(lengths - 1, 0)


def statistics(values: Floats, *, own: bool = False) -> dict[str, float | None]:
    """STATISTICS of `values` without NaNs. With `own`, `values` may be reordered (no copy)."""
    if not own:
        values = values[~np.isnan(values)]
    if not len(values):
        return dict.fromkeys(STATISTICS)
    mean = float(values.mean())
    blocks = np.array_split(values, len(values) // 1_000_000 + 1)
    spread = sum(float(np.square(block - mean).sum()) for block in blocks) / len(values)
    ranks = np.percentile(values, [50, 90, 95, 99], overwrite_input=True).tolist()
    return dict(zip(STATISTICS, [mean, ranks[0], spread**0.5, *ranks], strict=True))


def total(values: Floats) -> int | None:
    """The sum of what is known, None where nothing is."""
    known = values[~np.isnan(values)]
    return int(known.sum()) if len(known) else None


def least(values: Floats) -> float:
    """0 where nothing is known, as is `greatest`."""
    known = values[~np.isnan(values)]
    return float(known.min()) if len(known) else 0.0


def greatest(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else 0.0
