"""Labelled texts against the definitions of their check digits, and the counts made by them."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from workbench.analysis.pii import (
    ENTITIES,
    parse_guardrail_header,
    pii_texts,
    precision_recall,
    routing_costs,
)

TEXTS = pii_texts(400, seed=3)


def values(entity: str) -> list[str]:
    return [value for text in TEXTS for kind, value in text.entities if kind == entity]


class TestTexts:
    def test_the_seed_determines_them(self) -> None:
        assert pii_texts(400, seed=3) == TEXTS != pii_texts(400, seed=4)

    def test_half_have_entities_which_are_in_the_text(self) -> None:
        assert sum(bool(text.entities) for text in TEXTS) == 200
        assert all(value in text.text for text in TEXTS for _, value in text.entities)
        assert {kind for text in TEXTS for kind, _ in text.entities} == set(ENTITIES)

    def test_card_numbers_have_luhn_check_digits(self) -> None:
        for card in values("CREDIT_CARD"):
            digits = [int(d) for d in re.sub(r"\D", "", card)]
            odd, even = digits[-1::-2], [2 * d for d in digits[-2::-2]]
            assert len(digits) == 16
            assert (sum(odd) + sum(d - 9 if d > 9 else d for d in even)) % 10 == 0

    def test_ibans_have_valid_check_digits(self) -> None:
        for iban in values("IBAN_CODE"):
            plain = iban.replace(" ", "")
            assert int(plain[4:] + "1314" + plain[2:4]) % 97 == 1  # DE is 13 14 (ISO 13616)

    def test_entities_are_from_reserved_ranges(self) -> None:
        mails = r"example(\.| dot )(com|org|net)$"
        assert all(re.search(mails, mail) for mail in values("EMAIL_ADDRESS"))
        assert all(re.search(r"555\D?01\d\d$", phone) for phone in values("PHONE_NUMBER"))
        networks = r"(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+"
        assert all(re.fullmatch(networks, ip) for ip in values("IP_ADDRESS"))


def test_parse_guardrail_header() -> None:
    assert parse_guardrail_header("A;action=redact;count=2, B_C;action=block;count=1") == {
        "A": 2,
        "B_C": 1,
    }
    assert (
        parse_guardrail_header(None)
        == parse_guardrail_header("")
        == parse_guardrail_header("nonsense")
        == {}
    )


def test_precision_and_recall() -> None:
    truths = [{"A": 2}, {}, {"A": 1, "B": 1}]
    found = [{"A": 1}, {"C": 1}, {"A": 3}]
    frame = precision_recall(truths, found)
    assert list(frame.index) == ["A", "B", "C", "all"]
    assert frame.loc["A", ["labelled", "found", "right"]].tolist() == [3, 4, 2]
    assert frame.loc["A", "precision"] == 0.5
    assert frame.loc["A", "recall"] == pytest.approx(2 / 3)
    assert pd.isna(frame.precision["B"])
    assert pd.isna(frame.recall["C"])
    assert frame.loc["all", ["labelled", "found", "right"]].tolist() == [4, 5, 2]


def test_routing_costs() -> None:
    requests = pd.DataFrame(
        {
            "status": ["ok", "ok", "ok", "shed"],
            "model": ["big", "small", "small", "auto"],
            "prompt_tokens": [100.0, 50.0, 50.0, None],
            "output_tokens": [100.0, 50.0, 50.0, None],
            "e2el_ms": [30.0, 10.0, 20.0, 1.0],
        }
    )
    costs = routing_costs(requests, {"big": 10.0, "small": 1.0}, "big")
    assert costs.requests.to_dict() == {"big": 1, "small": 2, "all": 3}
    assert costs.usd["all"] == pytest.approx((200 * 10 + 200 * 1) / 1e6)
    assert costs.usd_large["all"] == pytest.approx(400 * 10 / 1e6)
    assert costs.median_e2el_ms["small"] == 15
