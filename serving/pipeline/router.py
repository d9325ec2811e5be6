"""The model router's deployment: rules need no model, a classifier loads its embedding model.

It chooses which model answers; :mod:`serving.deploy.replica_routers` choose among replicas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.errors import MissingPackageError, ModelNotFoundError
from serving.pipeline.router_rules import Decision, RoutingInput, Similarity, decide
from serving.spec.router import EmbeddingClassifier, RouterSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class ModelRouter:
    """Decides which model answers; accepts new rules without a restart.

    Args:
        models: Ids of the pipeline's models, in its order.
    """

    def __init__(self, models: tuple[str, ...]) -> None:
        self._models = models
        self._spec = RouterSpec()
        self._similarity: Similarity | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new rules; load another classifier only if it has changed."""
        spec = RouterSpec(**user_config)
        if spec.classifier != self._spec.classifier:
            self._similarity = ExampleSimilarity(spec.classifier) if spec.classifier else None
        self._spec = spec

    async def decide(self, routing_input: RoutingInput) -> Decision:
        """Return the model that should answer, and why."""
        return decide(routing_input, self._spec, self._models, self._similarity)


class ExampleSimilarity:
    """The similarity of a text to each model's examples: cosines of mean sentence vectors."""

    def __init__(self, spec: EmbeddingClassifier) -> None:
        self._embed = SentenceEmbedder(spec.path, spec.max_tokens)
        self._means = {
            model: _unit(self._embed(list(texts)).mean(axis=0))
            for model, texts in spec.examples.items()
        }

    def __call__(self, text: str) -> dict[str, float]:
        """Return the cosine similarity, -1 to 1, by model id."""
        vector = self._embed([text])[0]
        return {model: float(mean @ vector) for model, mean in self._means.items()}


class SentenceEmbedder:
    """Embeds texts as unit vectors: the mean of a transformers model's last hidden states.

    Args:
        path: Folder or Hugging Face id of the model.
        max_tokens: Tokens of a text that are read.

    Raises:
        MissingPackageError: transformers is not installed.
        ModelNotFoundError: The model cannot be loaded.
    """

    def __init__(self, path: str, max_tokens: int) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            raise MissingPackageError(
                "The package 'transformers' is not installed. Install it: make setup"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path)
            self._model = AutoModel.from_pretrained(path).eval()
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise ModelNotFoundError(
                f"router.classifier.path = {path!r} cannot be loaded: {first_line}"
            ) from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector per text, with shape (texts, hidden size)."""
        import torch

        batch = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        with torch.inference_mode():
            states = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        vectors: NDArray[np.float32] = _unit(means.float().numpy())
        return vectors


def _unit(vectors: Any) -> Any:
    import numpy as np

    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
