"""What one request may ask for: bounds that hold for every tenant."""

from __future__ import annotations

from pydantic import Field

from serving.spec.base import Strict


class Limits(Strict):
    """Bounds of one request. What exceeds them is refused, never trimmed."""

    max_body_mib: float = Field(4, gt=0, le=64, description="Largest request body in MiB (413).")
    max_prompt_chars: int = Field(
        1_000_000,
        ge=1,
        description="Characters of all messages or prompts together; a token's number is one.",
    )
    max_messages: int = Field(1024, ge=1, description="Messages of one chat request.")
    max_tokens: int = Field(
        16_384, ge=1, description="Largest max_tokens or max_completion_tokens."
    )
    max_choices: int = Field(16, ge=1, description="Answers of one request: n for each prompt.")
    max_stop_strings: int = Field(16, ge=0, description="Stop strings of one request.")
    max_stop_chars: int = Field(256, ge=1, description="Characters of one stop string.")
    body_timeout_s: float = Field(
        30, gt=0, le=3600, description="Seconds until a request's body must be complete (408)."
    )
    max_seconds: float = Field(
        600, gt=0, le=86_400, description="Seconds until a request must be answered (504)."
    )

    @property
    def max_body_bytes(self) -> int:
        """The largest body in bytes."""
        return int(self.max_body_mib * 2**20)
