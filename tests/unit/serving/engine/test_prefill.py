"""Requests of a prefill replica."""

from __future__ import annotations

from types import SimpleNamespace

from serving.engine.prefill import without_min_tokens


def test_an_answer_of_one_token_has_no_minimum() -> None:
    request = SimpleNamespace(max_tokens=1, min_tokens=12, seed=3)
    assert vars(without_min_tokens(request)) == {"max_tokens": 1, "min_tokens": 0, "seed": 3}


def test_other_requests_stay_as_they_are() -> None:
    for fields in ({"max_tokens": 1, "min_tokens": 0}, {"max_tokens": 1}):
        assert vars(without_min_tokens(SimpleNamespace(**fields))) == fields
