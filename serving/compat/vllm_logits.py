"""vLLM's interface for logits processors of others (``vllm.v1.sample.logits_processor``)."""

from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

__all__ = ["BatchUpdate", "LogitsProcessor"]
