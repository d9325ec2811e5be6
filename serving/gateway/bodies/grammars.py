"""Limits on the grammars that a request sets, which the engine has to compile.

A grammar is compiled before the first token, and a large one takes seconds of a processor. Schemas
are walked as they are, in whichever field they are, so that no spelling avoids a limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serving.gateway.asgi import ApiError, invalid_request
from serving.gateway.bodies.body import GRAMMARS
from serving.gateway.bodies.json_body import MAX_DEPTH
from serving.spec.limits import Limits

_JSON_TEXT = frozenset({"json", "structural_tag", "schema"})
"""Keys whose value may be JSON in a string."""
_PATTERNS = frozenset({"pattern", "regex", "grammar", "definition", "whitespace_pattern"})
"""Keys whose string is a regular expression or a grammar."""
_VALUES = frozenset({"enum", "choice"})
_BRANCHES = frozenset({"anyOf", "oneOf", "allOf", "elements"})
"""Keys whose list has alternatives; ``elements`` is that of a structural tag."""


@dataclass
class GrammarSize:
    """The size of the grammars that a request sets.

    Attributes:
        schema_bytes: Bytes of the schemas, as JSON.
        enum_values: Values of enums and choices.
        grammar_bytes: Bytes of regular expressions and grammars.
        alternatives: Branches of schemas, and alternatives of regular expressions and grammars.
    """

    schema_bytes: int = 0
    enum_values: int = 0
    grammar_bytes: int = 0
    alternatives: int = 0

    def add(self, name: str, value: Any) -> None:
        """Count a value by the name that it has in its object."""
        if isinstance(value, list):
            self.enum_values += len(value) if name in _VALUES else 0
            self.alternatives += len(value) if name in _BRANCHES else 0
        elif isinstance(value, dict) and name == "patternProperties":
            for pattern in value:
                self._add_pattern(pattern)
        elif isinstance(value, str) and name in _PATTERNS:
            self._add_pattern(value)

    def _add_pattern(self, pattern: str) -> None:
        self.grammar_bytes += _bytes(pattern)
        self.alternatives += pattern.count("|")


_LIMITS = (
    ("schema_bytes", "max_schema_bytes", "bytes of JSON schemas", "schema_too_large"),
    ("enum_values", "max_enum_values", "values in enums and choices", "too_many_enum_values"),
    ("grammar_bytes", "max_grammar_bytes", "bytes of patterns and grammars", "grammar_too_large"),
    ("alternatives", "max_alternatives", "alternatives", "too_many_alternatives"),
)


def check_grammars(fields: Mapping[str, Any], limits: Limits, body_bytes: int) -> None:
    """Check the size of the grammars that a body sets, in all its fields together.

    Args:
        fields: The body.
        limits: The limits.
        body_bytes: Size of the body; the schemas of a small body need not be measured.

    Raises:
        ApiError: 400, names the field that exceeds a limit, and the limit.
    """
    size = GrammarSize()
    is_small = body_bytes <= limits.max_schema_bytes
    for field in GRAMMARS:
        if field not in fields:
            continue
        _measure(field, fields[field], size)
        if not is_small:
            size.schema_bytes += _schema_bytes(field, fields[field])
        for name, limit_name, unit, code in _LIMITS:
            limit = getattr(limits, limit_name)
            if getattr(size, name) > limit:
                raise invalid_request(
                    f"{field} is too complex: a request may have at most {limit} {unit}.",
                    code,
                    field,
                )


def _measure(field: str, value: Any, size: GrammarSize) -> None:
    if not isinstance(value, dict | list):
        return  # the engine rejects it, or it sets no grammar
    for name, inner in _named_values(value, field):
        size.add(name, inner)


def _schema_bytes(field: str, value: Any) -> int:
    if field == "structured_outputs" and isinstance(value, dict):
        return sum(_bytes(value[name]) for name in _JSON_TEXT & value.keys())
    return _bytes(value)


def _named_values(value: Any, field: str) -> Iterator[tuple[str, Any]]:
    """Yield each name and value in a JSON value, also in JSON that is in a string."""
    remaining: list[tuple[Any, int]] = [(value, 0)]
    while remaining:
        node, depth = remaining.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(field)
        if isinstance(node, list):
            remaining += [(item, depth + 1) for item in node if isinstance(item, dict | list)]
            continue
        for name, inner in node.items():
            if isinstance(inner, str) and name in _JSON_TEXT:
                inner = _parsed(inner, field)
            yield name, inner
            if isinstance(inner, dict | list):
                remaining.append((inner, depth + 1))


def _parsed(text: str, field: str) -> Any:
    """Return the JSON in a string; the string itself if it is not JSON, which the engine tells."""
    try:
        return json.loads(text)
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError:
        return text


def _too_deep(field: str) -> ApiError:
    message = f"{field} has a schema that is nested deeper than {MAX_DEPTH} levels."
    return invalid_request(message, "schema_too_deep", field)


def _bytes(value: Any) -> int:
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    )
    return len(text.encode("utf-8", "surrogatepass"))
