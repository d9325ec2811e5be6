"""transformers' own continuous batching: the manager that `generate_batch` runs on."""

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
from serving.baselines.requests import Emit, Event, Finish, Job, Row, Stats, is_out_of_memory
from serving.spec.baseline import BaselineSpec, Continuous

WAIT_S = 1.0
PAGE = 256  # transformers' own default
FREE_MEMORY = 0.9  # of what is free on a GPU: transformers' own default
CPU_BATCH_TOKENS = 1024
"""Tokens of one step on a CPU; a larger step makes no token of a prompt cheaper there."""


class ContinuousBatches:
    """Gives jobs to transformers' manager, and passes on what it makes.

    The manager ends when memory runs out. It is started again with half as many requests at a
    time, and what was at work goes on from the tokens its client has.
    """

    def __init__(self, model: Any, spec: BaselineSpec, emit: Emit, stats: Stats) -> None:
        assert isinstance(spec.strategy, Continuous)
        self._model, self._spec, self._emit, self._stats = model, spec, emit, stats
        self._options = dict(spec.strategy.options)
        self._page = int(self._options.get("page_size", PAGE))
        self._most = spec.strategy.max_requests
        self._rows: dict[int, Row] = {}
        self._lock = threading.Lock()
        stats.kv_bytes_per_token = kv_bytes_per_token(model)
        self._room = kv_tokens(spec.model, stats.kv_bytes_per_token)
        self._manager = self._start()

    def add(self, job: Job) -> None:
        """Hand a job to the manager; from any thread."""
        with self._lock:
            row = self._rows[job.number] = Row(job)
            self._submit(row)
            self._stats.largest_batch = max(self._stats.largest_batch, len(self._rows))

    def cancel(self, number: int) -> None:
        """Nobody waits for this answer any more; from any thread."""
        with self._lock:
            if self._rows.pop(number, None) is not None:
                self._manager.cancel_request(str(number))

    def run(self) -> None:
        """Pass on what the manager makes, all that is there at once, for ever."""
        while True:
            result = self._manager.get_result(timeout=WAIT_S)
            events: list[Event] = []
            while result is not None:
                events += self._events(result)
                result = self._manager.get_result(timeout=0)
            if events:
                self._emit(events)
                if any(event.finish for event in events):
                    self._emit([])
            elif not self._manager.is_running():
                self._start_again()

    def _start(self) -> Any:
        manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(**self._config()),
        )
        manager.warmup()
        manager.start()
        return manager

    def _config(self) -> dict[str, Any]:
        """transformers' own choices, but for the cache's size and what the spec asks for."""
        asked: dict[str, Any] = {"max_requests_per_batch": self._most}
        if os.environ.get("HF_HUB_OFFLINE") == "1" and find_spec("flash_attn") is None:
            # transformers would take flash attention from the hub, which cannot be reached.
            asked["auto_switch_to_flash"] = False
        if self._room is not None:
            asked |= {"num_blocks": self._blocks(self._room), "max_batch_tokens": CPU_BATCH_TOKENS}
        share = free_share(self._spec.model)
        if share is not None:
            asked["max_memory_percent"] = FREE_MEMORY * share
        asked |= self._options
        known = {field.name for field in fields(ContinuousBatchingConfig)}
        # An older transformers has fewer fields; what the spec itself names must be one.
        return {
            name: value
            for name, value in asked.items()
            if name in self._options or (value is not None and name in known)
        }

    def _blocks(self, room: int) -> int:
        """Blocks of the cache: its room, but no more than the gate ever lets in.

        Without flash attention transformers makes a mask of all blocks times a batch's tokens.
        """
        model = self._spec.model
        context = model.max_model_len or self._model.config.max_position_embeddings
        pages = math.ceil(context / self._page) * model.scaling.max_ongoing_requests
        return max(1, min(math.floor(room / self._page), pages))

    def _submit(self, row: Row) -> None:
        row.before = len(row.made)
        ends = [-1] if row.job.ignore_eos else sorted(self._model.end_tokens) or [-1]
        self._manager.add_request(
            row.ids,
            request_id=str(row.job.number),
            max_new_tokens=row.left,
            streaming=True,
            eos_token_id=ends,
        )

    def _events(self, result: Any) -> list[Event]:
        """What is new in a result; one has all the tokens since the request was submitted."""
        number = int(result.request_id)
        row = self._rows.get(number)
        if row is None or (result.error is not None and is_out_of_memory(result.error)):
            return []  # it was cancelled, or goes on when the manager has started again
        if result.error is not None:
            del self._rows[number]
            return [Event(number, [], error=str(result.error))]
        new = list(result.generated_tokens[len(row.made) - row.before :])
        row.made += new
        if not result.is_finished():
            return [Event(number, new)] if new else []
        del self._rows[number]
        self._count(row)
        return [Event(number, new, self._finish(row))]

    def _finish(self, row: Row) -> Finish:
        stopped = not row.job.ignore_eos and row.made and row.made[-1] in self._model.end_tokens
        return "stop" if stopped else "length"

    def _count(self, row: Row) -> None:
        stats, length = self._stats, len(row.ids)
        stats.requests += 1
        stats.prompt_tokens += len(row.job.prompt)
        stats.output_tokens += len(row.made)
        stats.kv_slots += math.ceil(length / self._page) * self._page
        stats.kv_used += length

    def _start_again(self) -> None:
        with self._lock:
            rows = list(self._rows.values())
            why = str(self._manager.background_thread_status.fatal_error)
            if not is_out_of_memory(why):
                raise RuntimeError(f"transformers' continuous batching ended: {why}")
            # The row that has most to hold decides how much a batch of so many needs.
            longest = max((len(row.ids) + row.left for row in rows), default=0)
            self._stats.out_of_memory.append({"batch_size": len(rows), "tokens_a_row": longest})
            self._manager.destroy()
            self._manager = None
            free_memory()
            self._most = max(1, len(rows) // 2)
            if len(rows) == 1:
                self._rows.clear()
                said = f"out of memory at batch size 1 with {longest} tokens"
                self._emit([Event(rows[0].job.number, [], error=said)])
            self._manager = self._start()
            for row in self._rows.values():
                self._submit(row)
