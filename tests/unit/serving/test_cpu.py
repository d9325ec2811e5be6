"""Which type a CPU computes in by default: against what Linux says of real processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.cpu import fast_bfloat16
from serving.engine.engine_args import engine_kwargs
from serving.sizing.checks import data_types_of
from serving.spec import model as model_spec
from serving.spec.model import ModelSpec

XEON = "model name\t: Intel Xeon 8481C\nflags\t\t: fpu sse2 avx avx2 avx512f avx512_bf16 amx_bf16\n"
EPYC = "model name\t: AMD EPYC 7B13\nflags\t\t: fpu sse2 avx avx2 fma\nbugs\t\t: spectre_v1\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimdhp sve bf16 i8mm\n"
RASPBERRY = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32\n"


@pytest.mark.parametrize(
    ("told", "fast"),
    [(XEON, True), (EPYC, False), (GRAVITON, True), (RASPBERRY, False), ("processor: 0\n", True)],
)
def test_what_linux_tells_of_the_processor(told: str, fast: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(told)
    assert fast_bfloat16(cpuinfo) is fast


def test_a_system_that_tells_nothing_keeps_the_usual_type(tmp_path: Path) -> None:
    assert fast_bfloat16(tmp_path / "none")


@pytest.mark.parametrize(
    ("model", "fast", "type_"),
    [
        (ModelSpec(), True, "bfloat16"),
        (ModelSpec(), False, "float32"),
        (ModelSpec(dtype="bfloat16"), False, "bfloat16"),
        (ModelSpec(dtype="float32"), True, "float32"),
        (ModelSpec(accelerator="gpu"), False, "bfloat16"),
    ],
)
def test_the_type_of_a_model(
    model: ModelSpec, fast: bool, type_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_spec, "fast_bfloat16", lambda: fast)
    assert model.resolved_dtype == type_
    assert engine_kwargs(model)["dtype"] == type_
    assert data_types_of(model).weight_bytes == {"bfloat16": 2, "float32": 4}[type_]
