"""Records in, a `Summary` out. Pure: nothing here reads a clock, a file or the network.

Definitions, per request that completed, in milliseconds. All but the last two are those of
`vllm bench serve` (vLLM 0.29, `vllm/benchmarks/serve.py`, `calculate_metrics`):

- TTFT = first_token - sent. E2EL = end - sent.
- TPOT = (E2EL - TTFT) / (output tokens - 1), for requests of two or more output tokens.
- ITL = the gaps between the token events of a request, pooled over the requests.
- TTFT from schedule = first_token - scheduled. E2EL from schedule = end - scheduled. A client that
  sends late cannot hide queueing from these.

Over these: the mean, the median, the standard deviation (of the population), and percentiles with
linear interpolation, as numpy computes them. A figure of no values is None (vLLM prints 0).

Rates are per second of `duration`: request_throughput = completed / duration; output_throughput =
output tokens of completed requests / duration; total_token_throughput adds their prompt tokens;
request_goodput = completed requests within every bound of the SLO / duration (a request of one
output token has no TPOT and is within any bound on it, as in vLLM). slo_attainment = good /
(completed + failed + shed + cancelled ones that were past a bound when they were cut): a failed
request was never good, and a request that we cut early proves nothing.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from serving.spec import explain
from workbench.errors import SettingError, UnknownMetricError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from workbench.client import LoopWatch, RequestRecord

    Floats = NDArray[np.float64]
    Codes = NDArray[np.int32]

STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99")
LATENCIES = ("ttft", "tpot", "itl", "e2el", "ttft_from_schedule", "e2el_from_schedule")
_STATUSES = {"ok": 0, "error": 1, "timeout": 2, "shed": 3, "cancelled": 4}
_CHUNK = 512


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SLO(_Frozen):
    """Upper bounds in ms that a good request meets all of, and the share that must be good.

    Raises UnknownMetricError for a name that is no metric, SettingError for a value that is no
    bound.
    """

    ttft_ms: float | None = Field(None, gt=0, description="Send to first token.")
    tpot_ms: float | None = Field(None, gt=0, description="Mean time per further token.")
    e2el_ms: float | None = Field(None, gt=0, description="Send to the end.")
    ttft_from_schedule_ms: float | None = Field(None, gt=0, description="TTFT, from schedule.")
    e2el_from_schedule_ms: float | None = Field(None, gt=0, description="E2EL, from schedule.")
    target: float = Field(0.99, gt=0, le=1, description="Share of requests that must be good.")

    def __init__(self, **bounds: Any) -> None:
        try:
            super().__init__(**bounds)
        except ValidationError as problem:
            unknown = any(item["type"] == "extra_forbidden" for item in problem.errors())
            kind = UnknownMetricError if unknown else SettingError
            raise kind(explain(problem, type(self))) from None
        if not self.bounds():
            known = ", ".join(name for name in type(self).model_fields if name != "target")
            raise SettingError(f"SLO has no bound: give at least one of {known}")

    def bounds(self) -> dict[str, float]:
        """The given bounds in ms: `ttft_ms` and so on to its value."""
        return self.model_dump(exclude={"target"}, exclude_none=True)


class HealthBounds(_Frozen):
    """Past one of these, the client itself shaped the figures."""

    send_lag_p99_ms: float = Field(25, gt=0, description="How late requests were sent.")
    loop_lag_p99_ms: float = Field(25, gt=0, description="How late the event loop ran.")
    cpu_share: float = Field(0.9, gt=0, le=1, description="CPU share of a load worker.")


class ClientHealth(_Frozen):
    """Whether the client kept up. `client_limited` is None where nothing was measured."""

    send_lag_p99_ms: float | None = Field(None, description="p99 of sent - scheduled.")
    loop_lag_p99_ms: float | None = Field(None, description="p99 lag of the event loops.")
    cpu_share: float | None = Field(None, description="Highest CPU share of a load worker.")
    client_limited: bool | None = Field(None, description="True if one is past its bound.")
    reasons: tuple[str, ...] = Field((), description="What is past its bound.")
    bounds: HealthBounds = Field(HealthBounds(), description="What it was judged by.")

    @classmethod
    def judge(cls, bounds: HealthBounds | None = None, **measured: float | None) -> Self:
        """The verdict on the measured `send_lag_p99_ms`, `loop_lag_p99_ms`, `cpu_share`."""
        bounds = bounds or HealthBounds()
        limits = bounds.model_dump()
        known = {name: value for name, value in measured.items() if value is not None}
        reasons = tuple(
            f"{name} {value:.3g} is past {limits[name]:g}"
            for name, value in known.items()
            if value > limits[name]
        )
        limited = bool(reasons) if known else None
        return cls(**measured, client_limited=limited, reasons=reasons, bounds=bounds)

    @property
    def verdict(self) -> Literal["ok", "client limited", "not measured"]:
        if self.client_limited is None:
            return "not measured"
        return "client limited" if self.client_limited else "ok"


class _Counts(_Frozen):
    completed: int = Field(description="Requests that ended well.")
    failed: int = Field(description="Errors and timeouts.")
    shed: int = Field(description="Refused with HTTP 429 or 503.")
    cancelled: int = Field(description="Cut by the client; in no rate and no latency.")
    duration: float | None = Field(description="Seconds that the rates are taken over.")
    total_input_tokens: int | None = Field(description="Prompt tokens of completed requests.")
    total_output_tokens: int | None = Field(description="Output tokens of completed requests.")
    without_usage: int = Field(description="Completed requests whose tokens nobody counted.")
    request_throughput: float | None = Field(description="Completed requests a second.")
    output_throughput: float | None = Field(description="Output tokens a second.")
    total_token_throughput: float | None = Field(description="Prompt and output tokens a second.")
    request_goodput: float | None = Field(description="Requests within the SLO a second.")
    slo: SLO | None = Field(description="The bounds that goodput is counted against.")
    slo_attainment: float | None = Field(description="Share of requests within the SLO.")


_FIGURES: dict[str, Any] = {
    f"{statistic}_{latency}_ms": (float | None, None)
    for latency in LATENCIES
    for statistic in STATISTICS
}
_Flat: Any = create_model("_Flat", __base__=_Counts, **_FIGURES)


class Summary(_Flat):
    """The figures of a run, under vLLM's names; `model_dump` is `summary.json`."""

    warmup_s: float = Field(0, description="Seconds cut from the start.")
    drift: float | None = Field(None, description="Median E2EL, last third over first third.")
    steady: bool | None = Field(None, description="No drift; None with too few requests to say.")
    client_health: ClientHealth = Field(description="Whether the client kept up.")
    cost: dict[str, Any] | None = Field(None, description="Filled in by workbench.cost.")
    by_model: dict[str, Summary] | None = Field(None, description="If there were several.")
    by_tenant: dict[str, Summary] | None = Field(None, description="If there were several.")

    if TYPE_CHECKING:
        # The latency fields are made above, where a type checker does not see them.
        def __getattr__(self, name: str) -> Any: ...

    def figure(self, name: str) -> float | None:
        """The figure of that name, None where absent. Raises UnknownMetricError."""
        value = getattr(self, name, self)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise UnknownMetricError(f"there is no figure {name!r}. {_nearest(name, type(self))}")

    @property
    def slo_met(self) -> bool | None:
        """Whether attainment reached the SLO's target."""
        if self.slo is None or self.slo_attainment is None:
            return None
        return bool(self.slo_attainment >= self.slo.target)

    def table(self, *, from_schedule: bool = False) -> pd.DataFrame:
        """Latencies in ms: a row each, with mean, p50, p90, p95 and p99."""
        import pandas as pd

        columns = ("mean", "p50", "p90", "p95", "p99")
        shown = LATENCIES if from_schedule else LATENCIES[:4]
        rows = [[getattr(self, f"{s}_{latency}_ms") for s in columns] for latency in shown]
        names = [name.partition("_") for name in shown]
        index = [f"{head.upper()} {tail.replace('_', ' ')}".strip() for head, _, tail in names]
        table = pd.DataFrame(rows, index=index, columns=list(columns), dtype=float)
        limited = self.client_health.client_limited
        return table.rename_axis(columns="ms (client limited)" if limited else "ms")

    def headline(self) -> str:
        """The run in one line."""
        limited = "CLIENT LIMITED: " if self.client_health.client_limited else ""
        cut = f", {self.cancelled} cancelled" if self.cancelled else ""
        parts = [
            f"{self.completed} completed, {self.failed} failed, {self.shed} shed{cut}",
            _said("in {:.1f} s", self.duration),
            _said("{:.2f} requests/s", self.request_throughput),
            _said("{:.0f} output tokens/s", self.output_throughput),
            _said("TTFT p50 {:.0f} ms", self.p50_ttft_ms),
            _said("p99 {:.0f} ms", self.p99_ttft_ms),
            _said("{:.1%} within the SLO", self.slo_attainment),
        ]
        return limited + ", ".join(part for part in parts if part)


def _nearest(name: str, model: type[BaseModel]) -> str:
    close = get_close_matches(name, list(model.model_fields), n=1, cutoff=0.4)
    return f"Did you mean {close[0]!r}?" if close else "summary.model_dump() has them all."


def _said(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def summarize(
    records: Iterable[RequestRecord],
    *,
    duration_s: float | None = None,
    slo: SLO | None = None,
    warmup_s: float = 0.0,
    health: ClientHealth | None = None,
    watch: LoopWatch | None = None,
) -> Summary:
    """Summarize the requests that were due at least `warmup_s` after the first one.

    `records` is read once and not kept. `duration_s` is that of the whole run, warm-up included;
    without it, from the first request's due time (scheduled, else sent) to the last end. Without
    a verdict in `health`, one is made from the send lag and, if given, the `watch` over the loop.
    """
    whole = _Columns.read(records)
    kept = whole.take(whole.due >= _least(whole.due) + warmup_s) if warmup_s else whole
    start = _least(whole.due) + warmup_s
    duration = _greatest(kept.end) - start if duration_s is None else duration_s - warmup_s
    if health is None:
        lag = (kept.sent - kept.scheduled) * 1e3
        health = ClientHealth.judge(
            send_lag_p99_ms=_statistics(lag)["p99"],
            loop_lag_p99_ms=None if watch is None else watch.loop_lag_p99_ms,
            cpu_share=None if watch is None else watch.cpu_share,
        )
    shared: dict[str, Any] = {
        "duration": duration if duration > 0 else None,
        "slo": slo,
        "health": health,
    }
    groups = {f"by_{name}": _by(kept, name, shared) for name in ("model", "tenant")}
    summary = _summary(kept, **shared)
    return summary.model_copy(update={**groups, "warmup_s": warmup_s})


def _by(columns: _Columns, name: str, shared: Mapping[str, Any]) -> dict[str, Summary] | None:
    codes, names = columns.codes[name], columns.names[name]
    if len(names) < 2:
        return None
    found = {names[code]: columns.take(codes == code) for code in range(len(names))}
    return {group or "(none)": _summary(part, **shared) for group, part in found.items()}


def _summary(
    columns: _Columns, *, duration: float | None, slo: SLO | None, health: ClientHealth
) -> Summary:
    counts = dict(zip(_STATUSES, np.bincount(columns.status, minlength=5).tolist(), strict=True))
    ok = columns.status == 0
    latencies = columns.latencies(ok)
    flat: dict[str, float | None] = {}
    for name, values in latencies.items():
        flat |= {f"{s}_{name}_ms": v for s, v in _statistics(values * 1e3).items()}
    flat |= {f"{s}_itl_ms": v and v * 1e3 for s, v in _statistics(columns.gaps, own=True).items()}
    good, judged = columns.good(slo)
    tokens_in, tokens_out = _total(columns.prompt[ok]), _total(columns.output[ok])
    both = None if tokens_in is None or tokens_out is None else tokens_in + tokens_out
    drift, steady = _drift(columns.due[ok], latencies["e2el"])
    rate = {"request_throughput": counts["ok"], "output_throughput": tokens_out}
    rate |= {"total_token_throughput": both, "request_goodput": good}
    return Summary(
        completed=counts["ok"],
        failed=counts["error"] + counts["timeout"],
        shed=counts["shed"],
        cancelled=counts["cancelled"],
        duration=duration,
        total_input_tokens=tokens_in,
        total_output_tokens=tokens_out,
        without_usage=int(np.isnan(columns.output[ok]).sum()),
        slo=slo,
        slo_attainment=good / judged if good is not None and judged else None,
        drift=drift,
        steady=steady,
        client_health=health,
        **{n: None if v is None or duration is None else v / duration for n, v in rate.items()},
        **flat,
    )


class _Columns:
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
        seen: list[dict[Any, int]] = [dict(_STATUSES), {}, {}]
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

    def take(self, mask: NDArray[np.bool_]) -> _Columns:
        return _Columns(
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
        values = self.latencies(np.ones(len(self.status), bool))
        for ttft, e2el in (("ttft", "e2el"), ("ttft_from_schedule", "e2el_from_schedule")):
            # Without a first token, the wait for it lasted at least to the end.
            values[ttft] = np.where(np.isnan(values[ttft]), values[e2el], values[ttft])
        values["tpot"] = np.where(self.output <= 1, 0.0, values["tpot"])
        bounds = [(n.removesuffix("_ms"), ms / 1e3) for n, ms in slo.bounds().items()]
        # NaN is neither within nor past: what was not measured is not good.
        within = np.all([values[name] <= bound for name, bound in bounds], axis=0)
        past = np.any([values[name] > bound for name, bound in bounds], axis=0)
        ok, cut = self.status == 0, self.status == _STATUSES["cancelled"]
        return int((ok & within).sum()), int((~cut | past).sum())


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


def _statistics(values: Floats, *, own: bool = False) -> dict[str, float | None]:
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


def _total(values: Floats) -> int | None:
    known = values[~np.isnan(values)]
    return int(known.sum()) if len(known) else None


def _least(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.min()) if len(known) else 0.0


def _greatest(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else 0.0


def _drift(due: Floats, e2el: Floats) -> tuple[float | None, bool | None]:
    """Median E2EL of the last third over that of the first, by due time, and whether it is steady.

    Not steady: off by more than a fifth, and by more than chance (a rank-sum test, |z| > 2.58).
    """
    third = len(due) // 3
    if third < 10:
        return None, None
    ordered = e2el[np.argsort(due, kind="stable")]
    first, last = ordered[:third], ordered[-third:]
    ratio = float(np.median(last) / np.median(first)) if np.median(first) else None
    ranks = np.argsort(np.argsort(np.concatenate([first, last]), kind="stable"))
    surplus = float(ranks[third:].sum()) - third * (2 * third - 1) / 2
    z = surplus / (third * third * (2 * third + 1) / 12) ** 0.5
    return ratio, ratio is None or 1 / 1.2 <= ratio <= 1.2 or abs(z) <= 2.58


class Interval(NamedTuple):
    """An estimate over repeats, with its confidence interval."""

    estimate: float
    low: float
    high: float
    repeats: int


def repeat_intervals(
    summaries: Sequence[Summary], *, rng: np.random.Generator, confidence: float = 0.95
) -> dict[str, Interval]:
    """For every figure that all repeats have: its mean over the repeats and a bootstrap interval.

    The unit that is resampled is the repeat, as requests of one run are not independent. Raises
    SettingError for fewer than 3 repeats.
    """
    rows = [summary.model_dump(exclude_none=True) for summary in summaries]
    names = [n for n, v in rows[0].items() if isinstance(v, int | float)] if rows else ["repeats"]
    shared = [
        n for n in names if all(n in row for row in rows) and not isinstance(rows[0][n], bool)
    ]
    return {n: bootstrap([row[n] for row in rows], rng=rng, confidence=confidence) for n in shared}


def paired_ratios(
    first: Sequence[Summary],
    second: Sequence[Summary],
    name: str,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Interval:
    """`second` over `first` of figure `name`, run by run; the mean is geometric."""
    pairs = [(a.figure(name), b.figure(name)) for a, b in zip(first, second, strict=True)]
    ratios = [b / a for a, b in pairs if a and b]
    if len(ratios) < len(pairs):
        raise SettingError(f"{name} is absent or zero in one of the runs: it has no ratio")
    logs = bootstrap(np.log(ratios).tolist(), rng=rng, confidence=confidence)
    mean, low, high = np.exp(logs[:3]).tolist()
    return Interval(mean, low, high, logs.repeats)


def bootstrap(
    values: Sequence[float],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """The mean of `values` and its percentile bootstrap interval, widened for few values.

    The plain interval is too narrow for n values, as if their spread were known: its tails are
    taken at Phi(-sqrt(n / (n - 1)) t) with Student's t of n - 1 degrees instead (Hesterberg, "What
    Teachers Should Know About the Bootstrap", 2015, the expanded percentile interval). For 3
    values that is their range. Of nominal 95 % intervals for a normal mean, 87 % of those from
    4 values and 93 % of those from 8 cover it (simulated): more repeats make a surer interval.
    """
    from scipy.stats import norm, t

    n = len(values)
    if n < 3:
        raise SettingError(f"repeats is {n}: an interval needs at least 3")
    data = np.asarray(values, np.float64)
    means = data[rng.integers(0, n, (resamples, n))].mean(axis=1)
    tail = norm.cdf((n / (n - 1)) ** 0.5 * t.ppf((1 - confidence) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high), n)
