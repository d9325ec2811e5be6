"""Remove secrets from parameters before they are written to files that others read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from pydantic import BaseModel

REDACTED = "[redacted]"
_SECRET_KEY = re.compile(
    r"(^|_)(api_?keys?|(access|auth|private|secret|ssh)_keys?|secrets?|pass(word|wd|phrase)s?"
    r"|authorization|credentials?|cookies?|bearer)(_|$)"
)
_ACCESS_TOKEN = re.compile(r"(^|_)token$|(^|_)(access|api|auth|bearer|hf|hub|refresh)_tokens$")
# These are tokens of text: a model's special tokens are ordinary parameters.
_TEXT_TOKEN = re.compile(r"(^|_)(bos|cls|eos|first|image|mask|pad|per|sep|stop|unk)_token$")
_SECRET_TEXT = re.compile(
    r"(?i:bearer )\S+|\b(hf_[A-Za-z0-9]{20,}|sk-[\w-]{16,}|gh[pos]_\w{20,})|(?<=://)[^/@\s]+@"
)


def redact(value: Any) -> Any:
    """Return `value` as plain JSON data, with secrets replaced.

    A secret is a value under a name such as `api_key`, `HF_TOKEN` or `authorization` (but not
    `max_tokens` or `eos_token`), and any text that has the form of a key.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if _is_secret(str(key), inner) else redact(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if hasattr(value, "tolist"):  # numpy
        return redact(value.tolist())
    return _SECRET_TEXT.sub(REDACTED, str(value))


def _is_secret(key: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return False
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").replace(" ", "_").lower()
    if _ACCESS_TOKEN.search(words) and not _TEXT_TOKEN.search(words):
        return not isinstance(value, int | float)
    return bool(_SECRET_KEY.search(words))
