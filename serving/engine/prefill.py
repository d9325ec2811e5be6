"""The request that a prefill replica gets from a decode replica."""

from __future__ import annotations

from typing import Any


def without_min_tokens(request: Any) -> Any:
    """Return a prefill request whose answer may be one token, as Ray Serve LLM limits it.

    Ray leaves ``min_tokens`` as it is, and vLLM rejects a value above ``max_tokens``.
    """
    if getattr(request, "min_tokens", 0):
        request.min_tokens = 0
    return request
