"""The quality of a guardrail on labelled texts, and the cost of routing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def parse_guardrail_header(header: str | None) -> Counter[str]:
    """Return the number of entities of each type in an `x-guardrail` header."""
    entries = re.findall(r"(\w+);action=\w+;count=(\d+)", header or "")
    return Counter({entity: int(count) for entity, count in entries})


def precision_recall(
    truths: Sequence[Mapping[str, int]], found: Iterable[Mapping[str, int]]
) -> pd.DataFrame:
    """Return precision and recall, one row per type and one for all.

    Counted text by text: of a type found n times where m are labelled, min(n, m) are right.
    Precision is right / found and recall is right / labelled, NaN if the denominator is 0.

    Args:
        truths: The labelled entities of each text, by type.
        found: The entities found in each text, by type.

    Returns:
        Columns: `labelled`, `found`, `right`, `precision`, `recall`.
    """
    import pandas as pd

    rows: dict[str, Counter[str]] = {}
    for truth, detected in zip(truths, found, strict=True):
        for entity in truth.keys() | detected.keys():
            n, m = detected.get(entity, 0), truth.get(entity, 0)
            counts = Counter({"labelled": m, "found": n, "right": min(n, m)})
            for row in (entity, "all"):
                rows[row] = rows.get(row, Counter()) + counts
    order = sorted(rows, key=lambda row: (row == "all", row))
    columns = ["labelled", "found", "right"]
    frame = pd.DataFrame(
        [[rows[row][name] for name in columns] for row in order],
        index=pd.Index(order, name="entity"),
        columns=columns,
        dtype=float,
    )
    frame["precision"] = frame.right / frame.found.where(frame.found > 0)
    frame["recall"] = frame.right / frame.labelled.where(frame.labelled > 0)
    return frame


def routing_costs(requests: pd.DataFrame, prices: Mapping[str, float], large: str) -> pd.DataFrame:
    """Return what the router saved, one row per model and one for all.

    Args:
        requests: `Run.requests_frame`. Completed requests count.
        prices: $ per million tokens by model, of prompts and answers together.
        large: The model that would have answered everything without a router.

    Returns:
        Columns: `requests`, `tokens`, `usd`, `usd_large` (if `large` had answered the same
        tokens), `median_e2el_ms`.
    """
    import pandas as pd

    done = requests[requests.status == "ok"]
    frame = done[["model", "e2el_ms"]].assign(tokens=done.prompt_tokens + done.output_tokens)
    frame["usd"] = frame.tokens * frame.model.map(prices) / 1e6
    frame["usd_large"] = frame.tokens * prices[large] / 1e6
    whole = frame.assign(model="all")
    grouped = pd.concat([frame, whole]).groupby("model", sort=False)
    return grouped.agg(
        requests=("tokens", "size"),
        tokens=("tokens", "sum"),
        usd=("usd", "sum"),
        usd_large=("usd_large", "sum"),
        median_e2el_ms=("e2el_ms", "median"),
    )
