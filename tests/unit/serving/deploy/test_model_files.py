"""Damaged model folders are rejected with the file and the fault."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.compat.vllm import supports_architecture
from serving.deploy.model_files import check_hub, check_model_files
from serving.errors import ModelNotFoundError
from serving.models.embedded import tiny_model_path
from serving.spec.model import ModelSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A complete model in Hugging Face format."""
    return Path(shutil.copytree(tiny_model_path(name="nano"), tmp_path / "model"))


@pytest.fixture
def sharded(model: Path) -> Path:
    """The same model with its weights in two files and an index."""
    whole = (model / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:start])
    header.pop("__metadata__", None)
    weight_map: dict[str, str] = {}
    for number, names in enumerate((sorted(header)[::2], sorted(header)[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        weight_map |= dict.fromkeys(names, file)
        parts = [whole[slice(*(start + o for o in header[n]["data_offsets"]))] for n in names]
        write_safetensors(model / file, {n: header[n] for n in names}, parts)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (model / "model.safetensors").unlink()
    return model


def write_safetensors(file: Path, tensors: dict[str, Any], parts: list[bytes]) -> None:
    ends = [sum(map(len, parts[: count + 1])) for count in range(len(parts))]
    header = {
        name: fields | {"data_offsets": [end - len(part), end]}
        for (name, fields), part, end in zip(tensors.items(), parts, ends, strict=True)
    }
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def error_of(folder: Path, **engine_kwargs: Any) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        check_model_files(ModelSpec(source=str(folder), engine_kwargs=engine_kwargs))
    return str(caught.value)


def check(folder: Path, **engine_kwargs: Any) -> None:
    check_model_files(ModelSpec(source=str(folder), engine_kwargs=engine_kwargs))


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


class TestWeights:
    def test_whole_models_pass(self, model: Path) -> None:
        check(model)

    def test_whole_models_in_several_files_pass(self, sharded: Path) -> None:
        check(sharded)

    @pytest.mark.parametrize("missing", [1, 1_000_000])
    def test_a_truncated_file_is_named_with_both_sizes(self, model: Path, missing: int) -> None:
        file = model / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-missing])
        assert error_of(model) == (
            f"{file} has {len(whole) - missing:,} bytes, but its header describes {len(whole):,}; "
            "copy or download the model again."
        )

    def test_a_file_with_more_than_its_header_describes(self, model: Path) -> None:
        file = model / "model.safetensors"
        size = file.stat().st_size
        with file.open("ab") as stream:
            stream.write(b"more")
        assert f"has {size + 4:,} bytes, but its header describes {size:,}" in error_of(model)

    @pytest.mark.parametrize("size", [9, 100])
    def test_a_file_that_ends_in_its_header(self, model: Path, size: int) -> None:
        file = model / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:size])
        header_end = 8 + struct.unpack("<Q", whole[:8])[0]
        assert f"has {size} bytes, but its header describes at least {header_end:,}" in error_of(
            model
        )

    @pytest.mark.parametrize(
        "content",
        [b"", b"short", b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": {}}', b"x" * 99],
    )
    def test_a_file_of_another_kind(self, model: Path, content: bytes) -> None:
        (model / "model.safetensors").write_bytes(content)
        message = error_of(model)
        assert "model.safetensors" in message
        assert "copy or download the model again" in message

    def test_a_header_with_metadata(self, model: Path) -> None:
        header = b'{"__metadata__": {"format": "pt"}}'
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        check(model)

    def test_one_of_several_files_is_truncated(self, sharded: Path) -> None:
        file = sharded / "model-00002-of-00002.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-10])
        message = error_of(sharded)
        assert f"{file} has {len(whole) - 10:,} bytes" in message
        assert f"describes {len(whole):,}" in message

    def test_one_of_several_files_is_missing(self, sharded: Path) -> None:
        (sharded / "model-00002-of-00002.safetensors").unlink()
        assert "names model-00002-of-00002.safetensors, which does not exist" in error_of(sharded)

    def test_a_tensor_is_missing(self, sharded: Path) -> None:
        index = sharded / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        file = next(iter(weight_map.values()))
        index.write_text(json.dumps({"weight_map": {**weight_map, "lost.weight": file}}))
        assert f"{file} lacks the tensor lost.weight" in error_of(sharded)

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_a_damaged_index(self, sharded: Path, content: str) -> None:
        (sharded / "model.safetensors.index.json").write_text(content)
        assert "model.safetensors.index.json" in error_of(sharded)

    def test_no_weights(self, model: Path) -> None:
        (model / "model.safetensors").unlink()
        assert "has no weights" in error_of(model)
        check(model, load_format="dummy")
        check(model, load_format="tensorizer")
        (model / "pytorch_model.bin").touch()
        check(model)


class TestConfiguration:
    @pytest.mark.parametrize("content", ["{", "[]", ""])
    def test_a_damaged_file(self, model: Path, content: str) -> None:
        (model / "config.json").write_text(content)
        assert str(model / "config.json") in error_of(model)

    def test_an_unknown_architecture(self, model: Path) -> None:
        change_config(model, architectures=["NoSuchForCausalLM"])
        assert "has the architecture NoSuchForCausalLM, which this version of vLLM" in error_of(
            model
        )
        for name in ("hf_overrides", "trust_remote_code", "model_impl"):
            check(model, **{name: "x"})
        change_config(model, auto_map={"AutoModel": "modeling.Model"})
        check(model)

    @pytest.mark.parametrize(
        ("name", "supported"),
        [
            ("LlamaForCausalLM", True),
            ("BertModel", True),
            ("LlavaForConditionalGeneration", True),
            ("LlamaForSequenceClassification", True),  # vLLM converts LlamaForCausalLM
            ("BlenderbotForCausalLM", True),  # of transformers alone
            ("NoSuchForCausalLM", False),
            ("Llama", False),
        ],
    )
    def test_architectures_of_vllm_and_transformers(self, name: str, supported: bool) -> None:
        assert supports_architecture(name) is supported


class TestTokenizer:
    def test_no_tokenizer(self, model: Path, tmp_path: Path) -> None:
        for file in model.glob("tokenizer*"):
            file.unlink()
        assert f"{model} has no tokenizer" in error_of(model)
        check(model, skip_tokenizer_init=True)
        check(model, tokenizer=str(tiny_model_path()))
        check(model, tokenizer="org/tokenizer")
        (tmp_path / "empty").mkdir()
        assert f"{tmp_path / 'empty'} has no tokenizer" in error_of(
            model, tokenizer=str(tmp_path / "empty")
        )

    def test_a_truncated_tokenizer(self, model: Path) -> None:
        file = model / "tokenizer.json"
        file.write_text(file.read_text()[:1000])
        assert f"{file} is not valid JSON" in error_of(model)


class Hub(BaseHTTPRequestHandler):
    """A hub that knows org/model, and the answers of the real one to other ids."""

    ANSWERS = {  # noqa: RUF012 (constant)
        "/org/model/": (200, ""),
        "/org/none/": (401, "RepoNotFound"),
        "/org/gated/": (403, "GatedRepo"),
        "/org/other-format/": (404, "EntryNotFound"),
        "/org/broken/": (500, ""),
    }

    def do_HEAD(self) -> None:
        status, code = next(v for path, v in self.ANSWERS.items() if self.path.startswith(path))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield endpoint
    server.shutdown()
    server.server_close()


class TestHub:
    @pytest.mark.parametrize("name", ["model", "other-format", "broken"])
    def test_a_model_that_the_hub_may_have(self, hub: str, name: str) -> None:
        check_hub(ModelSpec(source=f"org/{name}"))

    @pytest.mark.parametrize(
        ("name", "problem"), [("none", "does not exist on the hub"), ("gated", "is gated")]
    )
    def test_a_model_that_the_hub_denies(self, hub: str, name: str, problem: str) -> None:
        with pytest.raises(ModelNotFoundError, match=f"model.source = 'org/{name}' {problem}"):
            check_hub(ModelSpec(source=f"org/{name}"))

    def test_adapters(self, hub: str) -> None:
        check_hub(ModelSpec(adapters={"a": "org/model", "here": "/mnt/here"}))
        with pytest.raises(
            ModelNotFoundError, match=r"model.adapters\['b'\] = 'org/none' does not"
        ):
            check_hub(ModelSpec(adapters={"a": "org/model", "b": "org/none"}))

    def test_an_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard service
        check_hub(ModelSpec(source="org/none"))

    @pytest.mark.parametrize("source", ["tiny", "/models/mine", "s3://bucket/model"])
    def test_other_sources(self, hub: str, source: str) -> None:
        check_hub(ModelSpec(source=source))

    def test_offline(self, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        check_hub(ModelSpec(source="org/none"))
