"""The formulas of the metrics in the registry that are longer than a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from workbench.metrics.columns import Columns, Floats
    from workbench.metrics.metric import Totals


def first_token_or_end(columns: Columns) -> Floats:
    """Return the time of the first token, else that of the end, in seconds on the run's clock."""
    # Without a first token, the wait for it lasted at least to the end.
    return np.where(np.isnan(columns.first_token_s), columns.end_s, columns.first_token_s)


def tpot(columns: Columns) -> Floats:
    """Return the mean time per output token after the first, in seconds."""
    further_tokens = np.where(columns.output_tokens > 1, columns.output_tokens - 1, np.nan)
    seconds: Floats = (columns.end_s - columns.first_token_s) / further_tokens
    return seconds


def bounded_tpot(columns: Columns) -> Floats:
    """Return the TPOT that an SLO compares with its bound, in seconds."""
    # As in vLLM, a request of one output token is within any bound.
    return np.where(columns.output_tokens <= 1, 0.0, tpot(columns))


def tokens_per_event(columns: Columns) -> Floats:
    """Return the mean number of output tokens per token event of each completed request."""
    streamed = columns.ok & ~np.isnan(columns.first_token_s) & (columns.output_tokens > 0)
    events = np.where(streamed, columns.gap_counts + 1.0, np.nan)
    tokens: Floats = np.maximum(columns.output_tokens / events, 1.0)
    return tokens


def gaps_per_token(columns: Columns) -> Floats:
    """Return the gaps between events per token, in seconds; none if each event had one token."""
    tokens = tokens_per_event(columns)
    if not (tokens > 1).any():
        return np.empty(0)  # Each event had one token: the same as ITL.
    gaps = columns.gaps / np.repeat(tokens, columns.gap_counts)
    known: Floats = gaps[~np.isnan(gaps)]
    return known


def without_usage(totals: Totals) -> int:
    """Return the number of completed requests without token counts."""
    return int(np.isnan(totals.columns.output_tokens[totals.columns.ok]).sum())


def all_tokens(totals: Totals) -> int | None:
    """Return the prompt and output tokens of completed requests, None if unknown."""
    prompt, output = totals.prompt_tokens, totals.output_tokens
    return None if prompt is None or output is None else prompt + output


def attainment(totals: Totals) -> float | None:
    """Return the share of the judged requests that are good, None without an SLO."""
    return totals.good / totals.judged if totals.good is not None and totals.judged else None


def mean_tokens_per_event(totals: Totals) -> float | None:
    """Return the output tokens per token event of all completed requests."""
    tokens = tokens_per_event(totals.columns)
    events = totals.columns.output_tokens / tokens
    known = ~np.isnan(events)
    if not known.any():
        return None
    return float(totals.columns.output_tokens[known].sum() / events[known].sum())
