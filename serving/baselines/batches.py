"""Batches through transformers' `generate`: one at a time, static and dynamic batching.

A batch runs until its last row has ended; a row that ends earlier has its answer at once, but its
place in the batch stays taken, as `generate` has no way to give it to another. A batch is put
together when the engine is free, from all who wait: never from those of a window alone.
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
from serving.baselines.requests import Emit, Event, Job, Row, Stats, is_out_of_memory
from serving.spec.baseline import BaselineSpec, Continuous, DynamicBatches, StaticBatches


class Batches:
    """Takes jobs, makes batches, and runs them one after the other."""

    def __init__(self, model: Any, spec: BaselineSpec, emit: Emit, stats: Stats) -> None:
        assert not isinstance(spec.strategy, Continuous)
        self._model, self._spec, self._emit, self._stats = model, spec, emit, stats
        self._strategy = spec.strategy
        self._size = spec.strategy.batch_size
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._cancelled: set[int] = set()
        stats.kv_bytes_per_token = kv_bytes_per_token(model)
        self._room = kv_tokens(spec.model, stats.kv_bytes_per_token)

    def add(self, job: Job) -> None:
        """Put a job in the queue; from any thread."""
        self._jobs.put(job)

    def cancel(self, number: int) -> None:
        """Nobody waits for this answer any more; from any thread."""
        self._cancelled.add(number)

    def run(self) -> None:
        """Work for ever."""
        while True:
            rows = [Row(job) for job in self._collect()]
            self._work(rows)
            self._emit([])
            # Numbers are not used again: what was cancelled too late is forgotten here.
            self._cancelled -= {row.job.number for row in rows}

    def _collect(self) -> list[Job]:
        """The next batch: all who wait, up to its size, and who comes while it may wait."""
        batch = [self._jobs.get()]
        began = time.monotonic()
        while len(batch) < self._size:
            try:
                batch.append(self._jobs.get(timeout=self._patience(began)))
            except queue.Empty:
                break
        return batch

    def _patience(self, began: float) -> float:
        """Seconds to wait for one more: from now on in a static batch, else what is left."""
        if isinstance(self._strategy, StaticBatches):
            return self._strategy.quiet_s
        window = self._strategy.window_s if isinstance(self._strategy, DynamicBatches) else 0.0
        return max(0.0, window - (time.monotonic() - began))

    def _work(self, rows: Sequence[Row]) -> None:
        """Run a batch; one that does not fit is a result, and goes on in halves."""
        rows = [row for row in rows if not row.ended and row.job.number not in self._cancelled]
        if not rows or self._fits(rows):
            return
        self._stats.out_of_memory.append({"batch_size": len(rows), "tokens_a_row": _length(rows)})
        free_memory()
        if len(rows) == 1:
            why = f"out of memory at batch size 1 with {_length(rows)} tokens"
            self._emit([Event(rows[0].job.number, [], error=why)])
            return
        half = len(rows) // 2
        self._size = max(1, min(self._size, half))
        self._work(rows[:half])
        self._work(rows[half:])

    def _fits(self, rows: Sequence[Row]) -> bool:
        """Run the batch to its end; False if memory ran out, with `made` as far as it came."""
        try:
            if self._room is not None and len(rows) * _length(rows) > self._room:
                raise MemoryError
            self._generate(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _generate(self, rows: Sequence[Row]) -> None:
        device = self._model.device
        ids, mask = padded([row.ids for row in rows])
        ends = Ends(rows, ids.shape[1], self._model.end_tokens, device)
        steps = Steps(rows, ends, self._model.end_tokens, self._emit, self._cancelled)
        config = GenerationConfig(
            **{"use_cache": True, **self._spec.generate},
            max_new_tokens=max(row.left for row in rows),
            do_sample=False,
            pad_token_id=0,
        )
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([ends]),
                streamer=steps,
            )
        self._count(rows, ids.shape[1], steps.done)

    def _count(self, rows: Sequence[Row], longest: int, steps: int) -> None:
        stats = self._stats
        stats.batches += 1
        stats.requests += len(rows)
        stats.steps += steps
        stats.largest_batch = max(stats.largest_batch, len(rows))
        stats.prompt_tokens += sum(len(row.job.prompt) for row in rows)
        stats.output_tokens += sum(len(row.made) for row in rows)
        stats.kv_slots += len(rows) * (longest + steps)
        stats.kv_used += sum(len(row.ids) for row in rows)


def padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of shape (rows, longest), padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


class Ends(StoppingCriteria):  # type: ignore[misc]
    """Which rows have ended: each at its own length, or at an end token that it respects."""

    def __init__(
        self, rows: Sequence[Row], start: int, end_tokens: Iterable[int], device: Any
    ) -> None:
        self._start = start
        self._limits = torch.tensor([row.left for row in rows], device=device)
        self._eos = torch.tensor(sorted(end_tokens), device=device, dtype=torch.long)
        self._respects = torch.tensor([not row.job.ignore_eos for row in rows], device=device)
        self._looks = len(self._eos) > 0 and not all(row.job.ignore_eos for row in rows)

    def end(self, row: int) -> None:
        """Nobody waits for this row."""
        self._limits[row] = 0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        done = self._limits <= input_ids.shape[1] - self._start
        if self._looks:
            done = done | (self._respects & torch.isin(input_ids[:, -1], self._eos))
        return done


class Steps(BaseStreamer):  # type: ignore[misc]
    """Hands each step's tokens on, those of rows that have not ended."""

    def __init__(
        self,
        rows: Sequence[Row],
        ends: Ends,
        end_tokens: frozenset[int],
        emit: Emit,
        cancelled: set[int],
    ) -> None:
        self._rows, self._ends, self._eos = rows, ends, end_tokens
        self._emit, self._cancelled = emit, cancelled
        self.done = -1  # the first call brings the prompts

    def put(self, value: Any) -> None:
        self.done += 1
        if self.done == 0:
            return
        events = []
        for number, (row, token) in enumerate(zip(self._rows, value.tolist(), strict=True)):
            if not row.ended:
                if row.job.number in self._cancelled:
                    row.ended = True
                    self._ends.end(number)
                else:
                    events.append(row.take(token, self._eos))
        self._emit(events)

    def end(self) -> None:
        """Nothing is held back."""


def _length(rows: Sequence[Row]) -> int:
    """Tokens of a row when the batch has ended, padding included."""
    return max(len(row.ids) for row in rows) + max(row.left for row in rows)
