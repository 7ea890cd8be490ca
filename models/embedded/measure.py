"""Accuracy of the embedded models, measured the plain way: transformers generate, last box equals the gold.

The recipes measure with `evals` and the engine; this is the independent second look for model cards and tests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rewards.formats import boxes
from rewards.problems import Problem

MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class Measurement:
    """Right answers among completions: `right_PS` is problems x samples."""

    right_PS: list[list[bool]]
    completions_PS: list[list[str]]

    @property
    def accuracy(self) -> float:
        flat = [right for row in self.right_PS for right in row]
        return sum(flat) / len(flat)

    @property
    def pass_at_samples(self) -> float:
        """Share of problems with at least one right sample."""
        return sum(map(any, self.right_PS)) / len(self.right_PS)

    def by(self, keys: Iterable[Hashable]) -> dict[Hashable, float]:
        """Accuracy per key; one key a problem."""
        groups: dict[Hashable, list[bool]] = defaultdict(list)
        for key, row in zip(keys, self.right_PS, strict=True):
            groups[key] += row
        return {key: round(sum(groups[key]) / len(groups[key]), 4) for key in sorted(groups)}

    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval, with a problem's samples counted as one where there are several."""
        from statsmodels.stats.proportion import proportion_confint

        problems = len(self.right_PS)
        low, high = proportion_confint(self.accuracy * problems, problems, method="wilson")
        return float(low), float(high)


def load(folder: Path, form: Literal["fp32", "nf4"] = "fp32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model as the recipes do: fp32, or frozen NF4 with double quantisation (all but lm_head)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if form == "fp32":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"],
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # bitsandbytes repacks 4-bit layers in place on CPUs with AVX512-BF16, and corrupts them (its issue 2078)
            module.support_avx512bf16_for_cpu = False
    return model.eval(), tokenizer


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    greedy: bool = False,
    seed: int = 0,
    batch: int = 256,
) -> Measurement:
    """Sample at temperature 1 (or greedily) and grade."""
    torch.manual_seed(seed)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.question}], add_generation_prompt=True, tokenize=False
        )
        for p in problems
        for _ in range(samples)
    ]
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True, padding_side="left")
        # top_k=0: transformers otherwise keeps only the 50 likeliest tokens
        chosen = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **chosen)
        texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rows = [texts[start : start + samples] for start in range(0, len(texts), samples)]
    right = [
        [(found := boxes(text)) != [] and found[-1][2] == problem.gold for text in row]
        for problem, row in zip(problems, rows, strict=True)
    ]
    return Measurement(right, rows)
