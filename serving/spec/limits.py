"""Limits of a single request, the same for every tenant."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.spec.base import Strict


class Limits(Strict):
    """Limits of a single request. A request over a limit is rejected, never shortened."""

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
        1024, ge=1, description="Maximum number of messages or input items in a request."
    )
    max_tokens: int = Field(
        16_384,
        ge=1,
        description="Largest allowed max_tokens, max_completion_tokens or max_output_tokens.",
    )
    max_choices: int = Field(16, ge=1, description="Maximum number of answers per prompt, n.")
    max_prompts: int = Field(
        128,
        ge=1,
        description="Maximum number of prompts, texts to embed, or documents in a request.",
    )
    max_stop_strings: int = Field(
        16, ge=0, description="Maximum number of stop strings in a request."
    )
    max_stop_chars: int = Field(
        256, ge=1, description="Maximum number of characters in a stop string."
    )
    max_schema_bytes: int = Field(
        262_144,
        ge=1,
        description="Largest size of all JSON schemas of a request together, with the definitions "
        "of its tools, in bytes of JSON.",
    )
    max_enum_values: int = Field(
        2_000,
        ge=1,
        description="Maximum number of values of all enums and choices of a request together.",
    )
    max_grammar_bytes: int = Field(
        65_536,
        ge=1,
        description="Largest size of all regular expressions and grammars of a request together, "
        "in bytes.",
    )
    max_alternatives: int = Field(
        2_000,
        ge=1,
        description="Maximum number of alternatives of a request together: of anyOf, oneOf and "
        "allOf in its schemas, and after '|' in its regular expressions and grammars.",
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
    queue_timeout_s: float = Field(
        300,
        gt=0,
        le=86_400,
        description="Seconds that a request waits while its model has no running replica, up to "
        "86400; then HTTP 503. For a model that scales to zero, set it above the time that the "
        "model takes to start.",
    )
    keep_alive_s: float = Field(
        15,
        ge=0,
        le=3600,
        description="Seconds between the comments that keep a stream open until its first token, "
        "up to 3600; 0 sends none.",
    )
    unknown_fields: Literal["ignore", "reject"] = Field(
        "ignore",
        description="Whether a field that neither OpenAI nor vLLM defines is left out and listed "
        "in the x-ignored-fields header, or rejected.",
    )

    @property
    def max_body_bytes(self) -> int:
        """Largest request body in bytes."""
        return int(self.max_body_mib * 2**20)
