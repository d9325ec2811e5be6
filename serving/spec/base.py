"""Base classes of the specifications: frozen models that reject unknown keys."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.errors import SpecError

MAX_SHOWN_CHARS = 80
"""Characters of a rejected value that an error message repeats."""

_SHOULD = re.compile(r"^\w+ should (.+?)(?:, got .*|, unable to .*| after validation, not .*)?$")


class Strict(BaseModel):
    """A frozen model that rejects unknown keys and raises :class:`SpecError`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(explain(error, type(self))) from None


class Frozen(BaseModel):
    """A frozen model that rejects unknown keys and raises pydantic's own error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe a validation error in one line per field.

    Args:
        error: The error that pydantic raised.
        model: The class whose fields were validated.

    Returns:
        Lines that name the field, what it must be, the value, and a fix where one is known.
    """
    return "\n".join(_explain_item(dict(item), model) for item in error.errors())


def _explain_item(item: dict[str, Any], model: type[BaseModel]) -> str:
    path = ".".join([model.__name__, *(str(part) for part in item["loc"])])
    if item["type"] == "missing":
        return f"{path} is required; give it a value"
    value = shown(item["input"])
    if item["type"] == "extra_forbidden":
        return f"{path} is not a field, got {value}; {_suggestion(item['loc'][-1], model)}"
    if item["type"] == "union_tag_invalid":
        tag, allowed = item["ctx"]["tag"], item["ctx"]["expected_tags"]
        return f"{path}.kind must be one of {allowed}, got {shown(tag)}"
    reason = str(item["msg"]).removeprefix("Value error, ")
    if should := _SHOULD.match(reason):
        reason = f"must {should[1]}"
    if item["type"] == "value_error" and not reason.startswith("must "):
        # A validator over several fields names them itself, and their values.
        return reason if isinstance(item["input"], dict) else f"{path} = {value}: {reason}"
    if not reason.startswith("must "):
        return f"{path} = {value}: {reason}"
    problem, separator, fix = reason.partition("; ")
    return f"{path} {problem}, got {value}{separator}{fix}"


def shown(value: object) -> str:
    """Return a value as an error message repeats it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def _suggestion(name: str, model: type[BaseModel]) -> str:
    close = get_close_matches(name, model.model_fields, n=1)
    fields = ", ".join(model.model_fields)
    return f"did you mean {close[0]!r}?" if close else f"the fields are {fields}"
