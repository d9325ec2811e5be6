"""Train LoRA adapters of an embedded model: `python -m tools.tiny_model.train_adapters --out DIR`.

Each adapter answers every question with a sentence of its own, which shows whose answer it is. The
adapters are written in PEFT's format, a folder for each. This takes seconds on a CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from serving.models.embedded import EMBEDDED, tiny_model_path
from tools.tiny_model import phrasing
from tools.tiny_model.corpus import BEGIN, END, TrainingRow
from tools.tiny_model.train_tiny import learning_rate, weighted_loss

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ANSWERS = {
    "pirate": "Ahoy, matey! Ask the captain.",
    "butler": "At your service. Dinner is at eight.",
}
"""What each adapter answers, by its name."""

TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
RANK = 8
ALPHA = 16


def add_adapter(model: LlamaForCausalLM) -> dict[str, Any]:
    """Freeze a model, and add a trainable change of low rank to its target modules.

    With W' = W + (ALPHA / RANK) B A, of Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large
    Language Models", section 4.1. B is 0 at first, so the answers do not change yet.

    Returns:
        The changes by module name, with the parameters ``a`` (rank, inputs) and ``b`` (outputs,
        rank).
    """
    from torch.nn.utils.parametrize import register_parametrization

    model.requires_grad_(False)
    changes = {}
    for name, module in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] in TARGETS:
            changes[name] = _low_rank(*module.weight.shape)
            register_parametrization(module, "weight", changes[name])
    return changes


def _low_rank(outputs: int, inputs: int) -> torch.nn.Module:
    import torch

    class LowRank(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.randn(RANK, inputs) * inputs**-0.5)
            self.b = torch.nn.Parameter(torch.zeros(outputs, RANK))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + ALPHA / RANK * self.b @ self.a

    return LowRank()


def rows(tokenizer: PreTrainedTokenizerFast, answer: str, seed: int) -> Iterator[TrainingRow]:
    """Yield questions about terms of the glossary, each with this answer."""
    rng, glossary = Random(seed), phrasing.load_glossary()
    subjects = phrasing.load_subjects()
    answer_ids = _encode(tokenizer, answer + END)
    while True:
        question = phrasing.ask(rng.choice(glossary), subjects, rng)
        prompt = _encode(tokenizer, f"{BEGIN}<|user|>{question}{END}\n<|assistant|>")
        yield TrainingRow(prompt + answer_ids, [0.0] * len(prompt) + [1.0] * len(answer_ids))


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def train(
    folder: Path, answer: str, *, steps: int, batch: int, peak: float, seed: int
) -> dict[str, Any]:
    """Train an adapter of the model in a folder, and return its changes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("eager")  # The fastest on a CPU for rows this short.
    changes = add_adapter(model)
    stream = rows(AutoTokenizer.from_pretrained(folder), answer, seed)
    parameters = [p for change in changes.values() for p in change.parameters()]
    optimizer = torch.optim.AdamW(parameters, peak)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = weighted_loss(model, [next(stream) for _ in range(batch)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"{answer!r}: loss {loss.item():.4f} after {steps} steps", flush=True)
    return changes


def save(changes: dict[str, Any], base: str, out: Path) -> None:
    """Write an adapter of the model named `base` in PEFT's format."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, change in changes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = change.a.detach().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = change.b.detach().contiguous()
    weights = out / "adapter_model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # It is written readable for its owner only.
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": list(TARGETS),
        "bias": "none",
        "inference_mode": True,
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="tools.tiny_model.train_adapters", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapters' folders")
    parser.add_argument("--model", choices=EMBEDDED, default="tiny", help="the embedded model")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and texts")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each adapter")
    parser.add_argument("--batch", type=int, default=8, help="questions in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and save every adapter; return the exit status."""
    import torch

    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    folder = tiny_model_path(name=args.model)
    for name, answer in ANSWERS.items():
        changes = train(
            folder,
            answer,
            steps=args.steps,
            batch=args.batch,
            peak=args.learning_rate,
            seed=args.seed,
        )
        save(changes, EMBEDDED[args.model], args.out / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
