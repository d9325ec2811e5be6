"""Every metric of a run, one entry each.

Summary, SLO, comparison, sweep, search, figures and report read their metrics from here. To add a
metric, add an entry to `LATENCIES` (a time per request or per token gap, reported as statistics)
or to `SCALARS` (one number per run). Nothing else has to change.

ITL is the gap between two events of a stream. With speculative decoding, or a server that groups
tokens, an event has several tokens; then `itl_per_token` has the gap per token.

The definitions of TTFT, TPOT, ITL, E2EL and of the rates are those of `vllm bench serve`
(vLLM 0.29, `vllm/benchmarks/serve.py`, `calculate_metrics`), except that a metric without values is
absent here (vLLM prints 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from workbench.errors import UnknownMetricError
from workbench.metrics import formulas
from workbench.metrics.metric import Latency, Scalar

LATENCIES = (
    Latency(
        "ttft",
        "TTFT",
        "Send to first token.",
        lambda columns: columns.first_token_s - columns.sent_s,
        bounded=lambda columns: formulas.first_token_or_end(columns) - columns.sent_s,
    ),
    Latency(
        "tpot",
        "TPOT",
        "Mean time per output token after the first: (E2EL - TTFT) / (tokens - 1).",
        formulas.tpot,
        bounded=formulas.bounded_tpot,
    ),
    Latency(
        "itl",
        "ITL",
        "Gap between two token events of a request, pooled over all requests.",
        lambda columns: columns.gaps,
        pooled=True,
    ),
    Latency(
        "itl_per_token",
        "ITL per token",
        "Gap between two token events, divided by the request's mean number of tokens per event; "
        "only if several tokens arrived in one event.",
        formulas.gaps_per_token,
        pooled=True,
        optional=True,
    ),
    Latency("e2el", "E2EL", "Send to end.", lambda columns: columns.end_s - columns.sent_s),
    Latency(
        "ttft_from_schedule",
        "TTFT from schedule",
        "Scheduled send to first token.",
        lambda columns: columns.first_token_s - columns.scheduled_s,
        bounded=lambda columns: formulas.first_token_or_end(columns) - columns.scheduled_s,
        from_schedule=True,
    ),
    Latency(
        "e2el_from_schedule",
        "E2EL from schedule",
        "Scheduled send to end.",
        lambda columns: columns.end_s - columns.scheduled_s,
        from_schedule=True,
    ),
)


SCALARS = (
    Scalar(
        "completed",
        "completed",
        "requests",
        "Requests that completed.",
        lambda totals: totals.count("ok"),
        direction="higher",
        kind=int,
        listed=True,
    ),
    Scalar(
        "failed",
        "failed",
        "requests",
        "Errors and timeouts.",
        lambda totals: totals.count("error", "timeout"),
        direction="lower",
        kind=int,
        listed=True,
    ),
    Scalar(
        "shed",
        "shed",
        "requests",
        "Requests rejected with HTTP 429 or 503.",
        lambda totals: totals.count("shed"),
        direction="lower",
        kind=int,
        listed=True,
    ),
    Scalar(
        "cancelled",
        "cancelled",
        "requests",
        "Requests that the client cancelled; in no rate and no latency.",
        lambda totals: totals.count("cancelled"),
        kind=int,
    ),
    Scalar(
        "duration",
        "duration",
        "s",
        "Seconds that the rates are taken over.",
        lambda totals: totals.duration,
    ),
    Scalar(
        "total_input_tokens",
        "input tokens",
        "tokens",
        "Prompt tokens of completed requests.",
        lambda totals: totals.prompt_tokens,
        kind=int | None,
    ),
    Scalar(
        "total_output_tokens",
        "output tokens",
        "tokens",
        "Output tokens of completed requests.",
        lambda totals: totals.output_tokens,
        kind=int | None,
    ),
    Scalar(
        "without_usage",
        "without usage",
        "requests",
        "Completed requests for which the server reported no token counts.",
        formulas.without_usage,
        kind=int,
    ),
    Scalar(
        "request_throughput",
        "request throughput",
        "requests/s",
        "Completed requests per second.",
        lambda totals: totals.per_second(totals.count("ok")),
        direction="higher",
        listed=True,
    ),
    Scalar(
        "output_throughput",
        "output throughput",
        "tokens/s",
        "Output tokens of completed requests per second.",
        lambda totals: totals.per_second(totals.output_tokens),
        direction="higher",
        listed=True,
    ),
    Scalar(
        "total_token_throughput",
        "token throughput",
        "tokens/s",
        "Prompt and output tokens of completed requests per second.",
        lambda totals: totals.per_second(formulas.all_tokens(totals)),
        direction="higher",
    ),
    Scalar(
        "request_goodput",
        "goodput",
        "requests/s",
        "Requests within the SLO per second.",
        lambda totals: totals.per_second(totals.good),
        direction="higher",
        listed=True,
    ),
    Scalar(
        "token_goodput",
        "token goodput",
        "tokens/s",
        "Output tokens of requests within the SLO per second.",
        lambda totals: totals.per_second(totals.good_tokens),
        direction="higher",
    ),
    Scalar(
        "tokens_per_event",
        "tokens per event",
        "tokens",
        "Mean number of output tokens in a token event.",
        formulas.mean_tokens_per_event,
    ),
    Scalar(
        "slo_attainment",
        "SLO attainment",
        "share",
        "Share of requests within the SLO.",
        formulas.attainment,
        direction="higher",
        listed=True,
    ),
)

PER_REQUEST = tuple(metric for metric in LATENCIES if not metric.pooled)
"""Latencies with one value per request: bounds of an SLO, columns of `Run.requests_frame`."""
COMPARED = tuple(metric for metric in PER_REQUEST if not metric.from_schedule)
"""Latencies in tables of several runs."""
COUNTS = tuple(m.name for m in SCALARS if m.listed and m.unit == "requests")
RATES = tuple(m.name for m in SCALARS if m.listed and m.unit != "requests")
"""`COUNTS` and `RATES` are the scalar metrics in tables of several runs."""


def compared_figures(*statistics: str) -> tuple[str, ...]:
    """Return the names of `statistics` of every latency in `COMPARED`."""
    return tuple(name for metric in COMPARED for name in metric.figures(*statistics))


def get_latency(name: str) -> Latency:
    """Return the latency called `name` in the registry."""
    return next(metric for metric in LATENCIES if metric.name == name)


def find_metric(figure: str) -> Latency | Scalar:
    """Return the metric that a figure belongs to.

    Args:
        figure: A name in `summary.json` ("p95_ttft_ms", "completed"), or a latency's `key`.

    Raises:
        UnknownMetricError: If there is no such figure.
    """
    for scalar in SCALARS:
        if figure == scalar.name:
            return scalar
    for timed in LATENCIES:
        if figure == timed.key or figure in timed.figures():
            return timed
    raise UnknownMetricError(f"{figure!r} is not a metric. {nearest(figure, all_figures())}")


def metric_label(figure: str) -> str:
    """Return the label of a figure with its unit: "p95 TTFT (ms)" for "p95_ttft_ms".

    Raises:
        UnknownMetricError: If there is no such figure.
    """
    metric = find_metric(figure)
    statistic = figure.removesuffix(f"{metric.name}_ms").rstrip("_")
    prefix = f"{statistic} " if isinstance(metric, Latency) and statistic else ""
    return f"{prefix}{metric.label} ({metric.unit})"


def latency_label(figure: str) -> str:
    """Return the label of a figure in ms, such as the axis of a latency.

    Raises:
        UnknownMetricError: If the figure is not a latency.
    """
    if not isinstance(find_metric(figure), Latency):
        raise UnknownMetricError(
            f"latency must be a figure in ms, as 'p95_ttft_ms', got {figure!r}"
        )
    return metric_label(figure)


def all_figures() -> Iterator[str]:
    """Yield the name of every figure in `summary.json`."""
    yield from (metric.name for metric in SCALARS)
    for metric in LATENCIES:
        yield from metric.figures()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the known figure closest to `name`, for an error message."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"Did you mean {close[0]!r}?" if close else "Summary.model_dump() contains all of them."
