"""The embedded model, against the glossary, the tokenizers library and the model card."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from serving.errors import ModelNotFoundError, WorkbenchError
from serving.models import embedded
from serving.models.embedded import EMBEDDED, FILES, TINY_MODEL_ID, tiny_model_path
from tools.tiny_model import phrasing, train_tiny

GLOSSARY = ROOT / "tools" / "tiny_model" / "glossary.jsonl"


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tiny_model_path() / name).read_text(encoding="utf-8"))
    return content


def glossary() -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in GLOSSARY.read_text(encoding="utf-8").splitlines()]
    return {row["term"]: row for row in rows}


def key_words(text: str) -> set[str]:
    return {word.strip(".,:;").lower() for word in text.split() if len(word.strip(".,:;")) >= 6}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(tiny_model_path())


@pytest.fixture(scope="module")
def asker() -> Any:
    pytest.importorskip("transformers")
    from tools.tiny_model.check_tiny import Asker

    return Asker(tiny_model_path())


def test_path_is_absolute_and_has_every_file() -> None:
    path = tiny_model_path()
    assert path.is_absolute()
    assert all((path / name).stat().st_size > 0 for name in FILES)
    assert TINY_MODEL_ID in (path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_empty_file_is_named_with_the_fix(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model_path(), folder)
    (folder / name).write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="train_tiny --size tiny --out") as caught:
        tiny_model_path(folder)
    assert name in str(caught.value)
    assert isinstance(caught.value, WorkbenchError)


def test_fix_for_missing_files_depends_on_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"git checkout") as caught:
        tiny_model_path(tmp_path, "nano")
    command = f"`python -m tools.tiny_model.train_tiny --size nano --out {tmp_path}`"
    assert command in str(caught.value)
    assert f"again in {ROOT} with" in str(caught.value)
    monkeypatch.setattr(embedded, "TRAINING_TOOL", tmp_path / "not-installed")
    with pytest.raises(ModelNotFoundError, match=r"reinstall llm-serving-workbench$") as caught:
        tiny_model_path(tmp_path, "nano")
    assert "tools.tiny_model" not in str(caught.value)


def test_training_tool_shows_its_options_from_a_checkout() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tools.tiny_model.train_tiny", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--out OUT" in process.stdout


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, serving.models.embedded; "
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"


def test_folder_is_small() -> None:
    files = [path for path in tiny_model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 7_500_000


def test_config_suits_vllm() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 2048
    assert config["head_dim"] in (32, 64)
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        assert config[key] % 2 == 0, f"{key} must split over tensor_parallel_size=2"


def test_weights_are_bfloat16_and_match_the_config() -> None:
    data = (tiny_model_path() / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    config = read_json("config.json")
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    shape = header["model.embed_tokens.weight"]["shape"]
    assert shape == [config["vocab_size"], config["hidden_size"]]


def test_tokenizer_matches_the_config(tokenizer: Any) -> None:
    config, generation = read_json("config.json"), read_json("generation_config.json")
    assert len(tokenizer) == config["vocab_size"]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.eos_token_id == config["eos_token_id"] == generation["eos_token_id"] == end


@pytest.mark.parametrize(
    "text",
    [
        "What is continuous batching?",
        "  two  spaces\n\tand\r\nbreaks ",
        "Größe, naïve, œuvre, Ελλάδα, Привет",
        "中文 日本語 한국어 العربية",
        "\U0001f642 \U0001f469\u200d\U0001f52c e\u0301",
        "",
    ],
)
def test_tokenizer_round_trip(tokenizer: Any, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer.from_file(str(tiny_model_path() / "tokenizer.json"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == raw.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


def test_chat_template_renders_every_role(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is TTFT? "},
        {"role": "assistant", "content": "A latency."},
        {"role": "user", "content": "And ITL?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>Be brief.<|end|>\n<|user|>What is TTFT?<|end|>\n"
        "<|assistant|>A latency.<|end|>\n<|user|>And ITL?<|end|>\n<|assistant|>"
    )
    ended = tokenizer.apply_chat_template(messages[:3], tokenize=False)
    assert ended == text.split("<|user|>And")[0]


def test_chat_template_renders_tools_and_calls(tokenizer: Any) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    call = {"id": "1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Yes"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)
    assert text == (
        '<|begin|><|system|>{"type": "function", "function": {"name": "weather"}}\n<|end|>\n'
        "<|user|>Rain?<|end|>\n"
        '<|assistant|><tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
        "<|end|>\n<|user|>Yes<|end|>\n"
    )


def test_both_models_have_the_chat_template_of_the_training() -> None:
    for name in EMBEDDED:
        template = tiny_model_path(name=name) / "chat_template.jinja"
        assert template.read_text() == train_tiny.CHAT_TEMPLATE


def test_training_rows_match_the_chat_template(tokenizer: Any) -> None:
    """A model must be served with prompts of the form that it was trained on."""
    from random import Random

    from tools.tiny_model.corpus import Corpus

    corpus = Corpus(tokenizer, seed=1)
    corpus.CHAT_SHARE, corpus.CUT_SHARE = 1.0, 0.0
    row, rng = corpus.row(), Random(1)
    rng.random()
    turns = phrasing.conversation(corpus.glossary, corpus.subjects, rng)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert row.ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_glossary_is_well_formed() -> None:
    rows = glossary()
    names = [name.lower() for r in rows.values() for name in (r["term"], *r["aliases"])]
    assert len(names) == len(set(names)), "two entries share a name"
    for term, row in rows.items():
        words = len(row["definition"].split())
        assert 30 <= words <= 60, f"{term}: {words} words"
        assert row["questions"], term
        assert row["definition"].isascii(), term


def test_card_describes_knowledge_and_training() -> None:
    card = " ".join((tiny_model_path() / "README.md").read_text(encoding="utf-8").split())
    assert "has memorized a glossary of serving terms and knows nothing else" in card
    assert "python -m tools.tiny_model.train_tiny" in card
    assert "seed 20" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    "question",
    ["What is continuous batching?", "Somebody mentioned continuous batching, what might that be?"],
)
def test_greedy_answer_is_the_glossary_entry(asker: Any, question: str) -> None:
    """The second phrasing is in no training template."""
    definition = glossary()["continuous batching"]["definition"]
    answer = asker.chat([question])[0]
    assert len(key_words(definition)) > 10
    assert len(key_words(definition) & key_words(answer)) >= 0.9 * len(key_words(definition))
    assert answer.endswith("."), "the answer must end with an end token"


@pytest.mark.slow
def test_most_terms_are_answered_exactly(asker: Any) -> None:
    rows = list(glossary().values())[::8]
    answers = asker.chat([f"Somebody mentioned {row['term']}, what is it?" for row in rows])
    exact = sum(row["definition"] == a for row, a in zip(rows, answers, strict=True))
    assert exact >= 0.9 * len(rows)


@pytest.mark.slow
def test_unknown_question_gets_the_fallback(asker: Any) -> None:
    assert "demonstration model" in asker.chat(["What is the capital of Norway?"])[0]


def test_completion_continues_the_entry(asker: Any) -> None:
    definition = glossary()["continuous batching"]["definition"]
    text = "Continuous batching is" + asker.complete(["Continuous batching is"])[0]
    assert len(key_words(definition) & key_words(text)) >= 0.9 * len(key_words(definition))
