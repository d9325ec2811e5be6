"""The turns of sessions: latency by turn, and the share of prompts found in the prefix cache.

A load numbers its sessions and their turns in the ids of its requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = [
    "requests",
    "completed",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "prompt_tokens",
    "cached_share",
]
_ID = r"^(?P<session>load-[0-9a-f]+-\d+)-(?P<turn>\d+)$"


def turns_frame(requests: pd.DataFrame) -> pd.DataFrame:
    """Return the requests of a run with their session and turn, in the order of both.

    Columns: those of `Run.requests_frame`, `session` (a text), `turn` (from 0) and `cached_share`
    (tokens found in the prefix cache over tokens of the prompt; missing where the server does not
    report them). Requests without a turn, such as those of a live load, are left out.

    Args:
        requests: The frame of `Run.requests_frame`.
    """
    ids = requests.request_id.astype(str).str.extract(_ID)
    turns = requests.assign(session=ids.session, turn=ids.turn).dropna(subset=["session"])
    turns["turn"] = turns.turn.astype(int)
    turns["cached_share"] = turns.cached_tokens / turns.prompt_tokens
    numbers = turns.session.str.extract(r"(\d+)$", expand=False).astype(int)
    order = turns.assign(number=numbers).sort_values(["number", "session", "turn"], kind="stable")
    return order.drop(columns="number").reset_index(drop=True)


def turn_table(turns: pd.DataFrame) -> pd.DataFrame:
    """Return a row per turn: what the n-th requests of all sessions have in common.

    Columns: `requests`, `completed`, `ttft_p50_ms`, `ttft_p99_ms`, `prompt_tokens` (mean) and
    `cached_share` (of all their tokens). The index is the turn.

    Args:
        turns: The frame of `turns_frame`.
    """
    return _table(turns, "turn")


def session_table(turns: pd.DataFrame) -> pd.DataFrame:
    """Return a row per session, with the columns of `turn_table`. The index is the session.

    Args:
        turns: The frame of `turns_frame`.
    """
    return _table(turns, "session")


def _table(turns: pd.DataFrame, key: str) -> pd.DataFrame:
    import pandas as pd

    if turns.empty:
        return pd.DataFrame(columns=_COLUMNS)
    completed = turns[turns.status == "ok"]
    known = completed.dropna(subset=["cached_tokens", "prompt_tokens"]).groupby(key)
    groups = completed.groupby(key)
    cached, prompts = known.cached_tokens.sum(), known.prompt_tokens.sum()
    columns = (
        turns.groupby(key, sort=False).size(),
        groups.size(),
        groups.ttft_ms.quantile(0.5),
        groups.ttft_ms.quantile(0.99),
        groups.prompt_tokens.mean(),
        cached / prompts,
    )
    table = pd.DataFrame(dict(zip(_COLUMNS, columns, strict=True)))
    return table.fillna({"completed": 0})
