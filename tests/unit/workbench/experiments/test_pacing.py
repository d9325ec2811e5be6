"""A replica's slots and the pace of its steps."""

from __future__ import annotations

import time

import pytest

from serving.deploy.preflight import check_spec
from serving.engine.variables import MIN_STEP_MS
from workbench import ModelSpec, ServiceSpec
from workbench.errors import SettingError
from workbench.experiments import paced

MODEL = ModelSpec(source="tiny", accelerator="cpu", engine_kwargs={"seed": 1}, env={"A": "b"})


def test_slots_limit_the_engine_and_leave_the_rest_to_serve() -> None:
    model = paced(MODEL, slots=4)
    assert model.engine_kwargs == {"seed": 1, "max_num_seqs": 4}
    assert model.scaling.max_ongoing_requests == 6
    assert model.env == MODEL.env


def test_nothing_changes_by_default() -> None:
    assert paced(MODEL) == MODEL


@pytest.mark.parametrize("given", [{"slots": -1}, {"min_step_ms": -0.5}])
def test_number_below_zero_is_rejected(given: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="must be at least 0"):
        paced(MODEL, **given)


def test_specification_with_paced_steps_is_valid() -> None:
    check_spec(ServiceSpec(model=paced(MODEL, slots=4, min_step_ms=20)))


def test_vllm_loads_the_processor_and_steps_take_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns

    from serving.engine.pace import PacedSteps

    model = paced(MODEL, min_step_ms=20)
    monkeypatch.setenv(MIN_STEP_MS, model.env[MIN_STEP_MS])
    (loaded,) = _load_logitsprocs_by_fqcns(model.engine_kwargs["logits_processors"])
    assert loaded is PacedSteps
    processor = loaded(None, None, False)
    logits = object()
    start_s = time.monotonic()
    assert all(processor.apply(logits) is logits for _ in range(6))
    assert time.monotonic() - start_s >= 5 * 0.020
    assert not processor.is_argmax_invariant()
