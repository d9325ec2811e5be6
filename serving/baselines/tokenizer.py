"""A baseline's tokenizer: prompts to token ids, and output tokens to text as they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serving.spec.model import ModelSpec


@dataclass(frozen=True)
class BaselineTokenizer:
    """The tokenizer, the context length and the vocabulary size of a model."""

    hf: Any
    context: int
    vocabulary: int

    @classmethod
    def load(cls, model: ModelSpec) -> BaselineTokenizer:
        """Load the model's tokenizer, or the one that `engine_kwargs` names."""
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(model.path).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer)
        context = model.max_model_len or config.max_position_embeddings
        return cls(tokenizer, int(context), int(config.vocab_size))

    def encode(self, text: Any) -> list[int]:
        """Return the ids of a completion's prompt, with special tokens as in vLLM."""
        return list(self.hf.encode(text, verbose=False))

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the ids of a chat by the model's template, up to the start of the answer."""
        text = self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.hf.encode(text, add_special_tokens=False, verbose=False))

    def stream(self) -> TextStream:
        """Return a decoder for one answer."""
        return TextStream(self.hf)


class TextStream:
    """Decodes one answer token by token. A character appears with the last of its bytes."""

    def __init__(self, hf: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = hf.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, tokens: Iterable[int]) -> str:
        """Return the text that these tokens add."""
        return "".join(self._stream.step(self._backend, token) or "" for token in tokens)
