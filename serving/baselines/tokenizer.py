"""A baseline's tokenizer: prompts to ids, and ids to text as they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serving.spec.model import ModelSpec


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer, and what the model's configuration says of lengths."""

    hf: Any
    context: int
    vocabulary: int

    @classmethod
    def of(cls, model: ModelSpec) -> Tokenizer:
        """The model's, or the one that `engine_kwargs` names."""
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(model.path).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer)
        context = model.max_model_len or config.max_position_embeddings
        return cls(tokenizer, int(context), int(config.vocab_size))

    def encode(self, text: Any) -> list[int]:
        """As vLLM's completions have it: with the special tokens that the tokenizer adds."""
        return list(self.hf.encode(text, verbose=False))

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """What the chat template makes of the messages, up to where the answer starts."""
        text = self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.hf.encode(text, add_special_tokens=False, verbose=False))

    def text(self) -> Text:
        """The text of one answer."""
        return Text(self.hf)


class Text:
    """The text of an answer, token by token; characters appear when their last byte has come."""

    def __init__(self, hf: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = hf.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, tokens: Iterable[int]) -> str:
        """What these tokens add."""
        return "".join(self._stream.step(self._backend, token) or "" for token in tokens)
