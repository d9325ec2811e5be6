"""Read the prompts of a file: JSON lines, a JSON array, or Parquet; from a disk or from the hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from serving.errors import MissingPackageError
from workbench.errors import SettingError, TraceError
from workbench.workload.file_lines import json_texts
from workbench.workload.prompt_lines import Chat, Left, PromptLine, chats_of
from workbench.workload.prompts import FilePrompts

if TYPE_CHECKING:
    from workbench.workload.tokenizer import Tokenizer

HUB = "hf://datasets/"
_PARQUET_ROWS = 256
_DATA_FILES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


class FileTurn(NamedTuple):
    """A request. `output_tokens` is None where the line has no length for the answer."""

    content: str | tuple[int, ...] | tuple[dict[str, Any], ...]
    tokens: int
    output_tokens: int | None
    tools: tuple[dict[str, Any], ...] | None = None
    most_output: int | None = None


class FilePrompt(NamedTuple):
    """A line: its place in the file, and its requests in order."""

    where: str
    turns: tuple[FileTurn, ...]


def read_prompts(
    spec: FilePrompts, tokenizer: Tokenizer, left_out: Counter[str]
) -> list[FilePrompt]:
    """Return the prompts of the file with their token counts.

    Args:
        spec: The file, and what to read of it.
        tokenizer: Counts the tokens.
        left_out: Counts what is left out, by reason.

    Raises:
        SettingError: The file is empty, cannot be read, or has an invalid line. The message names
            the line and its field.
        MissingPackageError: The file is on the hub, and the package for it is not installed.
    """
    file = _from_hub(spec.path) if spec.path.startswith(HUB) else Path(spec.path)
    try:
        prompts = islice(_prompts(file, spec, tokenizer, left_out), spec.limit)
        found = list(prompts)
    except TraceError as problem:
        raise SettingError(f"FilePrompts.path = {spec.path!r}: {problem}") from None
    if not found and not left_out:
        raise SettingError(
            f"FilePrompts.path = {spec.path!r}, line 1: the file has no prompt: add one"
        )
    return found


def _prompts(
    file: Path, spec: FilePrompts, tokenizer: Tokenizer, left_out: Counter[str]
) -> Iterator[FilePrompt]:
    for number, read in _lines(file):
        where = f"{spec.path}, line {number}"
        try:
            chats = chats_of(read(), left_out, all_turns=spec.turns == "all")
            turns = tuple(_counted(chat, spec, tokenizer) for chat in chats)
        except Left as problem:
            left_out[str(problem)] += 1
            continue
        except (msgspec.MsgspecError, UnicodeDecodeError, SettingError) as problem:
            match = re.search(r"`\$\.(\w+)", str(problem))
            field = f", field {match[1]!r}" if match else ""
            raise SettingError(f"{where}{field}: {problem}") from None
        yield FilePrompt(where, turns)


def _lines(file: Path) -> Iterator[tuple[int, Callable[[], PromptLine]]]:
    """Yield the number of each line or row, and a function that decodes it."""
    if file.suffix == ".parquet":
        for number, row in enumerate(_parquet_rows(file), 1):
            yield number, lambda row=row: msgspec.convert(row, PromptLine)  # type: ignore[misc]
    else:
        decoder = msgspec.json.Decoder(PromptLine)
        for number, text in json_texts(file):
            yield number, lambda text=text: decoder.decode(text)  # type: ignore[misc]


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = set(PromptLine.__struct_encode_fields__) & set(table.schema_arrow.names)
        for batch in table.iter_batches(_PARQUET_ROWS, columns=sorted(names)):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as problem:
        raise TraceError(f"{file} cannot be read: {problem}") from None


def _counted(chat: Chat, spec: FilePrompts, tokenizer: Tokenizer) -> FileTurn:
    """Return the request of a chat or a text with its token counts."""
    content = chat.content
    if isinstance(content, str):
        tokens = len(tokenizer.encode(content))
        if not tokens:
            raise SettingError("the field 'prompt' is empty: give it a text")
    elif isinstance(content[0], int):
        tokens = len(content)
    else:
        tokens = tokenizer.count_chat(content, chat.tools)
    output = chat.output_tokens
    if output is None and chat.answer is not None:
        output = len(tokenizer.encode(chat.answer)) or None
    if output is None and spec.output is None:
        if chat.recorded:
            raise Left("without an answer")
        raise SettingError(
            "the field 'output_tokens' is missing: add it, or give FilePrompts.output"
        )
    return FileTurn(content, tokens, output, chat.tools)


def _from_hub(path: str) -> Path:
    """Download a file of a data set of the Hugging Face hub, or return it from the hub's cache."""
    try:
        from huggingface_hub import hf_hub_download, list_repo_files
    except ImportError:
        raise MissingPackageError(
            "The package 'huggingface_hub' is not installed. Install it: make setup"
        ) from None
    owner, _, rest = path.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    repository = f"{owner}/{name}"
    try:
        if not file:
            files = sorted(list_repo_files(repository, repo_type="dataset"))
            file = next(each for each in files if each.endswith(_DATA_FILES))
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except StopIteration:
        reason = f"it has no file that ends with {', '.join(_DATA_FILES)}"
    except Exception as problem:  # The hub's client raises errors of several libraries.
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
    raise SettingError(
        f"FilePrompts.path = {path!r} cannot be downloaded ({reason}): give "
        f"{HUB}OWNER/NAME/FILE of a hub that can be reached from here, or a file"
    )
