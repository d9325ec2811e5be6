"""transformers' own continuous batching: the manager behind `generate_batch`."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from serving.baselines.model_loading import free_memory, free_share, kv_bytes_per_token, kv_tokens
from serving.baselines.requests import (
    ActiveRequest,
    BaselineStats,
    Emit,
    Event,
    Finish,
    Job,
    is_out_of_memory,
)
from serving.spec.baseline import BaselineSpec, Continuous

RESULT_TIMEOUT_S = 1.0
PAGE_SIZE = 256
"""Tokens in a cache block: transformers' default."""

MEMORY_SHARE = 0.9
"""Share of a GPU's free memory that the cache takes: transformers' default."""

CPU_BATCH_TOKENS = 1024
"""Tokens in a step on a CPU. Larger steps do not lower the cost of a prompt token there."""


class ContinuousBatches:
    """Gives jobs to transformers' manager, and emits the tokens that it generates.

    The manager ends when it runs out of memory. It is then restarted with half as many requests at
    a time, and active requests continue from the tokens that their clients have.
    """

    def __init__(self, model: Any, spec: BaselineSpec, emit: Emit, stats: BaselineStats) -> None:
        assert isinstance(spec.strategy, Continuous)
        self._model, self._spec, self._emit, self._stats = model, spec, emit, stats
        self._options = dict(spec.strategy.options)
        self._page_size = int(self._options.get("page_size", PAGE_SIZE))
        self._max_requests = spec.strategy.max_requests
        self._requests: dict[int, ActiveRequest] = {}
        self._lock = threading.Lock()
        stats.kv_bytes_per_token = kv_bytes_per_token(model)
        self._kv_tokens = kv_tokens(spec.model, stats.kv_bytes_per_token)
        self._manager = self._start()

    def add(self, job: Job) -> None:
        """Give a job to the manager. May be called from any thread."""
        with self._lock:
            request = self._requests[job.number] = ActiveRequest(job)
            self._submit(request)
            self._stats.largest_batch = max(self._stats.largest_batch, len(self._requests))

    def cancel(self, number: int) -> None:
        """Cancel a job. May be called from any thread."""
        with self._lock:
            if self._requests.pop(number, None) is not None:
                self._manager.cancel_request(str(number))

    def run(self) -> None:
        """Emit the manager's results until the process ends, all that are ready at once."""
        while True:
            result = self._manager.get_result(timeout=RESULT_TIMEOUT_S)
            events: list[Event] = []
            while result is not None:
                events += self._events(result)
                result = self._manager.get_result(timeout=0)
            if events:
                self._emit(events)
                if any(event.finish for event in events):
                    self._emit([])
            elif not self._manager.is_running():
                self._restart()

    def _start(self) -> Any:
        manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(**self._config()),
        )
        manager.warmup()
        manager.start()
        return manager

    def _config(self) -> dict[str, Any]:
        """Return transformers' defaults, changed by the cache size and the spec's options."""
        config: dict[str, Any] = {"max_requests_per_batch": self._max_requests}
        if os.environ.get("HF_HUB_OFFLINE") == "1" and find_spec("flash_attn") is None:
            # transformers would load flash attention from the hub, which cannot be reached.
            config["auto_switch_to_flash"] = False
        if self._kv_tokens is not None:
            config["num_blocks"] = self._blocks(self._kv_tokens)
            config["max_batch_tokens"] = CPU_BATCH_TOKENS
        share = free_share(self._spec.model)
        if share is not None:
            config["max_memory_percent"] = MEMORY_SHARE * share
        config |= self._options
        known = {field.name for field in fields(ContinuousBatchingConfig)}
        # An older transformers has fewer fields. An unknown option of the spec must fail, though.
        return {
            name: value
            for name, value in config.items()
            if name in self._options or (value is not None and name in known)
        }

    def _blocks(self, tokens: int) -> int:
        """Return the cache's blocks: enough for the tokens, at most what the gate can admit.

        Without flash attention, transformers builds a mask of all blocks times a batch's tokens.
        """
        model = self._spec.model
        context = model.max_model_len or self._model.config.max_position_embeddings
        admitted = math.ceil(context / self._page_size) * model.scaling.max_ongoing_requests
        return max(1, min(math.floor(tokens / self._page_size), admitted))

    def _submit(self, request: ActiveRequest) -> None:
        request.resubmitted_after = len(request.output)
        end_tokens = sorted(self._model.end_tokens) or [-1]
        self._manager.add_request(
            request.token_ids,
            request_id=str(request.job.number),
            max_new_tokens=request.remaining,
            streaming=True,
            eos_token_id=[-1] if request.job.ignore_eos else end_tokens,
        )

    def _events(self, result: Any) -> list[Event]:
        """Return what is new in a result, which has all tokens since the request's submission."""
        number = int(result.request_id)
        request = self._requests.get(number)
        if request is None or (result.error is not None and is_out_of_memory(result.error)):
            return []  # cancelled, or continued once the manager has restarted
        if result.error is not None:
            del self._requests[number]
            return [Event(number, [], error=str(result.error))]
        new = list(result.generated_tokens[len(request.output) - request.resubmitted_after :])
        request.output += new
        if not result.is_finished():
            return [Event(number, new)] if new else []
        del self._requests[number]
        self._count(request)
        return [Event(number, new, self._finish(request))]

    def _finish(self, request: ActiveRequest) -> Finish:
        if request.job.ignore_eos or not request.output:
            return "length"
        return "stop" if request.output[-1] in self._model.end_tokens else "length"

    def _count(self, request: ActiveRequest) -> None:
        stats, tokens = self._stats, len(request.token_ids)
        stats.requests += 1
        stats.prompt_tokens += len(request.job.prompt)
        stats.output_tokens += len(request.output)
        stats.kv_slots += math.ceil(tokens / self._page_size) * self._page_size
        stats.kv_used += tokens

    def _restart(self) -> None:
        with self._lock:
            reason = str(self._manager.background_thread_status.fatal_error)
            if not is_out_of_memory(reason):
                raise RuntimeError(f"transformers' continuous batching ended: {reason}")
            active = list(self._requests.values())
            # The longest request decides how much memory a batch of this size needs.
            tokens = max((len(r.token_ids) + r.remaining for r in active), default=0)
            self._stats.out_of_memory.append({"batch_size": len(active), "tokens_a_row": tokens})
            self._manager.destroy()
            self._manager = None
            free_memory()
            self._max_requests = max(1, len(active) // 2)
            if len(active) == 1:
                self._requests.clear()
                error = f"out of memory at batch size 1 with {tokens} tokens"
                self._emit([Event(active[0].job.number, [], error=error)])
            self._manager = self._start()
            for request in self._requests.values():
                self._submit(request)
