"""Tables of what each tenant of a service has used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.quotas import actor
from serving.quotas.accounts import Usage

if TYPE_CHECKING:
    from pandas import DataFrame


def usage_frame(
    application: str,
    usd_per_million_prompt_tokens: float | None = None,
    usd_per_million_output_tokens: float | None = None,
) -> DataFrame:
    """Return one row per tenant of a service, as `Endpoint.usage` describes it.

    Args:
        application: Name of the Serve application.
        usd_per_million_prompt_tokens: Price of prompt tokens; default: no column ``usd``.
        usd_per_million_output_tokens: Price of output tokens; default: no column ``usd``.
    """
    from pandas import DataFrame

    columns = list(vars(Usage()))
    frame = DataFrame.from_dict(actor.usage_by_tenant(application), orient="index", columns=columns)
    frame = frame.rename_axis("tenant").sort_index()
    prompt, output = usd_per_million_prompt_tokens, usd_per_million_output_tokens
    if prompt is not None and output is not None:
        cost = frame["prompt_tokens"] * prompt + frame["output_tokens"] * output
        frame["usd"] = cost / 1e6
    return frame
