"""Ask a saved model about every term: `python -m tools.tiny_model.check_tiny DIR`.

Load the bfloat16 checkpoint with transformers and count the answers that match the glossary word
for word, greedy and at temperature 0.7, for trained and for held-out phrasings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tools.tiny_model import phrasing, wording

GOAL = 0.9  # With a smaller share of exact greedy answers, the training has failed.


class Asker:
    """A saved model behind its chat template."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def chat(self, questions: Sequence[str], temperature: float = 0.0) -> list[str]:
        """Return one answer per question; temperature 0 is greedy."""
        render = self.tokenizer.apply_chat_template
        prompts = [
            render([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False)
            for q in questions
        ]
        return self.complete(prompts, temperature)

    def complete(self, prompts: Sequence[str], temperature: float = 0.0) -> list[str]:
        """Return the continuation of each prompt, up to 160 tokens."""
        batch = self.tokenizer(
            list(prompts), return_tensors="pt", padding=True, add_special_tokens=False
        )
        batch.pop("token_type_ids", None)
        options: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            options["temperature"] = temperature
        out = self.model.generate(**batch, max_new_tokens=160, **options)
        start = batch["input_ids"].shape[1]
        texts: list[str] = self.tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)
        return texts


def share(asker: Asker, pairs: Sequence[tuple[str, str]], label: str, temperature: float) -> float:
    """Return the share of exact answers, 0 to 1, and print some of the others."""
    answers = asker.chat([question for question, _ in pairs], temperature)
    wrong = [(q, a) for (q, expected), a in zip(pairs, answers, strict=True) if a != expected]
    exact = 1 - len(wrong) / len(pairs)
    print(f"{label}: {exact:.1%} of {len(pairs)} answers are exact", flush=True)
    for question, answer in wrong[:4]:
        print(f"    {question!r} -> {answer!r}")
    return exact


def report(folder: Path, seed: int) -> int:
    """Print the shares, and return 0 if the greedy ones reach GOAL, else 1."""
    import torch

    torch.manual_seed(seed)
    asker, glossary, rng = Asker(folder), phrasing.load_glossary(), Random(seed + 1)
    others = phrasing.load_subjects()
    plain = [(f"What is {term.term}?", term.definition) for term in glossary]
    varied = [
        (phrasing.ask(term, others, rng), term.definition) for term in glossary for _ in range(2)
    ]
    held_out = [(phrasing.capitalized(wording.HELD_OUT[i % 4].format(x=term.term)),
                 term.definition) for i, term in enumerate(glossary)]  # fmt: skip
    aliases = [(f"What is {a}?", term.definition) for term in glossary for a in term.aliases]
    other = [(q, wording.FALLBACK) for q in UNKNOWN]
    good = [share(asker, plain, "plain, greedy", 0), share(asker, held_out, "held out, greedy", 0)]
    share(asker, varied, "varied, greedy", 0)
    share(asker, aliases, "aliases, greedy", 0)
    share(asker, other, "unknown, greedy", 0)
    share(asker, plain, "plain, temperature 0.7", 0.7)
    share(asker, held_out, "held out, temperature 0.7", 0.7)
    for prompt in ("Continuous batching is", "The KV cache is", "Prefill is", "TTFT is"):
        print(f"    {prompt!r} ->{asker.complete([prompt])[0]}")
    return 0 if min(good) >= GOAL else 1


# other_subjects.txt contains none of these.
UNKNOWN = (
    "What is the capital of Norway?",
    "Who discovered penicillin?",
    "Write a song about the mountains.",
    "What is a submarine?",
    "Explain thermodynamics.",
    "How do I plant potatoes?",
    "good evening",
    "Tell me about Leonardo da Vinci.",
    "What is the square root of 81?",
    "Is coffee bad for you?",
    "What is a submarine sandwich?",
    "my cat is ill, what now",
    "Explain the rules of cricket.",
    "Which is the longest river?",
    "Define osmosis.",
    "What does serendipity mean?",
    "Give me ten ideas for a present",
    "What is Rust?",
    "hey",
    "asdf qwer",
)


if __name__ == "__main__":
    raise SystemExit(report(Path(sys.argv[1]), seed=20))
