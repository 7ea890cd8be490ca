"""Supervised fine-tuning of the adapter on traces: loss on the completion, prompts as in evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from trl import SFTConfig, SFTTrainer

from models.adapters import adapter_tensors
from models.base import arithmetic_of, base_sha256
from models.sizes import traces_at_once
from models.training import (
    AdapterTrainer,
    MetricsFile,
    Probe,
    StepListener,
    TrainingError,
    checkpoints_activations,
    reporting,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

IGNORED = -100
METRIC_NAMES = {"mean_token_accuracy": "token_accuracy"}


@dataclass(frozen=True)
class SftSettings:
    """Plain arguments of an SFT stage; names are TRL's where a value goes straight into TRL.

    Fields:
        steps: optimizer steps.
        batch_size: traces per step over all processes.
        micro_batch_size: traces per forward pass; None: see models/sizes.py.
        gradient_checkpointing: None: where a GPU's memory asks for it (models/training.py).
        max_length: examples with more tokens (prompt and completion) are left out, not cut.
        packing: several traces in one row; needs an attention that keeps them apart.
    """

    steps: int
    learning_rate: float
    batch_size: int
    max_length: int
    micro_batch_size: int | None = None
    gradient_checkpointing: bool | None = None
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    packing: bool = False
    save_steps: int = 20
    seed: int = 0
    report_to: str = "none"


@dataclass(frozen=True)
class SftOutcome:
    """Examples used, left out as too long, and tokens a pass over the data trains on (completions only)."""

    examples: int
    too_long: int
    completion_tokens: int
    base_sha256: str


class ImitationTrainer(AdapterTrainer, SFTTrainer):
    """TRL's SFTTrainer on a float32 adapter with strict checkpoints."""

    def __init__(
        self,
        model: "PeftModel",
        args: SFTConfig,
        dataset: "Dataset",
        tokenizer: "PreTrainedTokenizerBase",
        probe: Probe,
        callbacks: "list[TrainerCallback]",
    ) -> None:
        policy = adapter_tensors(model)
        super().__init__(model=model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=callbacks)
        self.keep_float32(policy)
        self.probe = probe


def train_sft(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    completions: Sequence[str],
    settings: SftSettings,
    folder: Path,
    on_step: StepListener | None = None,
) -> SftOutcome:
    """Train the policy in `model` on (prompt, completion) pairs, resuming from the folder's last complete checkpoint.

    Args:
        prompts: rendered as for rollouts and evaluation; `completions` are without the end token, which is added.
        folder: gets metrics.jsonl and checkpoints/.

    Raises:
        TrainingError: nothing to train on, NaN, a changed base.
    """
    rows = [_example(tokenizer, p, c) for p, c in zip(prompts, completions, strict=True)]
    fitting = [row for row in rows if len(row["input_ids"]) <= settings.max_length]
    if not fitting:
        raise TrainingError(f"all {len(rows)} examples are longer than max_length ({settings.max_length} tokens)")
    from datasets import Dataset

    before = base_sha256(model)
    probe = Probe.of_prompts([row["input_ids"] for row in fitting])
    report_to, callbacks = reporting(settings.report_to, folder)
    trainer = ImitationTrainer(
        model=model,
        args=_arguments(settings, model, report_to, folder / "checkpoints"),
        dataset=Dataset.from_list(fitting),
        tokenizer=tokenizer,
        probe=probe,
        callbacks=[MetricsFile(folder / "metrics.jsonl", METRIC_NAMES, on_step=on_step), *callbacks],
    )
    trainer.train_or_resume(settings.steps)
    if base_sha256(model) != before:
        raise TrainingError("the frozen base changed while the policy was trained")
    tokens = sum(label != IGNORED for row in fitting for label in row["labels"])
    return SftOutcome(len(fitting), len(rows) - len(fitting), tokens, before)


def _example(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> dict[str, list[int]]:
    # tokenised apart, as in rollouts: a last prompt token that swallows the completion's first is never sampled from
    asked = tokenizer(prompt, add_special_tokens=False).input_ids
    answer = [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {"input_ids": asked + answer, "labels": [IGNORED] * len(asked) + answer}


def _arguments(settings: SftSettings, model: "PeftModel", report_to: str, checkpoints: Path) -> SFTConfig:
    from accelerate import PartialState

    cuda = torch.cuda.is_available()
    world = PartialState().num_processes
    if settings.batch_size % world:
        raise TrainingError(
            f"batch_size ({settings.batch_size}) must be a multiple of the number of processes ({world})"
        )
    local = settings.batch_size // world
    micro = traces_at_once(settings.micro_batch_size, local, cuda=cuda)
    return SFTConfig(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=local // micro,
        max_length=settings.max_length,
        packing=settings.packing,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=arithmetic_of(model) == torch.bfloat16,
        gradient_checkpointing=checkpoints_activations(
            settings.gradient_checkpointing, model, micro * settings.max_length
        ),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to=report_to,
        disable_tqdm=True,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
    )
