"""The adapters of the embedded model: PEFT's format, and answers computed by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.deploy.preflight import check_model
from serving.models.embedded import tiny_model_path
from serving.spec.model import ModelSpec
from tools.tiny_model.train_adapters import ANSWERS, main

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters")
    assert main(["--out", str(out)]) == 0
    return out


def merged(folder: Path) -> Any:
    """Return the model whose weights an adapter has changed, by the formula of LoRA."""
    from safetensors.torch import load_file

    from tools.tiny_model.check_tiny import Asker

    asker = Asker(tiny_model_path())
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    weights = dict(asker.model.named_parameters())
    for name, down in tensors.items():
        if ".lora_A." in name:
            up = tensors[name.replace("lora_A", "lora_B")]
            module = name.removeprefix("base_model.model.").replace(".lora_A", "")
            change = config["lora_alpha"] / config["r"] * up @ down
            weights[module].data += change.to(weights[module].dtype)
    return asker


@pytest.mark.parametrize("name", ANSWERS)
def test_an_adapter_changes_every_answer(adapters: Path, name: str) -> None:
    questions = ["What is continuous batching?", "What is TTFT?", "Define prefill."]
    answers = merged(adapters / name).chat(questions)
    assert answers == [ANSWERS[name]] * len(questions)


def test_the_model_itself_answers_otherwise() -> None:
    from tools.tiny_model.check_tiny import Asker

    (answer,) = Asker(tiny_model_path()).chat(["What is prefill?"])
    assert answer not in ANSWERS.values()


def test_a_service_accepts_them(adapters: Path) -> None:
    check_model(ModelSpec(adapters={name: str(adapters / name) for name in ANSWERS}))
