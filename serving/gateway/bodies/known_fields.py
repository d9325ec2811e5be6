"""Which fields of a body reach the application, in one form: no nulls, integers as integers."""

from __future__ import annotations

from typing import Any

from serving.gateway.asgi import ApiError, invalid_request
from serving.gateway.bodies.fields import INTEGERS, REJECTED, Route
from serving.gateway.bodies.json_body import safe_name
from serving.spec.limits import Limits

NESTED = frozenset(
    {"stream_options", "response_format", "structured_outputs", "reasoning", "text"}
    | {"output_config"}
)
"""Fields with optional fields of their own, whose null means absent too."""

IGNORED_HEADER = "x-ignored-fields"
"""Response header with the names of unknown fields that were left out."""
MAX_HEADER_CHARS = 512


def select_fields(
    route: Route, fields: dict[str, Any], limits: Limits
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Sort a body's fields into those that pass and those that are ignored.

    Returns:
        The fields that pass, and the names of unknown fields, which do not.

    Raises:
        ApiError: 400, names a rejected field.
    """
    passed: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in fields.items():
        if value is None:
            continue
        if name in route.accepted:
            passed[name] = _normalized(name, value)
        elif name in REJECTED:
            if value not in REJECTED[name].harmless:
                raise _rejected(name)
        elif limits.unknown_fields == "reject":
            raise _unknown(name)
        else:
            ignored.append(name)
    return passed, tuple(ignored)


def _normalized(name: str, value: Any) -> Any:
    if name in INTEGERS and isinstance(value, float) and value.is_integer():
        return int(value)
    if name in NESTED and isinstance(value, dict):
        return {key: inner for key, inner in value.items() if inner is not None}
    return value


def _rejected(name: str) -> ApiError:
    message = f"{name} is not accepted here: {REJECTED[name].reason}."
    return invalid_request(message, "unknown_parameter", name)


def _unknown(name: str) -> ApiError:
    label = safe_name(name)
    message = f"{label or 'A field'} is not accepted here: this route has no such field."
    return invalid_request(message, "unknown_parameter", label)


def ignored_header(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the header that lists ignored fields; a client's text never becomes a header."""
    if not names:
        return []
    listed, length = [], 0
    for name in filter(None, map(safe_name, names)):
        length += len(name) + 2
        if length > MAX_HEADER_CHARS:
            break
        listed.append(name)
    more = len(names) - len(listed)
    if more:
        listed.append(f"{more} more" if listed else f"{more} with other names")
    return [(IGNORED_HEADER, ", ".join(listed))]
