"""Limits of a single request, the same for every tenant."""

from __future__ import annotations

from pydantic import Field

from serving.spec.base import Strict


class Limits(Strict):
    """Limits of a single request. A request over a limit is refused, never trimmed."""

    max_body_mib: float = Field(
        4, gt=0, le=64, description="Largest request body, in MiB, up to 64; more gives HTTP 413."
    )
    max_prompt_chars: int = Field(
        1_000_000,
        ge=1,
        description="Maximum number of characters in all messages or prompts; a token id counts "
        "as one.",
    )
    max_messages: int = Field(
        1024, ge=1, description="Maximum number of messages in a chat request."
    )
    max_tokens: int = Field(
        16_384, ge=1, description="Largest allowed max_tokens or max_completion_tokens."
    )
    max_choices: int = Field(
        16,
        ge=1,
        description="Maximum number of answers per request: the number of prompts times n.",
    )
    max_stop_strings: int = Field(
        16, ge=0, description="Maximum number of stop strings in a request."
    )
    max_stop_chars: int = Field(
        256, ge=1, description="Maximum number of characters in a stop string."
    )
    body_timeout_s: float = Field(
        30,
        gt=0,
        le=3600,
        description="Seconds within which the request body must arrive, up to 3600; else HTTP 408.",
    )
    max_seconds: float = Field(
        600,
        gt=0,
        le=86_400,
        description="Seconds within which a request must be answered, up to 86400; else HTTP 504.",
    )

    @property
    def max_body_bytes(self) -> int:
        """Largest request body in bytes."""
        return int(self.max_body_mib * 2**20)
