"""Secrets are redacted; names that only look like those of secrets are kept."""

from __future__ import annotations

import json

import pytest

from workbench.runs.redact import redact


class TestSecrets:
    @pytest.mark.parametrize(
        "key",
        [
            "api_key",
            "API_KEY",
            "apiKey",
            "OPENAI_API_KEY",
            "api_keys",
            "token",
            "HF_TOKEN",
            "hf_token",
            "Authorization",
            "client_secret",
            "password",
            "auth-token",
            "access_key",
        ],
    )
    def test_secret_is_redacted_at_any_depth(self, key: str) -> None:
        for deep in (
            {key: "hush"},
            {"a": [{"b": {key: ["hush"]}}]},
            {"a": ({key: {"x": "hush"}},)},
        ):
            assert "hush" not in json.dumps(redact(deep))

    @pytest.mark.parametrize(
        "key",
        [
            "prompt_tokens",
            "max_tokens",
            "output_tokens",
            "token_times_s",
            "tokenizer",
            "eos_token",
            "tokens",
            "key",
            "max_num_batched_tokens",
            "first_token_s",
            "secretary",
            "keyboard",
            "price_per_token",
        ],
    )
    def test_similar_names_are_kept(self, key: str) -> None:
        assert redact({key: "seen"}) == {key: "seen"}
        assert redact({key: 5}) == {key: 5}

    def test_absent_values_numbers_and_booleans_are_kept(self) -> None:
        same = {"api_key": None, "token": 5, "password": False}
        assert redact(same) == same

    @pytest.mark.parametrize(
        "text",
        [
            "Bearer hush-hush",
            "run --key sk-hushhushhushhush1",
            "hf_hushhushhushhushhush12",
            "http://me:hush@host/v1",
        ],
    )
    def test_text_in_the_form_of_a_key_is_redacted(self, text: str) -> None:
        assert "hush" not in redact([text])[0]
        assert redact("hf-internal-testing/tiny-random-Llama").startswith("hf-internal")
