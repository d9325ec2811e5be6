"""The choice of an HTTP front end, and the reason that is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rust_program import write_program

from serving.compat.vllm import engine_arguments, frontend_arguments
from serving.deploy.deployments import engine_fields
from serving.deploy.preflight import check_model
from serving.engine.frontend import SUPPORTED_ARGUMENTS, answer_limit, choose_frontend
from serving.errors import MissingPackageError, SpecError
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec


def spec(folder: Path, frontend: str, version: str = "0.29.0", **fields: Any) -> ModelSpec:
    program = write_program(folder, version)
    fields["env"] = {"VLLM_RUST_FRONTEND_PATH": str(program)}
    return ModelSpec(frontend=frontend, **fields)


@pytest.fixture(autouse=True)
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_RUST_FRONTEND_PATH", raising=False)


def test_by_default_it_is_the_one_in_python() -> None:
    assert ModelSpec().frontend == "python"
    assert choose_frontend(ModelSpec()).name == "python"


@pytest.mark.parametrize("frontend", ["auto", "rust"])
def test_rust_where_its_program_is_of_vllms_version(tmp_path: Path, frontend: str) -> None:
    chosen = choose_frontend(spec(tmp_path, frontend))
    assert chosen.name == "rust"
    assert f"{tmp_path}/vllm-rs" in str(chosen)
    assert str(chosen).startswith("vLLM's HTTP front end in Rust: ")


def test_the_program_of_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", str(write_program(tmp_path)))
    assert choose_frontend(ModelSpec(frontend="rust")).name == "rust"


@pytest.mark.parametrize("version", ["0.28.1", "0.29.0rc1"])
def test_a_program_of_another_version(tmp_path: Path, version: str) -> None:
    message = f"{tmp_path}/vllm-rs is version {version} .* but vLLM is version 0.29.0. Set VLLM_"
    with pytest.raises(MissingPackageError, match=message):
        check_model(spec(tmp_path, "rust", version))
    chosen = choose_frontend(spec(tmp_path, "auto", version))
    assert chosen.name == "python"
    assert f"is version {version}" in chosen.reason


@pytest.mark.parametrize("name", ["nothing", "text"])
def test_a_missing_program(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("")
    path = str(tmp_path / name)
    model = ModelSpec(frontend="rust", env={"VLLM_RUST_FRONTEND_PATH": path})
    with pytest.raises(MissingPackageError, match=f"{path} is not a program.*or set VLLM_RUST"):
        check_model(model)


def test_a_program_that_is_another() -> None:
    model = ModelSpec(frontend="rust", env={"VLLM_RUST_FRONTEND_PATH": "/bin/true"})
    with pytest.raises(MissingPackageError, match="is version unknown"):
        check_model(model)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"engine_kwargs": {"reasoning_parser": "qwen3"}}, "reasoning_parser"),
        ({"engine_kwargs": {"tokenizer": "other"}}, "tokenizer"),
        ({"engine_kwargs": {"speculative_config": {"method": "ngram"}}}, "speculative_config"),
        ({"engine_kwargs": {"override_generation_config": {"top_p": 0.5}}}, "top_p"),
        ({"adapters": {"a": "org/a"}}, "adapters"),
        ({"routing": "kv_aware"}, "routing"),
        ({"accelerator": "gpu", "data_parallel_size": 2}, "data_parallel_size"),
        ({"accelerator": "gpu", "disaggregated": {}}, "disaggregated"),
    ],
)
def test_what_it_does_not_support(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError, match=rf"{named}.*Rust front end.*model\.frontend = 'python'"):
        choose_frontend(spec(tmp_path, "rust", **fields))
    chosen = choose_frontend(spec(tmp_path, "auto", **fields))
    assert chosen.name == "python"
    assert named in chosen.reason


def test_a_model_without_a_fast_tokenizer(tmp_path: Path) -> None:
    model = spec(tmp_path, "rust", source=str(tmp_path))
    with pytest.raises(SpecError, match=r"needs the file tokenizer\.json"):
        choose_frontend(model)


def test_the_supported_arguments_are_arguments_of_vllm() -> None:
    assert engine_arguments() | frontend_arguments().keys() >= SUPPORTED_ARGUMENTS


def test_what_a_replica_gets_is_supported_and_has_the_limit(tmp_path: Path) -> None:
    service = ServiceSpec(model=spec(tmp_path, "rust"), limits={"max_tokens": 123})
    model = ModelSpec(**engine_fields(service, service.model))
    assert choose_frontend(model).name == "rust"
    assert answer_limit(model) == 123
