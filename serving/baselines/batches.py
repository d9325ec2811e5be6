"""One at a time, static and dynamic batches, through transformers' `generate`.

A batch runs until its last request has ended. A request that ends earlier has its answer at once,
but its row stays in the batch, because `generate` cannot reuse it. When the engine is free, the
next batch is made of all waiting requests, not only of those within one time window.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from serving.baselines.model_loading import free_memory, kv_bytes_per_token, kv_tokens
from serving.baselines.requests import (
    ActiveRequest,
    BaselineStats,
    Emit,
    Event,
    Job,
    is_out_of_memory,
)
from serving.spec.baseline import BaselineSpec, Continuous, DynamicBatches, StaticBatches


class Batches:
    """Collects jobs into batches, and runs one batch after the other."""

    def __init__(self, model: Any, spec: BaselineSpec, emit: Emit, stats: BaselineStats) -> None:
        assert not isinstance(spec.strategy, Continuous)
        self._model, self._spec, self._emit, self._stats = model, spec, emit, stats
        self._strategy = spec.strategy
        self._batch_size = spec.strategy.batch_size
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._cancelled: set[int] = set()
        stats.kv_bytes_per_token = kv_bytes_per_token(model)
        self._kv_tokens = kv_tokens(spec.model, stats.kv_bytes_per_token)

    def add(self, job: Job) -> None:
        """Put a job in the queue. May be called from any thread."""
        self._jobs.put(job)

    def cancel(self, number: int) -> None:
        """Cancel a job. May be called from any thread."""
        self._cancelled.add(number)

    def run(self) -> None:
        """Run batches until the process ends."""
        while True:
            batch = [ActiveRequest(job) for job in self._collect()]
            self._run_batch(batch)
            self._emit([])
            # Numbers are never reused, so late cancellations of this batch can be dropped.
            self._cancelled -= {request.job.number for request in batch}

    def _collect(self) -> list[Job]:
        """Return the next batch: waiting jobs up to the batch size, and those that arrive soon."""
        batch = [self._jobs.get()]
        started = time.monotonic()
        while len(batch) < self._batch_size:
            try:
                batch.append(self._jobs.get(timeout=self._wait_s(started)))
            except queue.Empty:
                break
        return batch

    def _wait_s(self, started: float) -> float:
        """Return the seconds to wait for one more job."""
        if isinstance(self._strategy, StaticBatches):
            return self._strategy.quiet_s
        window = self._strategy.window_s if isinstance(self._strategy, DynamicBatches) else 0.0
        return max(0.0, window - (time.monotonic() - started))

    def _run_batch(self, batch: Sequence[ActiveRequest]) -> None:
        """Run a batch. If it does not fit into memory, record that and run its two halves."""
        batch = [r for r in batch if not r.ended and r.job.number not in self._cancelled]
        if not batch or self._try_batch(batch):
            return
        tokens = _row_tokens(batch)
        self._stats.out_of_memory.append({"batch_size": len(batch), "tokens_a_row": tokens})
        free_memory()
        if len(batch) == 1:
            error = f"out of memory at batch size 1 with {tokens} tokens"
            self._emit([Event(batch[0].job.number, [], error=error)])
            return
        half = len(batch) // 2
        self._batch_size = max(1, min(self._batch_size, half))
        self._run_batch(batch[:half])
        self._run_batch(batch[half:])

    def _try_batch(self, batch: Sequence[ActiveRequest]) -> bool:
        """Run a batch to its end, and return whether memory sufficed.

        If it did not, each request has the output it got so far.
        """
        try:
            if self._kv_tokens is not None and len(batch) * _row_tokens(batch) > self._kv_tokens:
                raise MemoryError
            self._generate(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _generate(self, batch: Sequence[ActiveRequest]) -> None:
        device, end_tokens = self._model.device, self._model.end_tokens
        ids, mask = padded([request.token_ids for request in batch])
        criteria = EndCriteria(batch, ids.shape[1], end_tokens, device)
        streamer = TokenStreamer(batch, criteria, end_tokens, self._emit, self._cancelled)
        config = GenerationConfig(
            **{"use_cache": True, **self._spec.generate},
            max_new_tokens=max(request.remaining for request in batch),
            do_sample=False,
            pad_token_id=0,
        )
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([criteria]),
                streamer=streamer,
            )
        self._count(batch, ids.shape[1], streamer.steps)

    def _count(self, batch: Sequence[ActiveRequest], prompt_tokens: int, steps: int) -> None:
        stats = self._stats
        stats.batches += 1
        stats.requests += len(batch)
        stats.steps += steps
        stats.largest_batch = max(stats.largest_batch, len(batch))
        stats.prompt_tokens += sum(len(request.job.prompt) for request in batch)
        stats.output_tokens += sum(len(request.output) for request in batch)
        stats.kv_slots += len(batch) * (prompt_tokens + steps)
        stats.kv_used += sum(len(request.token_ids) for request in batch)


def padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask of shape (prompts, longest prompt), padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


class EndCriteria(StoppingCriteria):  # type: ignore[misc]
    """Decides which rows have ended: at their own length, or at an end token."""

    def __init__(
        self,
        batch: Sequence[ActiveRequest],
        prompt_tokens: int,
        end_tokens: Iterable[int],
        device: Any,
    ) -> None:
        ignore_eos = [request.job.ignore_eos for request in batch]
        self._prompt_tokens = prompt_tokens
        self._limits = torch.tensor([request.remaining for request in batch], device=device)
        self._end_tokens = torch.tensor(sorted(end_tokens), device=device, dtype=torch.long)
        self._may_stop = torch.tensor([not ignored for ignored in ignore_eos], device=device)
        self._check_tokens = len(self._end_tokens) > 0 and not all(ignore_eos)

    def end(self, row: int) -> None:
        """End a row whose request was cancelled."""
        self._limits[row] = 0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return a mask of the rows that have ended, of shape (rows,)."""
        done = self._limits <= input_ids.shape[1] - self._prompt_tokens
        if self._check_tokens:
            done = done | (self._may_stop & torch.isin(input_ids[:, -1], self._end_tokens))
        return done


class TokenStreamer(BaseStreamer):  # type: ignore[misc]
    """Emits the tokens of each step, for the requests that have not ended."""

    def __init__(
        self,
        batch: Sequence[ActiveRequest],
        criteria: EndCriteria,
        end_tokens: frozenset[int],
        emit: Emit,
        cancelled: set[int],
    ) -> None:
        self._batch, self._criteria, self._end_tokens = batch, criteria, end_tokens
        self._emit, self._cancelled = emit, cancelled
        self.steps = -1  # the first call has the prompts

    def put(self, value: Any) -> None:
        """Receive one token per row."""
        self.steps += 1
        if self.steps == 0:
            return
        events = []
        for row, (request, token) in enumerate(zip(self._batch, value.tolist(), strict=True)):
            if request.ended:
                continue
            if request.job.number in self._cancelled:
                request.ended = True
                self._criteria.end(row)
            else:
                events.append(request.append(token, self._end_tokens))
        self._emit(events)

    def end(self) -> None:
        """Do nothing: every token was emitted at once."""


def _row_tokens(batch: Sequence[ActiveRequest]) -> int:
    """Return the tokens in a row at the end of the batch, padding included."""
    return max(len(r.token_ids) for r in batch) + max(r.remaining for r in batch)
