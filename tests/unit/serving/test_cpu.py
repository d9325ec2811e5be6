"""The default number type on a CPU, by the flags that Linux lists for real processors."""

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
    ("listed", "fast"),
    [(XEON, True), (EPYC, False), (GRAVITON, True), (RASPBERRY, False), ("processor: 0\n", True)],
)
def test_bfloat16_is_fast_if_the_cpu_has_instructions_for_it(
    listed: str, fast: bool, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(listed)
    assert fast_bfloat16(cpuinfo) is fast


def test_without_flags_the_default_type_is_kept(tmp_path: Path) -> None:
    assert fast_bfloat16(tmp_path / "none")


@pytest.mark.parametrize(
    ("model", "fast", "dtype"),
    [
        (ModelSpec(), True, "bfloat16"),
        (ModelSpec(), False, "float32"),
        (ModelSpec(dtype="bfloat16"), False, "bfloat16"),
        (ModelSpec(dtype="float32"), True, "float32"),
        (ModelSpec(accelerator="gpu"), False, "bfloat16"),
    ],
)
def test_a_model_is_computed_in_the_fast_type(
    model: ModelSpec, fast: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_spec, "fast_bfloat16", lambda: fast)
    assert model.resolved_dtype == dtype
    assert engine_kwargs(model)["dtype"] == dtype
    assert data_types_of(model).weight_bytes == {"bfloat16": 2, "float32": 4}[dtype]
