"""JSON text to a dict: strict, without surprises in depth or size of numbers.

The engine gets the checked fields re-encoded, never the original bytes. Two parsers may read one
text differently, for example if a name occurs twice, and would let a rejected field through.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from serving.gateway.asgi import ApiError, invalid_request

MAX_DEPTH = 48
"""Levels of nested JSON; real requests with a tool's schema have a dozen."""
MAX_INT = 2**63 - 1

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_TOKEN = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"|[\[\]{}]', re.DOTALL)


def safe_name(name: str) -> str | None:
    """Return a field's name if an error or a header may repeat it, else None."""
    return name if _SAFE_NAME.fullmatch(name) else None


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ApiError: 400, it is not JSON, not an object, or nested too deeply.
    """
    try:
        fields = json.loads(raw.decode(), parse_constant=_reject_constant)
    except RecursionError:
        raise _too_deep(_deep_field(raw)) from None
    except UnicodeDecodeError:
        raise invalid_request("The body is not UTF-8.", "invalid_json") from None
    except ValueError as error:
        # The parser's message names a position, never the text.
        detail = (
            f" ({error.msg}, at {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise invalid_request(f"The body is not JSON{detail}.", "invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid_request("The body is not a JSON object.", "invalid_json")
    return fields


def count_chars(fields: dict[str, Any]) -> int:
    """Count the characters of all strings, a number as one.

    Raises:
        ApiError: 400, a field is nested too deeply or has a number beyond 64 bits.
    """
    return sum(len(name) + _count(value, 2, name) for name, value in fields.items())


def _count(value: Any, depth: int, field: str) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise _too_deep(field)
        if isinstance(value, list):
            return sum(_count(inner, depth + 1, field) for inner in value)
        return sum(len(name) + _count(inner, depth + 1, field) for name, inner in value.items())
    too_large = isinstance(value, float) and not math.isfinite(value)
    if too_large or (isinstance(value, int) and abs(value) > MAX_INT):
        label = safe_name(field)
        raise invalid_request(
            f"{label or 'A field'} has a number that is too large.", "invalid_number", label
        )
    return 1


def _deep_field(raw: bytes) -> str | None:
    """Return the field that is nested too deeply, for a text too deep for the parser."""
    depth, field = 0, b""
    for token in _TOKEN.finditer(raw):
        if token[1] is not None:
            if depth == 1:
                field = token[1]
        else:
            depth += 1 if token[0] in b"[{" else -1
            if depth > MAX_DEPTH:
                return field.decode("utf-8", "replace")
    return None


def _too_deep(field: str | None) -> ApiError:
    label = safe_name(field or "")
    return invalid_request(
        f"{label or 'The body'} is nested deeper than {MAX_DEPTH} levels.", "invalid_json", label
    )


def _reject_constant(name: str) -> Any:
    raise invalid_request(f"The body contains {name}, which is not JSON.", "invalid_json")
