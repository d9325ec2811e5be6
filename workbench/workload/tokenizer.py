"""The served model's tokenizer, so that prompts have the lengths that the server will count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.errors import MissingPackageError
from serving.models.embedded import EMBEDDED, tiny_model_path
from workbench.errors import SettingError


class Tokenizer(Protocol):
    """What prompts need of a tokenizer.

    `ordinary` has the ids of the tokens that are neither special nor added, in rising order.
    """

    @property
    def ordinary(self) -> Sequence[int]: ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as vLLM's `/v1/completions` has them.

        Special tokens such as BOS are included if the tokenizer itself adds them.
        """
        ...

    def count_chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        """How many tokens the chat template makes of `messages`, up to where the answer starts.

        Raises SettingError where there is no template, or it refuses the messages.
        """
        ...


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of `source`: 'tiny' (the embedded model), a folder, or a Hugging Face id.

    Raises SettingError for a source that cannot be loaded, MissingPackageError without
    transformers, and ModelNotFoundError if the embedded model is not whole.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackageError(
            "The package 'transformers' is not installed. Install it: make setup"
        ) from None
    path = str(tiny_model_path(name=source)) if source in EMBEDDED else source
    try:
        return _HuggingFace.of(source, AutoTokenizer.from_pretrained(path))
    except Exception as problem:  # The tokenizers library raises no narrower one.
        why = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise SettingError(
            f"tokenizer = {source!r} cannot be loaded ({why}): give a folder that has one, "
            "a Hugging Face id that can be reached from here, or 'tiny'"
        ) from None


@dataclass(frozen=True)
class _HuggingFace:
    """A tokenizer of transformers."""

    source: str
    tokenizer: Any
    ordinary: Sequence[int]

    @classmethod
    def of(cls, source: str, tokenizer: Any) -> _HuggingFace:
        apart = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        return cls(source, tokenizer, tuple(sorted({*tokenizer.get_vocab().values()} - apart)))

    def encode(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=True)

    def count_chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        from jinja2 import TemplateError

        said = [dict(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                said, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError) as problem:
            why = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            raise SettingError(
                f"the chat template of {self.source} does not take the messages ({why}); "
                "change them, or give a prompt as text"
            ) from None
        # The template writes BOS and the like itself.
        return len(self._ids(text, add_special_tokens=False))

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Not verbose: what is beyond the context is refused by name elsewhere.
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=add_special_tokens, verbose=False
        )
        return ids
