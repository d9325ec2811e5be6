"""Training data of the embedded models: token ids, each with its weight in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tools.tiny_model import phrasing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIALS = (PAD, BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """Token ids, and the weight of each in the loss when it is predicted."""

    ids: list[int]
    weights: list[float]


class Corpus:
    """An endless stream of training rows, which the seed determines."""

    # Text outside the answers has a small weight, so that a benchmark that ignores the end of an
    # answer gets the next question of a chat and not noise.
    ASIDE = 0.05
    CHAT_SHARE = 0.92
    # Most chats end after the first tokens of their last answer, which decide the entry. The rest
    # of an answer needs fewer repetitions than the questions do.
    CUT_SHARE, CUT_TOKENS = 0.7, 18

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer = tokenizer
        self.glossary = phrasing.load_glossary()
        self.subjects = phrasing.load_subjects()
        self.rng = Random(seed)

    def row(self) -> TrainingRow:
        """Return the next row: a chat, or an entry as plain text."""
        if self.rng.random() >= self.CHAT_SHARE:
            text = phrasing.passage(self.glossary, self.rng) + END
            ids = self._encode(BEGIN + text if self.rng.random() < 0.3 else text)
            return TrainingRow(ids, [1.0] * len(ids))
        row = TrainingRow(self._encode(BEGIN), [0.0])
        turns = phrasing.conversation(self.glossary, self.subjects, self.rng)
        for turn in turns:
            self._extend(row, f"<|{turn.role}|>", self.ASIDE)
            self._extend(row, turn.text + END, self._weight(turn))
            self._extend(row, "\n", self.ASIDE)
        return self._cut(row, turns[-1].text) if self.rng.random() < self.CUT_SHARE else row

    def _cut(self, row: TrainingRow, answer: str) -> TrainingRow:
        end = len(row.ids) - len(self._encode(answer + END + "\n")) + self.CUT_TOKENS
        return TrainingRow(row.ids[:end], row.weights[:end])

    def _weight(self, turn: phrasing.Turn) -> float:
        if turn.role == "assistant":
            return 1.0
        return self.ASIDE if turn.role == "user" and len(turn.text) < 200 else 0.0

    def batches(self, tokens: int) -> Iterator[list[TrainingRow]]:
        """Yield batches of rows of similar length, with at most `tokens` ids including padding."""
        while True:
            pool = sorted((self.row() for _ in range(512)), key=lambda row: len(row.ids))
            groups: list[list[TrainingRow]] = [[]]
            for row in pool:
                if groups[-1] and (len(groups[-1]) + 1) * len(row.ids) > tokens:
                    groups.append([])
                groups[-1].append(row)
            self.rng.shuffle(groups)
            yield from groups

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _extend(self, row: TrainingRow, text: str, weight: float) -> None:
        ids = self._encode(text)
        row.ids.extend(ids)
        row.weights.extend([weight] * len(ids))
