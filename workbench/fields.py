"""The fields of the specifications, from their own descriptions, for the command line."""

from __future__ import annotations

import textwrap
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workbench.errors import SettingError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

WIDTH = 88


def specifications(package: ModuleType) -> dict[str, type[BaseModel]]:
    """Return every specification that `package` exports, by name."""
    from pydantic import BaseModel

    exported = ((name, getattr(package, name)) for name in dir(package))
    return {
        name: item
        for name, item in exported
        if isinstance(item, type) and issubclass(item, BaseModel) and name != "Summary"
    }


def describe(package: ModuleType, name: str | None) -> str:
    """Return the fields of the specification `name` that `package` exports, or of all.

    Raises:
        SettingError: There is no such specification.
    """
    known = specifications(package)
    if name is not None and name not in known:
        raise SettingError(f"SPEC must be one of {', '.join(known)}, got {name!r}")
    return "\n\n".join(_describe(known[shown]) for shown in ([name] if name else known))


def _describe(spec: type[BaseModel]) -> str:
    summary = (spec.__doc__ or "").strip().partition("\n")[0]
    return "\n".join([f"{spec.__name__}: {summary}", *map(_line, *_fields(spec))])


def _fields(spec: type[BaseModel]) -> tuple[list[str], list[FieldInfo]]:
    return list(spec.model_fields), list(spec.model_fields.values())


def _line(name: str, field: FieldInfo) -> str:
    text = f"{field.description or ''} ({_default(field)})".strip()
    return f"  {name}\n{textwrap.indent(textwrap.fill(text, WIDTH - 6), ' ' * 6)}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    return f"default: {value!r}" if not hasattr(value, "model_fields_set") else f"default: {value}"
