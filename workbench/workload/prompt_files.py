"""Read the prompts of a JSONL file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from workbench.errors import SettingError
from workbench.workload.prompts import MAX_TOKENS, FilePrompts

if TYPE_CHECKING:
    from workbench.workload.tokenizer import Tokenizer


class FilePrompt(NamedTuple):
    """A valid line. `output_tokens` is None where the line has no such field."""

    where: str
    content: str | tuple[dict[str, str], ...]
    prompt_tokens: int
    output_tokens: int | None


class _Line(msgspec.Struct):
    """The fields that are read of a line. A message keeps all of its fields that are texts."""

    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    output_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None


def read_prompts(spec: FilePrompts, tokenizer: Tokenizer) -> list[FilePrompt]:
    """Return the lines of the file with their token counts.

    Raises:
        SettingError: The file is empty, cannot be read, or has an invalid line. The message names
            the line and its field.
    """
    try:
        lines = Path(spec.path).read_bytes().splitlines()
    except OSError as problem:
        raise SettingError(
            f"FilePrompts.path = {spec.path!r} cannot be read: {problem.strerror}"
        ) from None
    decoder = msgspec.json.Decoder(_Line)
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{spec.path}, line {number}"
            try:
                prompts.append(_checked(where, decoder.decode(line), spec, tokenizer))
            except (msgspec.DecodeError, UnicodeDecodeError, SettingError) as problem:
                match = re.search(r"`\$\.(\w+)", str(problem))
                field = f", field {match[1]!r}" if match else ""
                raise SettingError(f"{where}{field}: {problem}") from None
    if not prompts:
        raise SettingError(
            f"FilePrompts.path = {spec.path!r}, line 1: the file has no prompt: add one"
        )
    return prompts


def _checked(where: str, line: _Line, spec: FilePrompts, tokenizer: Tokenizer) -> FilePrompt:
    if (line.prompt is None) == (line.messages is None):
        raise SettingError("give either the field 'prompt' or the field 'messages'")
    if line.output_tokens is None and spec.output is None:
        raise SettingError(
            "the field 'output_tokens' is missing: add it, or give FilePrompts.output"
        )
    if line.messages is not None:
        for name in ("role", "content"):
            if not line.messages or any(name not in message for message in line.messages):
                raise SettingError(
                    f"the field 'messages' has no message, or one without {name!r}: add it"
                )
        tokens = tokenizer.count_chat(line.messages)
        return FilePrompt(where, tuple(line.messages), tokens, line.output_tokens)
    ids = tokenizer.encode(line.prompt or "")
    if not line.prompt or not ids:
        raise SettingError("the field 'prompt' is empty: give it a text")
    return FilePrompt(where, line.prompt, len(ids), line.output_tokens)
