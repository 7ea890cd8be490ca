"""Training from scratch: a small Qwen2 on an endless stream of generated problems, loss on the solutions only."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from models.embedded.corpus import Writer
from rewards.generator.draw import stream

IGNORED = -100
SORTED_BATCHES = 16  # so many batches are drawn and sorted by length together, which saves most of the padding


@dataclass(frozen=True)
class Shape:
    """Size of a model. The width is a multiple of 64, NF4's block; heads are 32 wide."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. `lr` is AdamW's peak (embeddings, norms, biases), `matrix_lr` Muon's (all else)."""

    steps: int
    batch: int
    lr: float
    matrix_lr: float
    warmup: int = 40
    floor: float = 0.02
    weight_decay: float = 0.05


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights and an output matrix of its own: vLLM on a CPU would serve a tied one stale."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        max_window_layers=shape.layers,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerBase, write: Writer, batch: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, targets), each B x T, padded on the right; targets are IGNORED up to the answer."""
    rng = random.Random(f"corpus/{seed}")
    problems = stream("train", seed)
    while True:
        drawn = list(itertools.islice(problems, batch * SORTED_BATCHES))
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": problem.question}], add_generation_prompt=True, tokenize=False
            )
            for problem in drawn
        ]
        answers = [write(problem, rng) + tokenizer.eos_token for problem in drawn]
        encoded = list(zip(tokenizer(prompts)["input_ids"], tokenizer(answers)["input_ids"], strict=True))
        encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        groups = [encoded[start : start + batch] for start in range(0, len(encoded), batch)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(prompt) + len(answer) for prompt, answer in group)
            ids = torch.full((len(group), width), tokenizer.pad_token_id)
            targets = torch.full((len(group), width), IGNORED)
            for row, (prompt, answer) in enumerate(group):
                length = len(prompt) + len(answer)
                ids[row, :length] = torch.tensor(prompt + answer)
                targets[row, len(prompt) : length] = torch.tensor(answer)
            yield ids[:, :-1], targets[:, 1:]


def pretrain(
    model: Qwen2ForCausalLM,
    data: Iterator[tuple[torch.Tensor, torch.Tensor]],
    schedule: Schedule,
    report: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
) -> None:
    """Train `model` in place. `report(step, loss, seconds)` is called every 100 steps."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(inner, lr=schedule.matrix_lr, weight_decay=schedule.weight_decay, momentum=0.95),
        torch.optim.AdamW(rest, lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    model.train()
    start, losses = time.perf_counter(), []
    for step in range(1, schedule.steps + 1):
        done = step / schedule.steps
        factor = min(step / schedule.warmup, 1.0) * max(schedule.floor, min(1.0, 2.0 * (1.0 - done)))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        ids, targets = next(data)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 100 == 0 or step == schedule.steps:
            report(step, sum(losses) / len(losses), time.perf_counter() - start)
            losses.clear()
    model.eval()
