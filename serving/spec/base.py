"""The base of every specification: unknown keys fail, and a failure names field and way out."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.errors import SpecError


class Strict(BaseModel):
    """Unknown keys fail, values do not change, and a failure is a :class:`SpecError`."""

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


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line a field: its path, the value given, what is wrong, and the way out."""
    return "\n".join(_explain_one(dict(item), model) for item in error.errors())


def _explain_one(item: dict[str, Any], model: type[BaseModel]) -> str:
    path = ".".join([model.__name__, *(str(part) for part in item["loc"])])
    value = repr(item["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    if item["type"] == "extra_forbidden":
        return f"{path} = {shown}: there is no such field. {_nearest(item['loc'][-1], model)}"
    reason = str(item["msg"]).removeprefix("Value error, ")
    # A validator over several fields names them itself; their whole would drown it.
    whole = isinstance(item["input"], dict) and item["type"] != "missing"
    return reason if whole else f"{path} = {shown}: {reason}"


def _nearest(name: str, model: type[BaseModel]) -> str:
    close = get_close_matches(name, model.model_fields, n=1)
    known = ", ".join(model.model_fields)
    return f"Did you mean {close[0]!r}?" if close else f"The fields are: {known}."


class Frozen(BaseModel):
    """Unknown keys fail and values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")
