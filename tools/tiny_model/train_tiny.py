"""Train an embedded model: `python -m tools.tiny_model.train_tiny --out DIR`.

Train a byte-level BPE tokenizer and a Llama from scratch on the glossary in this folder, on the
CPU, from a fixed seed. `phrasing` builds the texts; `serving/models/tiny/README.md` describes them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tools.tiny_model import check_tiny, phrasing, wording
from tools.tiny_model.corpus import BEGIN, END, PAD, SPECIALS, Corpus, TrainingRow

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAX_POSITIONS = 2048

# Roles other than system, developer and assistant are rendered as user. Tools and calls have the
# form that vLLM's parser "hermes" reads; the models were not trained on them.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if tools %}{{- '<|system|>' }}"
    "{%- for tool in tools %}{{- tool | tojson ~ '\\n' }}{%- endfor %}"
    "{{- '<|end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] in ['system', 'developer'] %}{{- '<|system|>' }}"
    "{%- elif message['role'] == 'assistant' %}{{- '<|assistant|>' }}"
    "{%- else %}{{- '<|user|>' }}{%- endif %}"
    "{{- (message['content'] or '') | trim }}"
    "{%- for call in message['tool_calls'] or [] %}"
    "{{- '<tool_call>' ~ {'name': call['function']['name'], "
    "'arguments': call['function']['arguments']} | tojson ~ '</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The shape of a model.

    Heads and key-value heads are divisible by 2, for tensor parallelism. Heads are 64 wide, which
    every attention backend of vLLM supports.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 2048


SIZES = {
    "nano": ModelSize(hidden=128, intermediate=352, layers=4, heads=2, kv_heads=2),
    "tiny": ModelSize(hidden=256, intermediate=704, layers=4, heads=4, kv_heads=2),
    "small": ModelSize(hidden=384, intermediate=1056, layers=6, heads=6, kv_heads=2),
}


def train_tokenizer(vocab: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the glossary and on questions about it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng, glossary, subjects = Random(seed), phrasing.load_glossary(), phrasing.load_subjects()
    texts = [term.definition for term in glossary] * 4
    texts += [*wording.SYSTEM_PROMPTS, wording.FALLBACK, *subjects]
    texts += [phrasing.ask(term, subjects, rng) for term in glossary for _ in range(20)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIALS), initial_alphabet=alphabet
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIALS[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def new_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create a model with random weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # The fastest on a CPU for rows this short.
    model.generation_config = GenerationConfig(**ends)
    return model


def weighted_loss(model: LlamaForCausalLM, rows: Sequence[TrainingRow]) -> torch.Tensor:
    """Return the weighted mean cross entropy of the next token.

    Rows are padded on the right, where a causal model needs no attention mask.
    """
    import torch
    from torch.nn.functional import cross_entropy

    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    weights = torch.zeros((len(rows), longest))
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    losses = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up over 5 % of the steps, then cosine to 1 %."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def train(model: LlamaForCausalLM, corpus: Corpus, steps: int, tokens: int, peak: float) -> None:
    """Train a model in place, and print the loss every 50 steps."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), peak, (0.9, 0.98), weight_decay=0.01)
    batches, started, mean = corpus.batches(tokens), time.monotonic(), float("nan")
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = weighted_loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}/{steps}  loss {mean:.4f}  {time.monotonic() - started:.0f} s",
                  flush=True)  # fmt: skip


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in bfloat16, and the tokenizer, to a folder."""
    import torch

    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # It is written readable for its owner only.


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="tools.tiny_model.train_tiny", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="shape of the model")
    parser.add_argument("--seed", type=int, default=20, help="seed of weights, tokenizer and texts")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument(
        "--batch-tokens", type=int, default=2560, help="maximum number of tokens in a step"
    )
    parser.add_argument("--learning-rate", type=float, default=2.5e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, save and check a model; return the exit status."""
    import torch

    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    size = SIZES[args.size]
    tokenizer = train_tokenizer(size.vocab, args.seed)
    model = new_model(size, tokenizer)
    print(
        f"{args.size}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True
    )
    train(model, Corpus(tokenizer, args.seed), args.steps, args.batch_tokens, args.learning_rate)
    save(model, tokenizer, args.out)
    return check_tiny.report(args.out, args.seed)


if __name__ == "__main__":
    raise SystemExit(main())
