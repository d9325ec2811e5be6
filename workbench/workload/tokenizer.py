"""The tokenizer of the served model, so that prompts have the lengths that the server counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.errors import MissingPackageError
from serving.models.embedded import EMBEDDED, tiny_model_path
from workbench.errors import SettingError


class Tokenizer(Protocol):
    """The methods of a tokenizer that the prompt generator uses."""

    @property
    def regular_token_ids(self) -> Sequence[int]:
        """The ids of the tokens that are neither special nor added, in rising order."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as vLLM's `/v1/completions` counts them.

        Special tokens such as BOS are included if the tokenizer itself adds them.
        """
        ...

    def count_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> int:
        """Return the number of tokens of `messages` in the chat template, up to the answer.

        Raises:
            SettingError: There is no chat template, or it rejects the messages.
        """
        ...


def load_tokenizer(source: str) -> Tokenizer:
    """Return the tokenizer of 'tiny' (the embedded model), of a folder, or of a Hugging Face id.

    Raises:
        SettingError: The source cannot be loaded.
        MissingPackageError: The package transformers is not installed.
        ModelNotFoundError: The embedded model is incomplete.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackageError(
            "The package 'transformers' is not installed. Install it: make setup"
        ) from None
    path = str(tiny_model_path(name=source)) if source in EMBEDDED else source
    try:
        return _HuggingFace.from_tokenizer(source, AutoTokenizer.from_pretrained(path))
    except Exception as problem:  # The tokenizers library raises nothing more specific.
        raise SettingError(
            f"tokenizer = {source!r} cannot be loaded ({_first_line(problem)}): give a folder that "
            "has one, a Hugging Face id that can be reached from here, or 'tiny'"
        ) from None


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


@dataclass(frozen=True)
class _HuggingFace:
    """A tokenizer of the transformers package."""

    source: str
    tokenizer: Any
    regular_token_ids: Sequence[int]

    @classmethod
    def from_tokenizer(cls, source: str, tokenizer: Any) -> _HuggingFace:
        excluded = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ids = sorted({*tokenizer.get_vocab().values()} - excluded)
        return cls(source, tokenizer, tuple(ids))

    def encode(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=True)

    def count_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> int:
        from jinja2 import TemplateError

        chat = [dict(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                chat, tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError, TypeError, KeyError) as problem:
            raise SettingError(
                f"the chat template of {self.source} rejects the messages "
                f"({_first_line(problem)}); change them, or give a prompt as text"
            ) from None
        # The template itself writes BOS and other special tokens.
        return len(self._ids(text, add_special_tokens=False))

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Not verbose: a prompt beyond the context is rejected by name elsewhere.
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=add_special_tokens, verbose=False
        )
        return ids
